"""What must hold after every simulation of one replica, whatever the policy (docs: invariants 1 to 5)."""

from __future__ import annotations

import numpy as np

from simulator.kv.pool import BlockPool
from simulator.kv.prefix import PrefixCache, Run
from simulator.metrics import analyse
from simulator.metrics.token_times import tokens_made
from simulator.replica.records import SimulationRecords, Status
from simulator.scheduling import EngineState
from traces.trace import Trace

CLOSE = 1e-9  # s: a span's steps are summed in closed form


def check(records: SimulationRecords, trace: Trace, state: EngineState, *, drained: bool = True) -> None:
    """drained: the simulation ran until every request had ended; else it stopped at a horizon."""
    ends_once(records, trace, drained=drained)
    clock_never_runs_back(records)
    check_pool(state.pool)
    if drained:
        nobody_is_left(state)
        every_token_is_made_once(records)
        computed_is_owed(records, state)
        never_idle_with_work(records)


def ends_once(records: SimulationRecords, trace: Trace, *, drained: bool) -> None:
    """Invariant 1."""
    requests = records.requests
    assert len(requests.status) == len(trace)
    answered = np.isin(requests.status, [Status.FINISHED, Status.CACHED])
    ended = answered | (requests.status == Status.REJECTED)
    if drained:
        assert ended.all()
    assert (np.isfinite(requests.finish) == answered).all()
    assert (requests.replica[np.isin(requests.status, [Status.REJECTED, Status.CACHED])] == -1).all()


def clock_never_runs_back(records: SimulationRecords) -> None:
    """Invariant 3."""
    requests, steps = records.requests, records.steps
    for earlier, later in (("arrival", "scheduled"), ("scheduled", "first_token"), ("first_token", "finish")):
        before, after = getattr(requests, earlier), getattr(requests, later)
        there = np.isfinite(after)
        assert (before[there] <= after[there]).all(), (earlier, later)
    ends = span_ends(records)
    assert (steps.num_steps >= 1).all()
    assert (steps.num_decodes + steps.num_prefills <= steps.num_running).all()
    assert (steps.step > 0).all()
    next_here = steps.replica[1:] == steps.replica[:-1]  # rows of a replica are together
    assert (steps.start[1:] >= ends[:-1] - CLOSE)[next_here].all()  # ordered, and they do not overlap
    assert (np.diff(steps.replica) >= 0).all()


def span_ends(records: SimulationRecords) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    steps = records.steps
    n = steps.num_steps
    return np.asarray(steps.start + n * steps.step + steps.increment * n * (n - 1) / 2)


def check_pool(pool: BlockPool) -> None:
    """Invariant 2: free and cached blocks add up, and the prefix cache agrees with itself."""
    assert 0 <= pool.cached <= pool.free <= pool.num_blocks
    if not isinstance(pool, PrefixCache):
        return
    check_cache(pool)


def check_cache(pool: PrefixCache) -> None:
    """What the prefix cache keeps agrees with itself."""
    free: list[Run] = []  # in the order of their eviction
    run = pool._order.next
    while run is not None and run is not pool._order:
        assert run.next is not None
        assert run.next.previous is run
        assert run.lo < run.hi
        assert not run.refs  # a held run is not up for eviction
        free.append(run)
        run = run.next
    assert all(run.before >= 0 for run in [*free, pool._order])
    waiting = pool._order.before + sum(run.before + run.hi - run.lo for run in free)
    assert waiting == pool.cached + pool._owed
    found = listed_runs(pool)
    assert len({id(run) for run in found}) == len(found)
    assert {id(run) for run in free if len(run.ids)} == {id(run) for run in found if not run.refs}
    blocks: dict[int, int] = {}  # block -> where the runs that hold it begin
    for run in found:
        assert run.lo < run.hi <= len(run.ids) * pool.unit
        for position in range(run.lo, run.hi):
            assert blocks.setdefault(pool._name(run.ids, position), run.lo) == run.lo  # all instances begin together


def listed_runs(pool: PrefixCache) -> list[Run]:
    """All runs that somebody can hit."""
    found: list[Run] = []
    for name, first in pool._starts.items():
        twins = first.twins or [first]
        assert twins[0] is first
        for run in twins:
            assert pool._name(run.ids, run.lo) == name
            assert (run.twins or [run]) == twins
        found += twins
    return found


def held_ids(pool: PrefixCache) -> set[int]:
    """The ids that somebody can hit, now."""
    pool.settle()
    return {run.ids[i] for run in listed_runs(pool) for i in range(run.lo // pool.unit, -(-run.hi // pool.unit))}


def nobody_is_left(state: EngineState) -> None:
    """Invariant 2, drained: every block is free and nobody waits, runs or is swapped out."""
    assert state.pool.free == state.pool.num_blocks
    assert not (len(state.waiting) or state.running or state.prefilling or state.releasing or state.swapped)
    assert state.num_decodes == state.computed_sum == state.growing == state.windowed_sum == sum(state.phase) == 0
    assert min(state.phase) == 0


def every_token_is_made_once(records: SimulationRecords) -> None:
    """Token ranges hold each request's output, no more and no less."""
    requests = records.requests
    found = analyse(records)
    served = requests.status == Status.FINISHED
    made = tokens_made(found.ranges, len(requests.arrival))
    np.testing.assert_array_equal(made[served], requests.output_tokens[served])
    last = np.zeros(len(made))
    np.maximum.at(last, found.ranges.request, found.ranges.end_time)
    assert (last[served] <= requests.finish[served] + CLOSE).all()


def computed_is_owed(records: SimulationRecords, state: EngineState) -> None:
    """Invariant 4. A request preempted within a prompt may hit, when it comes back, what others computed meanwhile:
    with prefix caching and preemptions less may be computed than was owed, never more."""
    requests, steps = records.requests, records.steps
    served = requests.status == Status.FINISHED
    computed = int((steps.num_decodes * steps.num_steps).sum() + steps.prefill_tokens.sum())
    owed = int((requests.prompt_tokens + requests.output_tokens - 1 - requests.cached_tokens)[served].sum())
    owed += records.tokens_recomputed + state.tokens_padded
    if state.caching and requests.preemptions.any():
        assert computed <= owed
    else:
        assert computed == owed


def never_idle_with_work(records: SimulationRecords) -> None:
    """Invariant 5: where the engine pauses, everybody who had arrived has finished."""
    requests, steps = records.requests, records.steps
    ends = span_ends(records)
    served = requests.status == Status.FINISHED
    for end, start in zip(ends[:-1], steps.start[1:], strict=True):
        if start > end + CLOSE:
            here = served & (requests.arrival < start)
            assert (requests.finish[here] <= end + CLOSE).all()
    if len(steps.start):
        assert steps.start[0] <= requests.arrival[served].min() + CLOSE
