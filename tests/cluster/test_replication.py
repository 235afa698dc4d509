"""Copies of KV on other machines: a failure costs what had not been copied, and nothing is lost."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.cluster.elastic import FaultPlan, GroupLife, LifePlan
from simulator.cluster.plan import ClusterPlan, Group, RouterPlan
from simulator.cluster.simulation import Simulation
from simulator.cluster.transfers import KvBytes
from simulator.replica.records import SimulationRecords, Status
from tests.cluster.test_disaggregation import computed_is_owed_together
from tests.cluster.test_life import check
from tests.cluster.test_many_replicas import ARGS, LINEAR, same, trace
from traces.trace import Trace

PLAIN = replace(ARGS, enable_prefix_caching=False, async_scheduling=False)


def plan(
    copies: int | None,
    *,
    faults: tuple[FaultPlan, ...],
    count: int = 2,
    args: object = PLAIN,
    blocks: int = 400,
    network: float = 1e9,
    router: str = "least-requests",
) -> ClusterPlan:
    group = Group(args, LINEAR, blocks, count=count, kv=KvBytes(1e5))  # type: ignore[arg-type]
    life = GroupLife(count, count, count, cold_start_s=0.2, network_bytes_per_s=network)
    return ClusterPlan((group,), RouterPlan(router), life=LifePlan((life,), None, faults, copies_every_tokens=copies))


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(1, 3),
    mtbf=st.sampled_from([0.3, 2.0]),
    copies=st.sampled_from([1, 7, 64, 100_000]),
    stages=st.sampled_from([1, 1, 2]),
    blocks=st.sampled_from([90, 400]),
    network=st.sampled_from([1e9, 1e7]),
    router=st.sampled_from(["round-robin", "least-requests", "cs-ucb", "max-min"]),
    spot=st.booleans(),
    caching=st.booleans(),
)
def test_nothing_is_lost_and_spans_are_steps(
    seed: int, count: int, mtbf: float, copies: int, stages: int, blocks: int, network: float, router: str, spot: bool,
    caching: bool,
) -> None:  # fmt: skip
    requests = trace(50, 60.0, seed=seed)
    faults: tuple[FaultPlan, ...] = (
        FaultPlan("failures", {"mtbf_s": mtbf, "mttr_s": 0.4}, detection_s=0.1, max_attempts=1000),
    )
    if spot:
        faults += (FaultPlan("spot", {"mean_life_s": 2.0, "mean_away_s": 0.4, "warning_s": 0.2}, max_attempts=1000),)
    args = replace(PLAIN, pipeline_parallel_size=stages, enable_prefix_caching=caching, async_scheduling=bool(seed % 2))
    cluster = plan(copies, faults=faults, count=count, args=args, blocks=blocks, network=network, router=router)
    runs = []
    for mode in (False, True):
        built = Simulation(requests, cluster, step_mode=mode, seed=seed)
        records = built.run()
        check(records, requests, built)
        if (records.requests.status == Status.FINISHED).all():
            computed_is_owed_together(records, built)
        runs.append(records)
    same(*runs)


def run(copies: int | None, requests: Trace) -> tuple[SimulationRecords, Simulation]:
    faults = (FaultPlan("failures", {"mtbf_s": 2.0, "mttr_s": 0.4}, detection_s=0.1, max_attempts=1000),)
    built = Simulation(requests, plan(copies, faults=faults, count=3, blocks=4000, network=1e11), seed=3)
    return built.run(), built


def test_what_is_computed_again_is_bounded_by_the_lag() -> None:
    requests = Trace(np.linspace(0.0, 2.95, 60), np.full(60, 400), np.full(60, 200))
    recomputed = {}
    for copies in (None, 1, 32):
        records, built = run(copies, requests)
        check(records, requests, built)
        lost = sum(records.attempts.values())
        assert lost > 5
        recomputed[copies] = records.tokens_recomputed / lost
        if copies is not None:
            assert records.transfers is not None
            restored = len(records.transfers.kind)
            assert restored > 0
            assert records.tokens_recomputed <= restored * (copies - 1)  # whoever was lost had a copy
            computed = int((records.steps.num_decodes * records.steps.num_steps + records.steps.prefill_tokens).sum())
            assert sum(records.link_bytes.values()) == pytest.approx(computed * 1e5)
    assert recomputed[1] == 0
    assert recomputed[32] < 32 < recomputed[None] / 4


def test_requests_go_on_sooner_with_copies() -> None:
    requests = Trace(np.linspace(0.0, 2.95, 60), np.full(60, 400), np.full(60, 200))
    ends = {copies: float(np.nanmax(run(copies, requests)[0].requests.finish)) for copies in (None, 1)}
    assert ends[1] < ends[None]
