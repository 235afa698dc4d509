"""One serving engine: pure state and times, no clock. ``plan -> price -> apply``, in spans.

A *span* is the longest run of equal decode steps: nothing joins, leaves, runs out of blocks or bends the price. Its
step ends have a closed form, so a span costs the same however long it is; an arrival that could be admitted cuts it
after the step in flight. Running with ``step_mode`` plans every step on its own and gives the same bytes.

With ``async_scheduling`` the engine plans step N+1 while step N runs, as vLLM's engine core does with its batch queue
of two: an arrival waits one step longer and a finish is seen one step later.
"""

from __future__ import annotations

from math import inf, sqrt
from typing import Protocol

from simulator.cost.interface import StepCost, uneven_cost
from simulator.native.attributes import mypyc_attr
from simulator.replica.recorder import BUFFER, Recorder
from simulator.replica.steps import (
    Action,
    OnFinish,
    apply_step,
    batch_spread,
    batch_sums,
    record_moves,
    record_unfinished,
    release_ended,
)
from simulator.scheduling.policy import Policy
from simulator.scheduling.request import Request
from simulator.scheduling.state import EngineState
from simulator.scheduling.step import DECODE, Step


class Observer(Protocol):
    """Watches an engine without touching it."""

    def settled(self, now: float, state: EngineState) -> None:
        """The engine woke: what ran is applied and finished requests have gone."""
        ...

    def planned(self, now: float, begin: float, step: Step, state: EngineState) -> None:
        """A step (or the first of a span of equal steps) was planned at ``now`` to run from ``begin``; not applied."""
        ...


@mypyc_attr(allow_interpreted_subclasses=True)
class Engine:
    """A replica's engine. The cluster calls ``add`` when a request arrives and ``run_until`` past ``wake_time``."""

    __slots__ = (
        "_actions",
        "_begin",
        "_bounded",
        "_curve",
        "_exact",
        "_half",
        "_lead",
        "_pending",
        "_row",
        "_sequential",
        "_step_mode",
        "_steps_done",
        "_uneven",
        "_version",
        "busy_until",
        "cost",
        "eager",
        "last_token_time",
        "observer",
        "on_finish",
        "policy",
        "recorder",
        "state",
        "wake_time",
    )

    def __init__(
        self,
        state: EngineState,
        policy: Policy,
        cost: StepCost,
        recorder: Recorder,
        *,
        step_mode: bool = False,
        sequential: bool = False,
        on_finish: OnFinish | None = None,
        observer: Observer | None = None,
    ) -> None:
        """step_mode: plan every step on its own instead of in spans.
        sequential: add step times one by one, as logs made step by step did, instead of in closed form.
        """
        self.state = state
        self.policy = policy
        self.cost = cost
        self._uneven = uneven_cost(cost)
        state.uneven = self._uneven is not None
        self.on_finish = on_finish
        self.observer = observer
        self.eager = on_finish is not None or observer is not None  # finishes must be seen when they happen
        self.wake_time = inf
        self.busy_until = 0.0  # end of the last planned step
        self.last_token_time = 0.0  # end of the last planned step that made decode tokens
        self.recorder = recorder
        self._step_mode = step_mode
        self._sequential = sequential
        self._lead = 1 if state.args.async_scheduling else 0
        self._actions: list[Action] = []  # to do before the next step is planned
        self._pending = 0  # steps of the span in flight that are planned but not applied
        # The span: step k (from 1) ends at _begin + k * (_half + _curve * k), so it lasts _half + _curve * (2 k - 1).
        self._begin = self._half = self._curve = 0.0
        self._steps_done = 0  # of the span, applied
        self._bounded = 0  # steps for which the price holds
        self._version = -1  # batch for which the span was priced; -1: none
        self._exact: list[float] | None = None  # step ends added one by one, for costs that ask for it
        self._row: tuple[int, int, int, int] | None = None  # of the span: context, decodes, waiting, running
        policy.prepare(state)

    # -- called by the cluster ---------------------------------------------------------------------------------

    def add(self, request: Request, now: float) -> bool:
        """Queue a request. True when ``wake_time`` has changed."""
        cut = self.policy.arrive(self.state, request)
        if self.wake_time == inf:
            self.wake_time = now
            return True
        return cut and self._pending > 1 and self._cut(now)

    def at_next_step(self, action: Action, now: float) -> bool:
        """Call ``action(time)`` before the next step is planned, or at once when idle, until it says that it is done.

        True when ``wake_time`` has changed.

        How everything that is not an arrival reaches an engine: what runs is never changed, only what runs next.
        """
        self._actions.append(action)
        if self.wake_time == inf:
            self.wake_time = now
            return True
        return self._pending > 1 and self._cut(now)

    def reprice(self) -> None:
        """Between two steps, from ``at_next_step``: the prices of steps have changed."""
        self._version = -1

    def open_span(self) -> tuple[float, float, int] | None:
        """(begin, end, decodes) of the span that no row has been written of yet; None: there is none."""
        if self._row is None:
            return None
        return self._begin, self._end(self._steps_done + self._pending), self._row[1]

    def token_time(self, lane: int) -> float:
        """End of the last planned step that made decode tokens, s."""
        del lane  # there is one
        return self.last_token_time

    def quiet_until(self) -> float:
        """Until when nobody ends, apart from those ``state.releasing`` knows of and unless something arrives, s."""
        if self._pending:
            return self._end(self._steps_done + self._pending)
        return max(self.wake_time, self.busy_until)

    def settle(self, now: float) -> None:
        """Bring ``state`` to what it is at ``now``, in the middle of a span too. Changes nothing that happens."""
        if self.wake_time < now:
            self.run_until(now)
        done = self._steps_before(now)
        if done:
            self._steps_done += done
            self._pending -= done
            self.state.advance(done)
        if self._pending and self.state.caching:
            self.state.evict_ahead()

    def settle_cache(self, now: float) -> None:
        """``settle``, as far as the prefix cache goes: it stays as it is while decodes find blocks without content."""
        if self.wake_time < now:
            self.run_until(now)
        if self._pending and self.state.evicts(self._pending):
            self.settle(now)

    def run_until(self, time: float) -> None:
        """Do all that happens before ``time``: apply what ran, let finished requests go, plan what runs next."""
        state = self.state
        releasing = state.releasing
        schedule = self.policy.schedule
        observer = self.observer
        actions = self._actions
        tiers = state.tiers
        now = self.wake_time
        while now < time:
            if self._pending:
                self._apply()
            if releasing and releasing[0][0] <= now:
                release_ended(state, self.recorder, now, self.on_finish)
            if actions:
                actions[:] = [action for action in actions[:] if not action(now)]
            if observer is not None:
                observer.settled(now, state)
            begin = self.busy_until
            if begin < now:
                begin = now
            state.now = begin
            if tiers is not None:
                tiers.begin(now, begin)
            step = schedule(state)
            if observer is not None and step is not None and (step.decodes or step.chunks):
                observer.planned(now, begin, step, state)
            # With asynchronous scheduling a plan for an empty pipeline wakes at once, to plan the step after it.
            if step is DECODE:
                now = self._span(begin)
            elif step is not None:
                now = self._mixed(step, begin, now)
            else:
                self._version = -1
                now = begin if begin > now else inf
            self.wake_time = now

    def close(self, time: float) -> None:
        """Write down the requests still here; call once, when the simulation stops at ``time``."""
        if self._pending > 1:  # a span reaches beyond: what step-by-step planning would have applied by now
            self._cut(time)
            self._pending -= 1
            self._apply()
        state = self.state
        release_ended(state, self.recorder, time, self.on_finish)
        if self._row is not None:  # what has ended is gone, whether a step was planned since or not
            self._close_row()
        record_unfinished(state, self.recorder)

    # -- planning ----------------------------------------------------------------------------------------------

    def _span(self, begin: float) -> float:
        """Price the coming decode steps and decide how many of them to run; returns when to plan again."""
        state = self.state
        done = self._steps_done
        if self._version != state.batch_version or done >= self._bounded:
            if self._row is not None:
                self._close_row()
            batch = state.num_decodes
            context = state.computed_sum + batch
            windowed = 0 if state.window is None else state.windowed_sum
            if self._uneven is None:
                first, increment, self._bounded = self.cost.decode(batch, context, windowed, state.growing)
            else:
                longest, squares = state.spread()
                first, increment, self._bounded = self._uneven.decode(
                    batch, context, windowed, state.growing, longest, squares
                )
            self._curve = curve = increment * 0.5
            self._half = first - curve
            self._begin = begin
            self._steps_done = done = 0
            self._version = state.batch_version
            self._exact = [begin] if self._sequential else None
            # ``running`` still holds who ended with the step before, where that is not known yet.
            self._row = (context, batch, len(state.waiting), len(state.prefilling) + batch)
        if self._step_mode or (state.releasing and (self.eager or len(state.waiting))):
            run = 1
        else:
            run = state.longest_run()
            if run > self._bounded - done:
                run = self._bounded - done
            if state.releasing and run > 1 and state.evicts(run):
                run = 1  # what the finished requests give back decides what is evicted
        self._pending = run
        last = done + run - self._lead
        if self._exact is not None:
            return self._end(last)
        return self._begin + last * (self._half + self._curve * last)

    def _end(self, step: int) -> float:
        """When step ``step`` of the span ends (0: when the span begins)."""
        exact = self._exact
        if exact is None:
            return self._begin + step * (self._half + self._curve * step)
        while len(exact) <= step:
            exact.append(exact[-1] + (self._half + self._curve * (2 * len(exact) - 1)))
        return exact[step]

    def _cut(self, now: float) -> bool:
        """Shorten the span so that an arrival at ``now`` is seen at the next step it can join."""
        half, curve = self._half, self._curve
        elapsed = now - self._begin
        at_least = self._steps_done + 1 - self._lead
        step = int(2 * elapsed / (half + sqrt(half * half + 4 * curve * elapsed))) + 1 if elapsed > 0 else 0
        if step < at_least:
            step = at_least
        wake = self._end(step)
        while wake < now:  # the formula is a float; the step ends themselves decide
            step += 1
            wake = self._end(step)
        while step > at_least and (earlier := self._end(step - 1)) >= now:
            step -= 1
            wake = earlier
        steps = step - self._steps_done + self._lead
        if steps >= self._pending:
            return False
        self._pending = steps
        self.wake_time = wake
        return True

    def _steps_before(self, now: float) -> int:
        """Pending steps that step-by-step planning would have applied before ``now``."""
        if self._pending <= 1:
            return 0
        half, curve = self._half, self._curve
        elapsed = max(now - self._begin, 0.0)
        step = int(2 * elapsed / (half + sqrt(half * half + 4 * curve * elapsed))) if elapsed else 0
        while self._end(step + 1) < now:
            step += 1
        while step >= 0 and self._end(step) >= now:
            step -= 1
        return min(max(step + self._lead - self._steps_done, 0), self._pending - 1)

    def _apply(self) -> None:
        """The pending steps of the span have been computed (or, the last one, are in flight)."""
        state = self.state
        self._steps_done = done = self._steps_done + self._pending
        if self._exact is None:
            end = self._begin + done * (self._half + self._curve * done)
        else:
            end = self._end(done)
        self.busy_until = self.last_token_time = end
        if state.advance(self._pending):
            for request in state.ended():
                state.releasing.append((end, request))
        self._pending = 0

    def _mixed(self, step: Step, begin: float, now: float) -> float:
        """Price and apply one step that is not a plain decode step; returns when to plan again."""
        if self._row is not None:
            self._close_row()
        self._version = -1
        recorder = self.recorder
        state = self.state
        if step.admitted or step.preempted:
            record_moves(state, step, recorder, now, self.last_token_time)
        if not (step.decodes or step.chunks or step.extra_s):
            return begin  # everybody running gave way: somebody waiting fits now
        batch = state.num_decodes - len(step.held) if step.decodes else 0
        context, windowed = batch_sums(state, step) if batch else (0, 0)
        seconds = step.extra_s
        if batch or step.chunks:  # else it only copies blocks
            sampled = batch + len(step.completed)
            if self._uneven is None:
                seconds += self.cost.mixed(batch, context, windowed, step.chunks, sampled)
            else:
                longest, squares = batch_spread(state, step) if step.held else state.spread() if batch else (0, 0)
                seconds += self._uneven.mixed(batch, context, windowed, step.chunks, sampled, longest, squares)
        if state.tiers is not None:
            seconds = state.tiers.step_seconds(begin, seconds)
        self.busy_until = end = begin + seconds
        running = len(state.prefilling) + state.num_decodes + len(step.completed)  # who ended before left out
        apply_step(state, step, recorder, end, self.last_token_time)
        if batch:
            self.last_token_time = end
        recorder.mixed_buffer.extend(
            (
                begin,
                seconds,
                context,
                batch,
                step.prefill_tokens,
                len(step.requests),
                len(state.waiting),
                running,
                state.pool.free,
                len(step.preempted),
            )
        )
        if len(recorder.mixed_buffer) > BUFFER:
            recorder.flush()
        return begin if self._lead else end

    def _close_row(self) -> None:
        """Write the row of the span that ends."""
        assert self._row is not None
        context, batch, waiting, running = self._row
        self._row = None
        if self._steps_done:
            first, increment = self._half + self._curve, 2 * self._curve
            free = self.state.pool.free
            buffer = self.recorder.span_buffer
            buffer.extend((self._begin, first, increment, context, self._steps_done, batch, waiting, running, free))
            if len(buffer) > BUFFER:
                self.recorder.flush()
