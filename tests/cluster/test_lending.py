"""Replicas that lend each other KV memory."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simulator.cluster.plan import ClusterPlan, Group, RouterPlan
from simulator.cluster.simulation import Simulation
from simulator.cost.calibrated import cost_model
from simulator.cost.placement import Deployment
from simulator.cost.remote_attention import RemoteAttention
from simulator.hardware.gpu import gpu
from simulator.model.catalogue import model
from simulator.replica.lending import LendingEngine
from simulator.replica.records import Status
from simulator.scheduling import EngineArgs
from tests.scheduling.invariants import check_pool, clock_never_runs_back, every_token_is_made_once
from tests.scheduling.test_span_is_step import same_requests, traces
from traces.trace import Trace

COST = cost_model(model("Qwen/Qwen2.5-0.5B"), gpu("L4"), None, Deployment())


def cluster(blocks: int, *, count: int = 3, lends: bool = True, **args: object) -> ClusterPlan:
    given_args = {"max_num_seqs": 4, "max_num_batched_tokens": 64, "block_size": 4}
    given_args |= {"enable_prefix_caching": False, "async_scheduling": False}
    group = Group(EngineArgs(**(given_args | args)), COST, blocks + 1, count=count, lends=lends)  # type: ignore[arg-type]
    return ClusterPlan((group,), RouterPlan("least-requests"))


def test_a_request_may_fill_more_than_one_memory() -> None:
    """120 tokens of prompt on replicas that hold 64 each: alone none of them serves it."""
    trace = Trace(np.zeros(1), np.array([120]), np.array([21]))
    alone = Simulation(trace, cluster(16, lends=False)).run()
    assert alone.requests.status[0] == Status.REJECTED
    run = Simulation(trace, cluster(16))
    records = run.run()
    assert records.requests.status[0] == Status.FINISHED
    assert cluster(16).groups[0].longest_request == 3 * 64 + 1
    assert records.steps.free_blocks.min() == 48 - 35  # 140 tokens


def test_what_is_borrowed_costs_the_exchange_and_what_is_lent_its_attention() -> None:
    """Against the same request on a replica that is large enough, and with somebody else's step at the creditor."""
    trace = Trace(np.zeros(1), np.array([120]), np.array([21]))
    far = Simulation(trace, cluster(16)).run().requests.finish[0]
    near = Simulation(trace, cluster(48, count=1)).run().requests.finish[0]
    attention = RemoteAttention(COST, 3)
    exchange = attention.exchange_s(1)
    assert near + 18 * exchange < far < near + 40 * exchange  # prefill steps of up to 64 queries, 20 decodes
    assert exchange == pytest.approx(24 * 2 * COST.operators.send(0.0, COST.gpu.link).seconds, rel=0.05)
    whole, half = (attention.seconds(1, 1000, [(10, 1000)], share) for share in (1.0, 0.5))
    assert 0 < half < whole


def test_where_nobody_runs_short_nothing_is_borrowed() -> None:
    """Step by step the same as replicas of their own."""
    rng = np.random.default_rng(2)
    trace = Trace(np.cumsum(rng.exponential(0.02, 60)), rng.integers(1, 40, 60), rng.integers(1, 30, 60))
    lending, alone = (Simulation(trace, cluster(400, lends=on)).run() for on in (True, False))
    np.testing.assert_allclose(lending.requests.finish, alone.requests.finish)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_nothing_is_lost(data: st.DataObject) -> None:
    trace = replace(data.draw(traces(4)), prefix=None)
    plan = cluster(
        data.draw(st.integers(10, 40)), count=data.draw(st.integers(1, 4)), max_num_seqs=data.draw(st.integers(1, 6))
    )
    runs = [Simulation(trace, plan, step_mode=mode) for mode in (False, True)]
    spans, steps = (run.run() for run in runs)
    same_requests(spans, steps)
    clock_never_runs_back(spans)
    every_token_is_made_once(spans)
    engines = [replica.engine for replica in runs[0].replicas]
    assert np.isin(spans.requests.status, [Status.FINISHED, Status.REJECTED]).all()
    for engine in engines:
        assert isinstance(engine, LendingEngine)
        assert not (engine.state.running or len(engine.state.waiting))
    check_pool(engines[0].state.pool)
    assert engines[0].state.pool.free == plan.groups[0].kv_blocks
