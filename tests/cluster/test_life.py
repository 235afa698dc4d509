"""Replicas that come and go: nothing is lost between them, whatever fails when."""

from __future__ import annotations

from dataclasses import replace
from math import inf, isfinite

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.cluster.elastic import FaultPlan, GroupLife, LifePlan, ScalingPlan
from simulator.cluster.plan import ClusterPlan, Group, RouterPlan
from simulator.cluster.simulation import Simulation
from simulator.cluster.transfers import KvBytes
from simulator.metrics import analyse
from simulator.metrics.token_times import tokens_made
from simulator.replica.records import SimulationRecords, Status
from tests.cluster.test_many_replicas import ARGS, LINEAR, same, trace
from tests.scheduling.invariants import clock_never_runs_back, nobody_is_left
from traces.trace import Trace


def plan(
    life: GroupLife,
    *,
    scaling: ScalingPlan | None = None,
    faults: tuple[FaultPlan, ...] = (),
    router: str = "least-requests",
    stages: int = 1,
    blocks: int = 400,
    timeout_s: float = 600.0,
) -> ClusterPlan:
    args = replace(ARGS, pipeline_parallel_size=stages)
    group = Group(args, LINEAR, blocks, count=life.initial, kv=KvBytes(1e5))
    return ClusterPlan((group,), RouterPlan(router), life=LifePlan((life,), scaling, faults, timeout_s))


def check(records: SimulationRecords, requests: Trace, built: Simulation) -> None:
    """Invariants 1 to 3 with replicas that come and go, and that lives do not overlap in a place."""
    status = records.requests.status
    assert np.isin(status, [Status.FINISHED, Status.REJECTED, Status.FAILED]).all()
    assert (np.isfinite(records.requests.finish) == (status == Status.FINISHED)).all()
    clock_never_runs_back(records)
    for replica in built.replicas:
        nobody_is_left(replica.engine.state)
    made = tokens_made(analyse(records).ranges, len(requests))
    finished = status == Status.FINISHED
    np.testing.assert_array_equal(made[finished], requests.output_tokens[finished])
    assert (made <= requests.output_tokens).all()
    assert len(records.replicas) == len(built.replicas)
    for index, life in enumerate(records.replicas):
        assert life.started <= life.stopped
        mine = records.steps.replica == index
        if mine.any():
            assert records.steps.start[mine].min() >= life.ready
            assert records.steps.start[mine].max() <= life.stopped
    assert (built.around.fleet.in_flight == 0).all()
    assert (built.around.fleet.in_flight_tokens == 0).all()


def most_at_once(records: SimulationRecords) -> int:
    edges = [(life.started, 1) for life in records.replicas]
    edges += [(life.stopped, -1) for life in records.replicas if isfinite(life.stopped)]
    now = most = 0
    for _, change in sorted(edges):
        now += change
        most = max(most, now)
    return most


def test_a_group_that_never_changes_is_what_it_would_be_without_a_life() -> None:
    requests = trace(200, 60.0)
    static = Simulation(requests, ClusterPlan((Group(ARGS, LINEAR, 400, count=3),), RouterPlan("least-requests"))).run()
    living = Simulation(requests, plan(GroupLife(3, 3, 3))).run()
    same(static, living)
    assert [life.stopped for life in living.replicas] == [inf] * 3


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    initial=st.integers(0, 3),
    least=st.integers(0, 1),
    cold=st.sampled_from([0.0, 0.3, 2.0]),
    mtbf=st.sampled_from([None, 0.3, 2.0]),
    spot=st.sampled_from([None, 0.5, 3.0]),
    recovery=st.sampled_from(["finish", "recompute", "migrate"]),
    policy=st.sampled_from([None, "queue", "utilization", "kv-usage", "predictive"]),
    router=st.sampled_from(["least-requests", "round-robin", "prefix-aware"]),
    users=st.sampled_from([None, None, 9]),
    stages=st.sampled_from([1, 1, 2]),
    blocks=st.sampled_from([90, 400]),
    network=st.sampled_from([1e9, 1e8]),
)
def test_every_request_ends_once_whatever_fails_when(
    seed: int, initial: int, least: int, cold: float, mtbf: float | None, spot: float | None, recovery: str,
    policy: str | None, router: str, users: int | None, stages: int, blocks: int, network: float,
) -> None:  # fmt: skip
    requests = trace(60, 60.0, seed=seed)
    faults = []
    if mtbf is not None:
        options = {"mtbf_s": mtbf, "mttr_s": 0.4}
        faults.append(FaultPlan("failures", options, detection_s=0.2, recovery=recovery, max_attempts=6))  # type: ignore[arg-type]
    if spot is not None:
        options = {"mean_life_s": spot, "mean_away_s": 0.5, "warning_s": 0.3}
        faults.append(FaultPlan("spot", options, recovery=recovery, max_attempts=6))  # type: ignore[arg-type]
    scaling = None
    if policy is not None:
        quick = {} if policy == "predictive" else {"stabilization_down_s": 0.5, "cooldown_s": 0.5, "average_s": 0.5}
        scaling = ScalingPlan(policy, quick, 0.25, drain=recovery, drain_timeout_s=0.5)  # type: ignore[arg-type]
    life = GroupLife(least, 4, initial, cold, network_bytes_per_s=network)
    cluster = plan(
        life, scaling=scaling, faults=tuple(faults), router=router, stages=stages, blocks=blocks, timeout_s=5.0
    )
    runs = []
    for step_mode in (False, True):
        built = Simulation(requests, cluster, closed_loop_users=users, step_mode=step_mode, seed=seed)
        records = built.run()
        check(records, requests, built)
        assert most_at_once(records) <= 4
        runs.append(records)
    same(*runs)
    assert runs[0].replicas == runs[1].replicas
    assert runs[0].attempts == runs[1].attempts
