"""Replicas that come and go: nothing is lost between them, whatever fails when."""

from __future__ import annotations

from dataclasses import replace
from math import inf, isfinite
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from simulator.cluster.elastic import FaultPlan, GroupLife, LifePlan, ScalingPlan
from simulator.cluster.plan import ClusterPlan, Group, RouterPlan
from simulator.cluster.simulation import Simulation
from simulator.cluster.transfers import KvBytes
from simulator.core.errors import PolicyError, ScenarioError
from simulator.faults import Faults, Loss
from simulator.faults import Surroundings as FaultSurroundings
from simulator.metrics import analyse
from simulator.metrics.token_times import tokens_made
from simulator.replica.records import SimulationRecords, Status
from simulator.routing import ROUTERS
from simulator.scaling import Scaler, View
from simulator.scheduling import EngineArgs, resolve
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


@example(
    seed=360175, initial=2, least=0, cold=0.0, mtbf=0.3, spot=0.5, recovery="recompute", policy=None,
    router="max-min", users=None, stages=1, blocks=90, network=1e9,
)  # fmt: skip
@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    initial=st.integers(0, 3),
    least=st.integers(0, 1),
    cold=st.sampled_from([0.0, 0.3, 2.0]),
    mtbf=st.sampled_from([None, 0.3, 2.0]),
    spot=st.sampled_from([None, 0.5, 3.0]),
    recovery=st.sampled_from(["finish", "recompute", "migrate"]),
    policy=st.sampled_from([None, "queue", "utilization", "kv-usage", "predictive"]),
    router=st.sampled_from(ROUTERS.names()),
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


@pytest.mark.parametrize(
    ("policy", "options"),
    [
        ("srpt", {"predictor": "log-normal"}),
        ("ltr", {"starvation_steps": 9}),
        ("vllm-v0", {"preemption": "swap", "kv_bytes_per_token": 1 << 17}),
    ],
)
def test_who_gave_way_on_a_replica_that_fails_keeps_the_tokens_it_has_sent(
    policy: str, options: dict[str, object]
) -> None:
    """The first one too, where that is all it has made."""
    fault = FaultPlan("failures", {"mtbf_s": 0.4, "mttr_s": 0.3}, detection_s=0.1, max_attempts=9)
    args = resolve(
        EngineArgs(policy=policy, options=options, max_num_seqs=4, max_num_batched_tokens=512, max_model_len=600)
    )
    cluster = plan(GroupLife(1, 2, 1), faults=(fault,))
    cluster = replace(cluster, groups=(replace(cluster.groups[0], args=args, num_gpu_blocks=70),))
    for seed in range(12):
        requests = trace(40, 60.0, seed=seed)
        runs = []
        for step_mode in (False, True):
            built = Simulation(requests, cluster, step_mode=step_mode, seed=seed)
            runs.append(built.run())
            check(runs[-1], requests, built)
        same(*runs)


def steady(n: int = 200, rate: float = 10.0, *, prompt: int = 64, output: int = 20) -> Trace:
    return Trace(np.arange(n) / rate, np.full(n, prompt), np.full(n, output))


def of_kind(records: SimulationRecords, kind: str) -> list[float]:
    return [event.time for event in records.events if event.kind == kind]


def test_a_cold_start_takes_its_time_and_is_paid_from_its_start() -> None:
    scaling = ScalingPlan("scheduled", {"hours": "0:3"}, 5.0)
    records = Simulation(steady(), plan(GroupLife(1, 3, 1, 7.5), scaling=scaling, router="round-robin")).run()
    assert [(life.started, life.ready) for life in records.replicas] == [(0.0, 0.0), (5.0, 12.5), (5.0, 12.5)]
    served = records.requests.replica
    assert (served[records.requests.arrival < 12.5] == 0).all()
    assert set(served[records.requests.arrival > 13].tolist()) == {0, 1, 2}


def test_a_node_that_keeps_the_weights_is_taken_first_and_starts_sooner() -> None:
    """2 replicas, then 1, then 3: the place that was left starts warm, the new one cold."""
    hours = ", ".join(f"{second / 3600}:{n}" for second, n in ((0, 2), (4, 1), (8, 3)))
    life = GroupLife(1, 4, 2, 5.0, warm_start_s=1.0)
    records = Simulation(steady(), plan(life, scaling=ScalingPlan("scheduled", {"hours": hours}, 1.0))).run()
    assert [(x.started, x.ready) for x in records.replicas] == [(0, 0), (0, 0), (8, 9), (8, 13)]
    cold = replace(life, warm_start_s=None)
    records = Simulation(steady(), plan(cold, scaling=ScalingPlan("scheduled", {"hours": hours}, 1.0))).run()
    assert [x.ready for x in records.replicas] == [0, 0, 13, 13]


def test_scaled_to_zero_requests_wait_at_the_door_for_a_cold_start() -> None:
    arrival = np.array([0.0, 200.0, 200.5])
    requests = Trace(arrival, np.full(3, 64), np.full(3, 4))
    options = {"cooldown_s": 60.0, "average_s": 0.0, "stabilization_down_s": 0.0}
    scaling = ScalingPlan("queue", options, 10.0)
    records = Simulation(requests, plan(GroupLife(0, 2, 1, 20.0), scaling=scaling)).run()
    assert (records.requests.status == Status.FINISHED).all()
    assert records.replicas[0].stopped == pytest.approx(60.0)  # not busy at any look, for 60 s
    assert records.replicas[1].started == 210.0  # the first look after the request
    np.testing.assert_allclose(records.requests.scheduled[1:], 230.0, atol=0.01)


def test_nobody_waits_for_ever() -> None:
    """Nothing ever starts: who waits for a replica is turned away in the end."""
    records = Simulation(steady(5), plan(GroupLife(0, 2, 0), timeout_s=30.0)).run()
    assert (records.requests.status == Status.REJECTED).all()
    assert records.rejections == {"queue timeout": 5}


def test_a_replica_that_is_scaled_in_finishes_what_it_has() -> None:
    requests = Trace(np.zeros(8), np.full(8, 64), np.full(8, 400))
    scaling = ScalingPlan("scheduled", {"hours": "0:1"}, 0.5)
    records = Simulation(requests, plan(GroupLife(1, 2, 2), scaling=scaling)).run()
    gone = next(life for life in records.replicas if isfinite(life.stopped))
    index = records.replicas.index(gone)
    mine = records.requests.replica == index
    assert mine.sum() == 4
    assert gone.why_stopped == "scaled in"
    assert of_kind(records, "drain") == [0.5]
    assert gone.stopped == records.requests.finish[mine].max() > 1.0
    assert not records.attempts


@pytest.mark.parametrize(("detection_s", "late"), [(0.0, 0.0), (3.0, 3.0)])
def test_what_is_sent_to_a_dead_replica_waits_until_the_router_knows(detection_s: float, late: float) -> None:
    """The only replica of two that is left gets everything once the failure is known; nothing is lost."""
    requests = steady(100, 10.0)
    path_free = FaultPlan("tests.cluster.test_life:AtFive", detection_s=detection_s)
    records = Simulation(requests, plan(GroupLife(2, 2, 2), faults=(path_free,), router="round-robin")).run()
    (died,) = of_kind(records, "failure")
    assert died == 5.0
    assert (records.requests.status == Status.FINISHED).all()
    waited = records.requests.first_token - records.requests.arrival
    sent = (records.requests.arrival > 5.0) & (records.requests.arrival < 5.0 + detection_s)
    hit = sent & (waited > 0.15)
    if late:
        assert hit.sum() == pytest.approx(sent.sum() / 2, abs=1.5)  # every second one
        np.testing.assert_allclose((records.requests.arrival + waited)[hit], 5.0 + late, atol=0.5)
    else:
        assert not hit.any()
    after = records.requests.arrival > 5.0 + detection_s
    assert (records.requests.replica[after] == 1).all()
    assert set(np.flatnonzero(hit).tolist()) <= set(records.attempts)  # and perhaps what it was computing
    assert len(records.attempts) <= hit.sum() + 3


class AtFive(Faults):
    """The replica in the first place fails at 5 s, for good."""

    def __init__(self, around: FaultSurroundings, options: object) -> None:
        del around, options

    def loss(self, group: int, slot: int) -> Loss | None:
        return Loss(5.0, "failure", 0.0, inf) if slot == 0 else None


def test_moving_the_kv_saves_what_computing_again_would_cost() -> None:
    """One of two spot instances goes in the middle of long answers to long prompts."""
    requests = Trace(np.zeros(8), np.full(8, 1500), np.full(8, 2000))
    recomputed, finished, moved = {}, {}, {}
    for recovery in ("recompute", "migrate"):
        fault = FaultPlan("tests.cluster.test_life:WarnedAtFive", recovery=recovery)  # type: ignore[arg-type]
        cluster = plan(GroupLife(1, 2, 2, network_bytes_per_s=1e10), faults=(fault,), blocks=4000)
        built = Simulation(requests, cluster)
        records = built.run()
        check(records, requests, built)
        recomputed[recovery] = records.tokens_recomputed
        finished[recovery] = records.requests.finish.mean()
        moved[recovery] = 0 if records.transfers is None else len(records.transfers.start)
    assert moved == {"recompute": 0, "migrate": 4}
    assert recomputed["recompute"] >= 4 * 1500
    assert recomputed["migrate"] == 0
    assert finished["migrate"] < finished["recompute"]


class WarnedAtFive(Faults):
    """The replica in the first place is told at 5 s that it ends at 8 s."""

    def __init__(self, around: FaultSurroundings, options: object) -> None:
        del around, options

    def loss(self, group: int, slot: int) -> Loss | None:
        return Loss(8.0, "reclaim", 3.0, inf) if slot == 0 else None


def test_nodes_of_a_recording_come_and_go(tmp_path: Path) -> None:
    path = tmp_path / "events.csv"
    path.write_text("0,add,n1\n0,add,n2\n4000,remove,n1\n9000,add,n3\n12000,remove,n2\n15000,add,n4\n")
    fault = FaultPlan("spot-trace", {"path": str(path), "warning_s": 1.0})
    requests = steady(200, 10.0)
    built = Simulation(requests, plan(GroupLife(3, 3, 3, 2.0), faults=(fault,)))
    records = built.run()
    check(records, requests, built)
    started = [life.started for life in records.replicas]
    assert started == [0.0, 0.0, 9.0, 15.0]
    assert of_kind(records, "reclaim") == [3.0, 11.0]
    np.testing.assert_allclose([life.stopped for life in records.replicas[:2]], [3.0, 11.0], atol=1.0)
    assert (records.requests.status == Status.FINISHED).all()


def test_a_request_that_is_lost_too_often_has_failed_and_its_followers_go_on() -> None:
    requests = Trace(np.zeros(3), np.full(3, 64), np.full(3, 5000))  # each takes a minute, no replica lives a second
    fault = FaultPlan("failures", {"mtbf_s": 0.5, "mttr_s": 0.1}, detection_s=0.0, max_attempts=4)
    built = Simulation(requests, plan(GroupLife(2, 2, 2), faults=(fault,)), closed_loop_users=1)
    records = built.run()
    check(records, requests, built)
    assert (records.requests.status == Status.FAILED).all()
    assert records.attempts == {0: 4, 1: 4, 2: 4}
    assert (np.diff(records.requests.arrival) > 0).all()


def test_replicas_that_only_ever_start_are_an_error_and_no_endless_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every replica fails before it is ready."""
    monkeypatch.setattr("simulator.cluster.lifecycle.MOST_LIVES", 200)
    fault = FaultPlan("failures", {"mtbf_s": 0.1, "mttr_s": 0.0})
    with pytest.raises(ScenarioError, match="more than 200 replicas have started"):
        Simulation(steady(), plan(GroupLife(1, 2, 1, 50.0), faults=(fault,))).run()


class Confused(Scaler):
    """Answers for two groups where there is one."""

    def __init__(self, around: object, options: object) -> None:
        del around, options

    def desired(self, view: View) -> list[int]:
        del view
        return [1, 2]


def test_an_autoscaler_that_answers_nonsense_is_told_so() -> None:
    scaling = ScalingPlan("tests.cluster.test_life:Confused", {}, 1.0)
    with pytest.raises(PolicyError, match=r"wants \[1, 2\]") as caught:
        Simulation(steady(), plan(GroupLife(1, 3, 1), scaling=scaling)).run()
    assert "per group (replicas)" in str(caught.value.remedy)
