"""Requests that change replicas while replicas come and go: nothing is lost, whoever dies when."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.cluster.elastic import FaultPlan, GroupLife, LifePlan, ScalingPlan
from simulator.cluster.simulation import Simulation
from simulator.replica.records import SimulationRecords
from simulator.routing import ROUTERS
from tests.cluster.test_life import check
from tests.cluster.test_many_replicas import ARGS, same, trace
from tests.cluster.test_migration import migrating
from tests.scheduling.invariants import check_pool
from traces.trace import Trace


def faults_of(
    mtbf: float | None, spot: float | None, recovery: str, *, detection_s: float = 0.2
) -> tuple[FaultPlan, ...]:
    found = []
    if mtbf is not None:
        options = {"mtbf_s": mtbf, "mttr_s": 0.4}
        found.append(FaultPlan("failures", options, detection_s, recovery=recovery, max_attempts=6))  # type: ignore[arg-type]
    if spot is not None:
        options = {"mean_life_s": spot, "mean_away_s": 0.5, "warning_s": 0.3}
        found.append(FaultPlan("spot", options, recovery=recovery, max_attempts=6))  # type: ignore[arg-type]
    return tuple(found)


def scaling_of(policy: str | None, drain: str) -> ScalingPlan | None:
    if policy is None:
        return None
    own = {} if policy == "predictive" else {"stabilization_down_s": 0.5, "cooldown_s": 0.5, "average_s": 0.5}
    if policy == "freeness":
        own = {"average_s": 0.5}
    return ScalingPlan(policy, own, 0.25, drain=drain, drain_timeout_s=0.5)  # type: ignore[arg-type]


def hold(built: Simulation, requests: Trace) -> SimulationRecords:
    """Run, and hold what must hold: invariants 1, 2, 3 and 7."""
    records = built.run()
    check(records, requests, built)
    for replica in built.replicas:
        state = replica.engine.state
        assert not state.kept
        check_pool(state.pool)
    transfers = records.transfers
    assert transfers is not None
    assert (transfers.end >= transfers.start).all()
    sent = np.array([kind != "rescue" for kind in transfers.kind], dtype=bool)
    for way in ("out", "in"):
        carried = sum(b for name, b in records.link_bytes.items() if name[:7] == "replica" and name.endswith(way))
        assert carried == pytest.approx(transfers.num_bytes[sent].sum(), rel=1e-9, abs=1.0)
    return records


def alike(one: SimulationRecords, other: SimulationRecords) -> None:
    same(one, other)
    assert one.replicas == other.replicas
    assert one.attempts == other.attempts
    assert one.tokens_recomputed == other.tokens_recomputed
    for name in ("request", "source", "target", "num_bytes", "start", "end"):
        np.testing.assert_array_equal(getattr(one.transfers, name), getattr(other.transfers, name), err_msg=name)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    initial=st.integers(1, 4),
    cold=st.sampled_from([0.0, 0.3]),
    mtbf=st.sampled_from([None, 0.3, 2.0]),
    spot=st.sampled_from([None, 0.5, 3.0]),
    recovery=st.sampled_from(["finish", "recompute", "migrate"]),
    policy=st.sampled_from([None, "queue", "freeness"]),
    router=st.sampled_from(ROUTERS.names()),
    users=st.sampled_from([None, None, 9]),
    stages=st.sampled_from([1, 1, 2]),
    blocks=st.sampled_from([60, 90, 200]),
    bandwidth=st.sampled_from([1e8, 1e9, 5e10]),
    below=st.sampled_from([30.0, 1e6]),
)
def test_migrating_requests_survive_whatever_fails(
    seed: int, initial: int, cold: float, mtbf: float | None, spot: float | None, recovery: str, policy: str | None,
    router: str, users: int | None, stages: int, blocks: int, bandwidth: float, below: float,
) -> None:  # fmt: skip
    requests = trace(60, 100.0, seed=seed)
    args = replace(ARGS, pipeline_parallel_size=stages, async_scheduling=bool(seed % 2))
    bounds = {"out_below_tokens": below, "in_above_tokens": below}
    plan = migrating(4, blocks=blocks, bandwidth=bandwidth, router=router, args=args, **bounds)
    life = LifePlan(
        (GroupLife(1, 4, initial, cold),), scaling_of(policy, recovery), faults_of(mtbf, spot, recovery), 5.0
    )
    plan = replace(plan, life=life)
    runs = [
        hold(Simulation(requests, plan, closed_loop_users=users, step_mode=mode, seed=seed), requests)
        for mode in (False, True)
    ]
    alike(*runs)
