"""Requests that move while they decode: nothing is lost, the way is paid for, and memory evens out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.cluster.migration import Migration
from simulator.cluster.plan import ClusterPlan, Group, MigrationPlan, RouterPlan
from simulator.cluster.simulation import Simulation
from simulator.cluster.transfers import KvBytes
from simulator.core.errors import ScenarioError
from simulator.hardware.gpu import gpu
from simulator.hardware.topology import Fabric, Slot, Topology
from simulator.metrics import analyse
from simulator.metrics.token_times import tokens_made
from simulator.replica.records import SimulationRecords, Status
from tests.cluster.test_disaggregation import computed_is_owed_together
from tests.cluster.test_many_replicas import ARGS, LINEAR, same, trace
from tests.scheduling.invariants import check_pool, clock_never_runs_back, ends_once, nobody_is_left
from traces.trace import Trace

KV = KvBytes(per_token=131072.0, layers=32)


def migrating(
    count: int,
    *,
    blocks: int = 90,
    bandwidth: float = 8e9,
    args: object = ARGS,
    router: str = "round-robin",
    **plan: object,
) -> ClusterPlan:
    group = Group(args, LINEAR, blocks, count=count, kv=KV)  # type: ignore[arg-type]
    card = replace(gpu("H100"), gpus_per_node=1)
    topology = Topology([Slot(card) for _ in range(count)], Fabric(efficiency=1.0, node_bandwidth=bandwidth))
    moves = MigrationPlan(**{"interval_s": 0.1, **plan})  # type: ignore[arg-type]
    return ClusterPlan((group,), RouterPlan(router), migration=moves, topology=topology)


def checked(built: Simulation, requests: Trace) -> SimulationRecords:
    records = built.run()
    ends_once(records, requests, drained=True)
    clock_never_runs_back(records)
    for replica in built.replicas:
        nobody_is_left(replica.engine.state)
        check_pool(replica.engine.state.pool)
    made = tokens_made(analyse(records).ranges, len(requests))
    finished = records.requests.status == Status.FINISHED
    np.testing.assert_array_equal(made[finished], requests.output_tokens[finished])
    computed_is_owed_together(records, built)
    assert built.around.fleet.in_flight.sum() == 0
    assert records.transfers is not None
    out = sum(b for name, b in records.link_bytes.items() if name.endswith("nic out"))
    assert out == pytest.approx(records.transfers.num_bytes.sum(), rel=1e-9)
    return records


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(2, 4),
    blocks=st.sampled_from([60, 90, 200]),
    bandwidth=st.sampled_from([1e8, 1e9, 5e10]),
    router=st.sampled_from(["round-robin", "least-requests"]),
    stages=st.sampled_from([1, 1, 2]),
    below=st.sampled_from([30.0, 1e6]),
    users=st.sampled_from([None, None, 9]),
)
def test_nothing_is_lost_and_spans_are_steps(
    seed: int, count: int, blocks: int, bandwidth: float, router: str, stages: int, below: float, users: int | None
) -> None:
    requests = trace(60, 120.0, seed=seed)
    args = replace(ARGS, pipeline_parallel_size=stages, async_scheduling=bool(seed % 2))
    plan = migrating(
        count,
        blocks=blocks,
        bandwidth=bandwidth,
        router=router,
        args=args,
        out_below_tokens=below,
        in_above_tokens=below,
    )
    runs = [
        checked(Simulation(requests, plan, step_mode=mode, closed_loop_users=users), requests) for mode in (False, True)
    ]
    same(*runs)


SYNC = replace(ARGS, async_scheduling=False, enable_prefix_caching=False)


def test_only_the_last_stage_stops_the_request() -> None:
    """One request of 1,600 prompt tokens decodes alone; at 0.1 s it moves over 8 GB/s (16.4 us a token). Its 1,613 or so
    tokens take 26.4 ms, in which it makes four or five more; those take 0.08 ms, and it is back in the next batch."""
    requests = Trace(np.zeros(1), np.array([1600]), np.array([100]))
    args = replace(SYNC, max_num_batched_tokens=2048)
    plan = migrating(2, blocks=200, args=args, out_below_tokens=1e9, in_above_tokens=1e9)
    built = Simulation(requests, plan)
    records = checked(built, requests)
    moves, transfers = built.moves, records.transfers
    assert isinstance(moves, Migration)
    assert transfers is not None
    assert moves.moved >= 1
    assert transfers.kind[0] == "migration"
    first, last = transfers.num_bytes[:2] / 131072
    assert 1600 < first < 1620
    assert 1 <= last <= 16
    assert transfers.end[0] - transfers.start[0] == pytest.approx(first * 131072 / 8e9 + 10e-6)
    ranges = records.requests.extra_ranges
    assert len(ranges) == moves.moved
    still = analyse(records)
    gaps = still.ranges.start[1] - still.ranges.end_time[0]
    assert gaps == 0.0  # it goes on from the token it had
    step = 0.005 + 1e-4 + 1e-8 * 1650
    longest = max(pause(records))
    assert step < longest < 2 * step + last * 131072 / 8e9 + 20e-6


def pause(records: SimulationRecords) -> list[float]:
    """Gaps between the first token after a move and the last one before, s."""
    found = analyse(records)
    ends = found.clock.ends
    return [
        ends[b] - s for b, e, s in zip(found.ranges.begin, found.ranges.end, found.ranges.start, strict=True) if e > b
    ]


def test_memory_evens_out_and_fewer_requests_are_preempted() -> None:
    """Every third request is long: round robin piles them all on one replica of three."""
    n = 90
    requests = Trace(np.arange(n) / 30.0, np.full(n, 100), np.where(np.arange(n) % 3 == 0, 400, 10))
    args = replace(SYNC, max_num_seqs=64)
    plan = migrating(3, blocks=150, args=args, bandwidth=5e10, interval_s=0.05)
    moved = checked(Simulation(requests, plan), requests)
    still = Simulation(requests, replace(plan, migration=None, topology=None)).run()
    assert moved.requests.preemptions.sum() < 0.5 * still.requests.preemptions.sum()
    assert np.percentile(moved.requests.finish - requests.arrival, 90) < np.percentile(
        still.requests.finish - requests.arrival, 90
    )


def test_replicas_with_room_leave_each_other_alone() -> None:
    requests = trace(60, 20.0)
    built = Simulation(requests, migrating(3, blocks=3000))
    records = checked(built, requests)
    assert records.transfers is not None
    assert not len(records.transfers.start)
    plain = Simulation(requests, replace(migrating(3, blocks=3000), migration=None, topology=None)).run()
    same(records, plain)


def test_what_cannot_migrate_is_refused() -> None:
    with pytest.raises(ScenarioError, match="two replicas"):
        Simulation(trace(5), migrating(1))
    with pytest.raises(ScenarioError, match="would be both"):
        Simulation(trace(5), migrating(2, out_below_tokens=300.0))
