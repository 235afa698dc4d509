"""Instances that lend each other KV memory (Infinite-LLM): one pool of blocks, a queue and a batch for each of them.

Blocks are taken wherever there are some. What an instance holds beyond its own memory lies on the others, in proportion
to the room they have; attention over it is computed there: queries go out and partial results come back, layer by layer
(DistAttention). The debtor's step lasts as long as its own part, or the largest part elsewhere where that is longer,
and the exchange on top; a creditor's next step lasts as much longer as it computes for others. Who has nothing to do
computes for others for nothing.

Replicas with events of their own alone: the pool is everybody's, so steps are planned one by one as they come.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, nextafter

from simulator.cost.interface import Line
from simulator.cost.remote_attention import RemoteAttention
from simulator.kv.pool import BlockPool
from simulator.replica.engine import Engine, Observer
from simulator.replica.recorder import Recorder
from simulator.replica.steps import OnFinish, release_ended
from simulator.scheduling.policy import Policy
from simulator.scheduling.state import EngineState
from simulator.scheduling.step import DECODE


class Loans:
    """What the instances of a group have of each other's memory. Tokens are of KV."""

    def __init__(self, num_blocks: int, block_size: int, instances: int) -> None:
        """num_blocks: of one instance."""
        self.pool = BlockPool(num_blocks * instances, block_size)
        self.capacity = num_blocks * block_size
        self.engines: list[LendingEngine] = []

    def parts(self, debtor: LendingEngine, tokens: float) -> list[tuple[LendingEngine, float]]:
        """Where ``tokens`` of the debtor's KV lie: on others by their room; on nobody where there is none."""
        rooms = [(e, max(self.capacity - e.held(), 0.0)) for e in self.engines if e is not debtor]
        total = sum(room for _, room in rooms)
        return [(e, tokens * room / total) for e, room in rooms if room > 0.0] if total > 0.0 else []

    def next_wake(self, now: float) -> float:
        """Just after the next of those that do not wait themselves has acted, when blocks may have come back, s; inf:
        all wait."""
        soonest = min((e.wake_time for e in self.engines if not e.waits and e.wake_time >= now), default=inf)
        return soonest if soonest == inf else nextafter(soonest, inf)


class LendingCost:
    """``StepCost`` of one instance: what it computes itself and for others, and what it waits for."""

    sliding_window: int | None = None

    def __init__(self, attention: RemoteAttention, loans: Loans) -> None:
        self._attention, self._loans = attention, loans
        self.engine: LendingEngine | None = None

    def decode(self, num_decodes: int, context: int, windowed: int, growing: int) -> Line:
        """One step: the next one depends on the others."""
        del windowed, growing
        return Line(self._seconds(num_decodes, context, (), num_decodes), 0.0, 1)

    def mixed(
        self, num_decodes: int, context: int, windowed: int, chunks: Sequence[tuple[int, int]], num_sampled: int
    ) -> float:
        del windowed
        return self._seconds(num_decodes, context, chunks, num_sampled)

    def _seconds(
        self, num_decodes: int, context: int, chunks: Sequence[tuple[int, int]], num_sampled: int
    ) -> float:  # fmt: skip
        engine, loans, attention = self.engine, self._loans, self._attention
        assert engine is not None
        for_others = engine.owed_s
        engine.owed_s = 0.0
        held = engine.held()
        if held <= loans.capacity:
            return for_others + attention.cost.mixed(num_decodes, context, 0, chunks, num_sampled)
        own = loans.capacity / held  # as of all its requests: where the KV of one of them lies is not kept
        seconds = attention.cost.mixed(
            num_decodes, int(context * own), 0, [(new, int(old * own)) for new, old in chunks], num_sampled
        )
        mine = attention.seconds(num_decodes, context, chunks, own)
        longest = 0.0
        for creditor, tokens in loans.parts(engine, held - loans.capacity):
            work = attention.seconds(num_decodes, context, chunks, tokens / held)
            longest = max(longest, work)
            if creditor.wake_time < inf:
                creditor.owed_s += work
        queries = num_decodes + sum(new for new, _ in chunks)
        return for_others + seconds + max(longest - mine, 0.0) + attention.exchange_s(queries)


class LendingEngine(Engine):
    """Same calls as ``Engine``, for watched replicas alone."""

    __slots__ = ("_ahead", "_loans", "owed_s", "waits")

    def __init__(
        self,
        state: EngineState,
        policy: Policy,
        attention: RemoteAttention,
        recorder: Recorder,
        *,
        loans: Loans,
        on_finish: OnFinish | None = None,
        observer: Observer | None = None,
    ) -> None:
        cost = LendingCost(attention, loans)
        super().__init__(state, policy, cost, recorder, step_mode=True, on_finish=on_finish, observer=observer)
        cost.engine = self
        self._lead = 0  # what the others leave is known when the step begins
        self._loans = loans
        self._ahead = 0  # blocks taken for the step in flight
        self.waits = False  # for blocks of others
        self.owed_s = 0.0  # s of attention for others, to be computed in the next step
        loans.engines.append(self)

    def held(self) -> float:
        """Tokens of KV of this instance's requests, wherever they lie."""
        state = self.state
        return state.computed_sum + state.num_decodes + sum([r.computed for r in state.prefilling])

    def run_until(self, time: float) -> None:
        """Do what is to be done at ``wake_time``, if that is before ``time``; call again for what comes after."""
        now = self.wake_time
        if now >= time:
            return
        state = self.state
        if self._pending:
            state.pool.give_back(self._ahead)
            self._ahead = 0
            self._apply()
        release_ended(state, self.recorder, now, self.on_finish)
        if self._actions:
            self._actions[:] = [action for action in self._actions[:] if not action(now)]
        if self.observer is not None:
            self.observer.settled(now, state)
        state.now = now
        step = self.policy.schedule(state)
        self.waits = step is None and bool(len(state.waiting) or state.prefilling)
        if self.observer is not None and step is not None and (step.decodes or step.chunks):
            self.observer.planned(now, now, step, state)
        if step is DECODE:
            if now > self.busy_until:
                self._version = -1
            self.wake_time = self._span(now)
            self._ahead = state.blocks_next
            state.pool.take(self._ahead)
        elif step is not None:
            self.wake_time = self._mixed(step, now, now)
        else:
            self._version = -1
            self.wake_time = self._loans.next_wake(now) if self.waits else inf
