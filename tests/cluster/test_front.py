"""A cache of answers and retrieval before the router."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from simulator.cluster.front import FrontPlan, ResponseCache
from simulator.cluster.plan import ClusterPlan, Group, RouterPlan
from simulator.cluster.simulation import Simulation
from simulator.cost.analytic import LinearCost
from simulator.metrics import summarize
from simulator.metrics.slo import Slo
from simulator.replica.records import SimulationRecords, Status
from simulator.scheduling import EngineArgs
from tests.cluster.test_many_replicas import same
from tests.scheduling.invariants import ends_once, nobody_is_left
from traces.generate import Generators, Lengths, Sessions, synthesize
from traces.generate import arrivals as arrive
from traces.generate.distributions import Exponential, Fixed
from traces.trace import Trace

ARGS = EngineArgs(max_num_seqs=8, max_num_batched_tokens=512, enable_prefix_caching=False, async_scheduling=True)
COST = LinearCost(0.005, 2e-5, 1e-4, 1e-8, 1e-9)


def evenly(n: int, gap_s: float) -> Trace:
    return Trace(np.linspace(0.0, gap_s * (n - 1), n), np.full(n, 20), np.full(n, 100))


def run(trace: Trace, front: FrontPlan | None, *, count: int = 1, **options: Any) -> SimulationRecords:
    plan = ClusterPlan((Group(ARGS, COST, 4000, count=count),), RouterPlan("least-requests"), front=front)
    built = Simulation(trace, plan, **options)
    records = built.run()
    ends_once(records, trace, drained="horizon_s" not in options)
    for replica in built.replicas:
        nobody_is_left(replica.engine.state)
    return records


def test_hits_never_reach_an_engine_and_end_after_the_search() -> None:
    trace = evenly(2000, 1.0)
    plain = run(trace, None).requests
    records = run(trace, FrontPlan(ResponseCache(0.4, lookup_s=0.02, hit_s=0.005)))
    found = records.requests
    hit = found.status == Status.CACHED
    assert hit.mean() == pytest.approx(0.4, abs=0.03)
    np.testing.assert_allclose((found.finish - found.arrival)[hit], 0.025, atol=1e-9)
    assert (found.first_token == found.finish)[hit].all()
    assert (found.replica[hit] == -1).all()
    assert np.isnan(found.scheduled[hit]).all()
    assert records.steps.prefill_tokens.sum() == 20 * (~hit).sum()
    # Nobody waits for anybody at this load, so who misses is served as before, later by the search.
    np.testing.assert_allclose((found.finish - found.arrival)[~hit], (plain.finish - plain.arrival)[~hit] + 0.02)


def test_the_summary_tells_hits_apart() -> None:
    trace = evenly(500, 1.0)
    slo = Slo(e2e_s=0.1)  # what engines serve takes longer
    summary = summarize(run(trace, FrontPlan(ResponseCache(0.5, lookup_s=0.02))), trace, slo)
    hits = summary["response_cache"]["hits"]
    assert summary["requests"]["cached"] == hits
    assert summary["requests"]["finished"] == 500 - hits
    assert summary["response_cache"]["hit_e2e_s"]["p99"] == pytest.approx(0.02)
    assert summary["slo"]["attainment"] == pytest.approx(hits / 500)
    mean = summary["response_cache"]["all_e2e_s"]["mean"]
    assert mean == pytest.approx((hits * 0.02 + (500 - hits) * summary["latency"]["e2e_s"]["mean"]) / 500)
    assert "response_cache" not in summarize(run(trace, None), trace)
    assert "cached" not in summarize(run(trace, None), trace)["requests"]


def test_retrieval_comes_before_the_queue_and_may_change_the_order() -> None:
    trace = evenly(300, 0.01)
    late = run(trace, FrontPlan(retrieval=Fixed(0.3)))
    assert (late.requests.scheduled - late.requests.arrival >= 0.3).all()
    spread = run(trace, FrontPlan(retrieval=Exponential(0.3)), seed=3)
    assert (np.diff(spread.requests.scheduled) < 0).any()
    assert (spread.requests.scheduled >= spread.requests.arrival).all()


@pytest.mark.parametrize("count", [1, 3])
def test_spans_are_steps_and_the_next_turn_waits_for_the_answer(count: int) -> None:
    trace = synthesize(
        arrivals=arrive.Poisson(5.0),
        lengths=Lengths(Fixed(30), Exponential(40.0)),
        sessions=Sessions(turns=Fixed(3), think_time_s=Exponential(0.2)),
        num_requests=90,
        generators=Generators.of(3),
    )
    front = FrontPlan(ResponseCache(0.3, 0.01), Exponential(0.05))
    a, b = (run(trace, front, count=count, step_mode=mode, seed=5) for mode in (False, True))
    same(a, b)
    assert (a.requests.status == Status.CACHED).any()
    assert trace.session is not None
    assert trace.turn is not None
    for session in np.unique(trace.session):
        rows = np.flatnonzero(trace.session == session)
        rows = rows[np.argsort(trace.turn[rows], kind="stable")]
        assert (a.requests.arrival[rows[1:]] >= a.requests.finish[rows[:-1]]).all()


def test_users_of_a_closed_loop_go_on_after_a_hit() -> None:
    records = run(evenly(200, 1.0), FrontPlan(ResponseCache(0.9, 0.01)), closed_loop_users=4)
    assert (records.requests.status == Status.CACHED).sum() > 150


def test_who_is_at_the_door_at_the_horizon_is_in_flight() -> None:
    records = run(evenly(20, 1.0), FrontPlan(ResponseCache(1.0, lookup_s=5.0)), horizon_s=10.5)
    assert (records.requests.status == Status.CACHED).sum() == 6
    assert (records.requests.status == Status.IN_FLIGHT).sum() == 14
