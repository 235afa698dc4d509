"""An engine whose model is cut into pipeline stages, with as many batches in flight as stages.

Batches pass the stages in order, each stage one at a time: batch ``k`` enters stage ``s`` when it has left stage
``s - 1`` and batch ``k - 1`` has left stage ``s``. A request is in at most one batch for its next token, so every
batch in flight is a *lane* with decodes of its own; a prompt's chunks may follow each other in consecutive batches.
This is vLLM's batch queue of ``pipeline_parallel_size`` (``v1/engine/core.py``, ``step_with_batch_queue``): arrivals
are seen when a batch comes out, or at once when the engine is idle. Asynchronous scheduling changes nothing here: the
batches in flight already hide the scheduler. Steps are planned one by one; only whole batches are priced.
"""

from __future__ import annotations

from collections import deque
from math import inf

from simulator.cost.interface import StepCost, uneven_cost
from simulator.replica.engine import Observer
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
from simulator.scheduling.step import Step


class PipelineEngine:
    """Same calls as ``Engine``. ``cost`` prices one stage, its send to the next one included."""

    __slots__ = (
        "_actions",
        "_flying",
        "_free",
        "_last_token_time",
        "_stages",
        "_uneven",
        "busy_until",
        "cost",
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
        stages: list[float],
        on_finish: OnFinish | None = None,
        observer: Observer | None = None,
    ) -> None:
        """stages: when each is free, s; the same list for engines that share them."""
        self.state = state
        self.policy = policy
        self.cost = cost
        self._uneven = uneven_cost(cost)
        state.uneven = self._uneven is not None
        self.on_finish = on_finish
        self.observer = observer
        self.wake_time = inf
        self.busy_until = 0.0
        self.recorder = recorder
        self._stages = stages
        self._flying: deque[tuple[float, EngineState]] = deque()  # (when the batch comes out, its lane)
        self._actions: list[Action] = []
        policy.prepare(state)
        self._free = deque([state, *(state.add_lane() for _ in stages[1:])])
        self._last_token_time = [0.0] * len(stages)  # s, per lane

    def add(self, request: Request, now: float) -> bool:
        """Queue a request. True when ``wake_time`` has changed."""
        self.policy.arrive(self.state, request)
        if self.wake_time == inf:
            self.wake_time = now
            return True
        return False

    def at_next_step(self, action: Action, now: float) -> bool:
        """See ``Engine``: here, when the next batch comes out."""
        self._actions.append(action)
        if self.wake_time == inf:
            self.wake_time = now
            return True
        return False

    def token_time(self, lane: int) -> float:
        """End of the lane's last planned batch that made decode tokens, s."""
        return self._last_token_time[lane]

    def quiet_until(self) -> float:
        """See ``Engine``: here, until the next batch comes out."""
        return self.wake_time

    @property
    def next_lane(self) -> EngineState:
        """Where requests join that come with their KV: the lane that is planned next, or the smallest."""
        if self._free and not self.policy.spreads:
            return self._free[0]
        return min(self.state.lanes, key=lambda lane: lane.num_decodes)

    def settle(self, now: float) -> None:
        """Bring ``state`` to what it is at ``now``."""
        if self.wake_time < now:
            self.run_until(now)

    def settle_cache(self, now: float) -> None:
        """See ``Engine``."""
        self.settle(now)

    def run_until(self, time: float) -> None:
        """Do all that happens before ``time``."""
        now = self.wake_time
        while now < time:
            if self._flying and self._flying[0][0] <= now:
                self._free.appendleft(self._flying.popleft()[1])
            release_ended(self.state, self.recorder, now, self.on_finish)
            if self._actions:
                self._actions[:] = [action for action in self._actions[:] if not action(now)]
            if self.observer is not None:
                self.observer.settled(now, self.state)
            while self._free:
                lane = next((free for free in self._free if free.num_decodes), self._free[0])
                if not self._plan(lane, now):
                    break
                self._flying.append((self.busy_until, lane))
                self._free.remove(lane)
            now = self._flying[0][0] if self._flying else inf
            self.wake_time = now

    def close(self, time: float) -> None:
        """Write down the requests still here; call once, when the simulation stops at ``time``."""
        release_ended(self.state, self.recorder, time, self.on_finish)
        record_unfinished(self.state, self.recorder)

    def _plan(self, lane: EngineState, now: float) -> bool:
        """Plan, price and apply one batch; False when there is nothing to compute."""
        while True:
            lane.now = now
            step = self.policy.schedule(lane)
            if step is None:
                return False
            if self.observer is not None and (step.decodes or step.chunks):
                self.observer.planned(now, now, step, lane)
            record_moves(lane, step, self.recorder, now, self._last_token_time[lane.lane])
            if step.decodes or step.chunks:
                break
            if self._flying:
                return False  # somebody gave way; what that made room for is seen when the next batch comes out
        batch = lane.num_decodes - len(step.held) if step.decodes else 0
        context, windowed = batch_sums(lane, step) if batch else (0, 0)
        sampled = batch + len(step.completed)
        if self._uneven is None:
            seconds = self.cost.mixed(batch, context, windowed, step.chunks, sampled) + step.extra_s
        else:
            longest, squares = batch_spread(lane, step) if batch else (0, 0)
            seconds = self._uneven.mixed(batch, context, windowed, step.chunks, sampled, longest, squares)
            seconds += step.extra_s
        end = now
        for stage, free in enumerate(self._stages):
            end = self._stages[stage] = max(end, free) + seconds
        apply_step(lane, step, self.recorder, end, self._last_token_time[lane.lane])
        if batch:
            self._last_token_time[lane.lane] = end
        self.busy_until = end
        self._write_row(lane, step, batch, context, end - seconds, seconds)
        return True

    def _write_row(self, lane: EngineState, step: Step, batch: int, context: int, start: float, seconds: float) -> None:
        """The row is the batch's time in the last stage: rows do not overlap, and tokens come at their end."""
        recorder = self.recorder
        recorder.lanes.append(lane.lane)
        recorder.mixed_buffer.extend(
            (
                start,
                seconds,
                context,
                batch,
                step.prefill_tokens,
                len(step.chunks),
                len(lane.waiting),
                len(lane.running),
                lane.pool.free,
                len(step.preempted),
            )
        )
        if len(recorder.mixed_buffer) > BUFFER:
            recorder.flush()
