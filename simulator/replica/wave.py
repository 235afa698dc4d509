"""An engine of several data-parallel ranks that step together, because they share the experts of their model.

Every rank has a scheduler, a queue and KV blocks of its own. While one of them has work all of them step (a *wave*:
``v1/engine/core.py``, ``DPEngineCoreProc``), those without work with dummy batches, and a step lasts until the slowest
is done: an arrival at an idle rank waits for the step of the others. Ranks make token steps together, so one count
numbers them and one row describes a step of all: its counts are sums over ranks. Equal decode steps of all ranks run
in spans like those of ``Engine``. A wave ends with its last request here; vLLM goes on with dummy batches until the
ranks have agreed, at most ``dp_sync_interval`` steps that nobody waits for.

A new request goes to the rank with the least requests, waiting ones counted up to four times as the rank's KV cache
fills up (``DPLBAsyncMPClient.get_core_engine_for_request``); ties rotate. The client sees queues and caches as they
are; vLLM's sees them up to 100 ms late, and counts its own requests exactly.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from math import inf

from simulator.cost.interface import StepCost
from simulator.cost.wave import Batch, WaveCost, wave_cost
from simulator.kv.pool import BlockPool
from simulator.replica.engine import Engine, Observer
from simulator.replica.recorder import BUFFER, Recorder
from simulator.replica.steps import (
    FINISHED,
    OnFinish,
    apply_step,
    batch_spread,
    batch_sums,
    record_moves,
    record_unfinished,
)
from simulator.scheduling.policy import Policy
from simulator.scheduling.request import Request
from simulator.scheduling.state import EngineState
from simulator.scheduling.step import DECODE, Step

NEVER = 1 << 60  # steps
NOTHING = Step(decodes=False)


class Queues:
    """The waiting requests of all ranks, rank by rank, for whoever looks at the engine as one."""

    def __init__(self, ranks: Sequence[EngineState]) -> None:
        self._ranks = ranks

    def __len__(self) -> int:
        return sum(len(rank.waiting) for rank in self._ranks)

    def __iter__(self) -> Iterator[Request]:
        return chain.from_iterable(rank.waiting for rank in self._ranks)  # type: ignore[misc] # queues are sequences

    def __getitem__(self, index: int, /) -> Request:
        return list(self)[index]

    def append(self, request: Request, /) -> None:
        raise TypeError(f"request {request.row} is to be queued at a rank")

    def appendleft(self, request: Request, /) -> None:
        self.append(request)

    def popleft(self) -> Request:
        raise TypeError("requests leave the queues of their ranks")


class WaveEngine(Engine):
    """Same calls as ``Engine``. ``state`` is a view of all ranks together, up to date after ``settle``; ``ranks`` are
    theirs. Requests know their rank by their ``lane``.
    """

    __slots__ = ("_balanced", "_first_rank", "_interval", "_left", "_policies", "_wave", "ranks")

    def __init__(
        self,
        ranks: Sequence[EngineState],
        policies: Sequence[Policy],
        cost: StepCost,
        recorder: Recorder,
        *,
        step_mode: bool = False,
        rebalance_interval: int | None = None,
        on_finish: OnFinish | None = None,
        observer: Observer | None = None,
    ) -> None:
        """policies: one for each rank. rebalance_interval: steps from one EPLB rearrangement to the next; the first
        comes after a quarter, as in vLLM. None: experts stay where they are.
        """
        first = ranks[0]
        pool = BlockPool(sum(rank.pool.num_blocks for rank in ranks), first.block_size)
        view = EngineState(first.args, pool, window=first.window)
        super().__init__(view, policies[0], cost, recorder, step_mode=step_mode, on_finish=on_finish, observer=observer)
        self.ranks, self._policies = list(ranks), list(policies)
        self._wave: WaveCost = wave_cost(cost)
        self._first_rank = 0  # where the search for the least loaded begins
        self._interval = rebalance_interval
        self._left = NEVER if rebalance_interval is None else max(rebalance_interval // 4, 1)
        self._balanced = rebalance_interval is None
        view.waiting = Queues(self.ranks)
        view.lanes = self.ranks
        for number, (rank, policy) in enumerate(zip(self.ranks, self._policies, strict=True)):
            rank.lane, rank.lanes = number, self.ranks
            rank.releasing = view.releasing  # in order of time, whoever's they are
            rank.uneven = self._wave.uneven
            policy.prepare(rank)

    # -- called by the cluster ---------------------------------------------------------------------------------

    def add(self, request: Request, now: float) -> bool:
        """Queue a request at a rank. True when ``wake_time`` has changed."""
        number = self._choose(now)
        rank = self.ranks[number]
        cut = self._policies[number].arrive(rank, request) or not rank.running  # an idle one joins the wave's next step
        if self.wake_time == inf:
            self.wake_time = now
            return True
        return cut and self._pending > 1 and self._cut(now)

    def _choose(self, now: float) -> int:
        ranks, n = self.ranks, len(self.ranks)
        if n == 1:
            return 0
        gone = [0] * n
        for end, request in self.state.releasing:
            if end >= now:
                break
            gone[request.lane] += 1
        if any(len(rank.waiting) for rank in ranks):
            self.settle(now)
        best, least = 0, inf
        for i in range(n):
            number = (self._first_rank + i) % n
            rank = ranks[number]
            waiting = len(rank.waiting)
            score = float(waiting + len(rank.running) - gone[number])
            if waiting:
                usage = 1.0 - rank.pool.free / rank.pool.num_blocks
                score += waiting * 6.0 * max(0.0, usage - 0.5)
            if score < least:
                best, least = number, score
        self._first_rank = (self._first_rank + 1) % n
        return best

    def settle(self, now: float) -> None:
        """Bring ``state`` and ``ranks`` to what they are at ``now``, in the middle of a span too."""
        if self.wake_time < now:
            self.run_until(now)
        done = self._steps_before(now)
        if done:
            self._steps_done += done
            self._pending -= done
            self._left -= done
            for rank in self.ranks:
                _advance(rank, done)
        view = self.state
        view.pool.free = 0
        view.running, view.prefilling = {}, {}
        for rank in self.ranks:
            if self._pending and rank.num_decodes and rank.caching:
                rank.evict_ahead()
            view.running.update(rank.running)
            view.prefilling.update(rank.prefilling)
            view.pool.free += rank.pool.free

    def settle_cache(self, now: float) -> None:
        """See ``Engine``."""
        self.settle(now)

    def run_until(self, time: float) -> None:
        """Do all that happens before ``time``."""
        now = self.wake_time
        while now < time:
            if self._pending:
                self._apply()
            self._release(now)
            if self._actions:
                self._actions[:] = [action for action in self._actions[:] if not action(now)]
            begin = max(self.busy_until, now)
            steps = self._plan(now, begin)
            if all(step is None for step in steps):
                self._version = -1
                now = begin if begin > now else inf
            elif self._left and all(step is None or step is DECODE for step in steps):
                now = self._span(begin)
            else:
                now = self._mixed_wave([step or NOTHING for step in steps], begin, now)
            self.wake_time = now

    def close(self, time: float) -> None:
        """Write down the requests still here; call once, when the simulation stops at ``time``."""
        if self._pending > 1:
            self._cut(time)
            self._pending -= 1
            self._apply()
        self._release(time)
        if self._row is not None:
            self._close_row()
        for rank in self.ranks:
            record_unfinished(rank, self.recorder)

    # -- planning ----------------------------------------------------------------------------------------------

    def _plan(self, now: float, begin: float) -> list[Step | None]:
        """What each rank's scheduler does next."""
        observer = self.observer
        steps = []
        for rank, policy in zip(self.ranks, self._policies, strict=True):
            if observer is not None:
                observer.settled(now, rank)
            rank.now = begin
            step = policy.schedule(rank)
            if observer is not None and step is not None and (step.decodes or step.chunks):
                observer.planned(now, begin, step, rank)
            steps.append(step)
        return steps

    def _span(self, begin: float) -> float:
        """Price the coming decode steps and decide how many of them to run; returns when to plan again."""
        done = self._steps_done
        ranks = self.ranks
        version = sum([rank.batch_version for rank in ranks])
        if self._version != version or done >= self._bounded:
            if self._row is not None:
                self._close_row()
            batches = [_batch(rank, DECODE, self._wave.uneven) for rank in ranks]
            first, increment, self._bounded = self._wave.decode(batches, balanced=self._balanced)
            self._curve = curve = increment * 0.5
            self._half = first - curve
            self._begin = begin
            self._steps_done = done = 0
            self._version = version
            self._row = self._sums(batches)
        if self._step_mode or self.state.releasing:
            run = 1
        else:
            run = min([rank.longest_run() for rank in ranks if rank.num_decodes])
            run = min(run, self._bounded - done, self._left)
        self._pending = run
        return self._end(done + run - self._lead)

    def _sums(self, batches: Sequence[Batch]) -> tuple[int, int, int, int]:
        """(context, decodes, waiting, running) of all ranks."""
        decodes = sum([b.num_decodes for b in batches])
        prefilling = sum([len(rank.prefilling) for rank in self.ranks])
        return sum([b.context for b in batches]), decodes, len(self.state.waiting), prefilling + decodes

    def _apply(self) -> None:
        """The pending steps of the span have been computed (or, the last one, are in flight)."""
        steps = self._pending
        self._steps_done = done = self._steps_done + steps
        self._left -= steps
        self.busy_until = self.last_token_time = end = self._end(done)
        for rank in self.ranks:
            if _advance(rank, steps):
                self.state.releasing.extend([(end, request) for request in rank.ended()])
        self._pending = 0

    def _mixed_wave(self, steps: list[Step], begin: float, now: float) -> float:
        """Price and apply one step that is not a plain decode step on every rank; returns when to plan again."""
        if self._row is not None:
            self._close_row()
        self._version = -1
        recorder, ranks = self.recorder, self.ranks
        for rank, step in zip(ranks, steps, strict=True):
            if step.admitted or step.preempted:
                record_moves(rank, step, recorder, now, self.last_token_time)
        batches = [_batch(rank, step, self._wave.uneven) for rank, step in zip(ranks, steps, strict=True)]
        if not any(b.works or b.extra_s for b in batches):
            return begin  # everybody running gave way: somebody waiting fits now
        moved_s = self._rebalance()
        seconds = self._wave.mixed(batches, balanced=self._balanced) + moved_s
        self.busy_until = end = begin + seconds
        decodes = sum([b.num_decodes for b in batches])
        running = sum([len(r.prefilling) + r.num_decodes + len(s.completed) for r, s in zip(ranks, steps, strict=True)])
        for rank, step in zip(ranks, steps, strict=True):
            _apply_together(rank, step, recorder, end, self.last_token_time, advances=decodes > 0)
        if decodes:
            self.last_token_time = end
        recorder.mixed_buffer.extend(
            (
                begin,
                seconds,
                sum([b.context for b in batches]),
                decodes,
                sum([step.prefill_tokens for step in steps]),
                sum([len(step.chunks) for step in steps]),
                len(self.state.waiting),
                running,
                sum([rank.pool.free for rank in ranks]),
                sum([len(step.preempted) for step in steps]),
            )
        )
        if len(recorder.mixed_buffer) > BUFFER:
            recorder.flush()
        return begin if self._lead else end

    def _rebalance(self) -> float:
        """Count a step; seconds that experts take to move before it, where it is their turn."""
        if self._interval is None:
            return 0.0
        moves = self._left == 0
        if moves:
            self._left = self._interval
            self._balanced = True
        self._left -= 1
        return self._wave.rebalance_s if moves else 0.0

    def _release(self, now: float) -> None:
        """Let the requests go whose last step has ended by ``now``, as ``release_ended`` does."""
        releasing, recorder = self.state.releasing, self.recorder
        while releasing and releasing[0][0] <= now:
            end, request = releasing.popleft()
            row = request.row
            recorder.finish[row] = end
            recorder.status[row] = FINISHED
            recorder.first_step[row] = request.first_token_step
            recorder.last_step[row] = request.last_step - request.padding
            self.ranks[request.lane].release(request)
            if self.on_finish is not None:
                self.on_finish(request, end)

    def _close_row(self) -> None:
        """Write the row of the span that ends."""
        self.state.pool.free = sum([rank.pool.free for rank in self.ranks])
        super()._close_row()


def _batch(rank: EngineState, step: Step, uneven: bool) -> Batch:  # noqa: FBT001 - hot
    """What a rank computes in a step."""
    num_decodes = rank.num_decodes - len(step.held) if step.decodes else 0
    context = windowed = longest = squares = 0
    if num_decodes:
        context, windowed = batch_sums(rank, step)
        if uneven:
            longest, squares = batch_spread(rank, step)
    sampled = num_decodes + len(step.completed)
    growing = rank.growing if num_decodes else 0
    return Batch(num_decodes, context, windowed, growing, longest, squares, step.chunks, sampled, step.extra_s)


def _advance(rank: EngineState, steps: int) -> bool:
    """Decode steps of the wave, whether or not the rank has a batch. True when a request may have ended."""
    if rank.num_decodes:
        return rank.advance(steps)
    rank.token_steps += steps
    return False


def _apply_together(
    rank: EngineState, step: Step, recorder: Recorder, end: float, last_token_time: float, *, advances: bool
) -> None:
    """``apply_step`` for a rank of a wave whose token steps advance when any rank makes a token."""
    if advances and not rank.num_decodes:
        rank.token_steps += 1
    elif advances and not step.decodes:  # its decodes sit this one out
        if step is NOTHING:
            step = Step(decodes=False)
        step.held = [r for r in rank.running if r.decoding]
        step.decodes = True
    apply_step(rank, step, recorder, end, last_token_time)
