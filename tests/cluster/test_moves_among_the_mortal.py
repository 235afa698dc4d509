"""Requests that change replicas while replicas come and go: nothing is lost, whoever dies when."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import inf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.cluster.elastic import FaultPlan, GroupLife, LifePlan, ScalingPlan
from simulator.cluster.plan import ClocksPlan, ClusterPlan, MixedPlan, RouterPlan
from simulator.cluster.simulation import Simulation
from simulator.faults import Faults, Loss
from simulator.faults import Surroundings as FaultSurroundings
from simulator.replica.records import SimulationRecords, Status
from simulator.routing import ROUTERS
from tests.cluster.test_clocks import POWER
from tests.cluster.test_disaggregation import disaggregated
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


@settings(max_examples=12, deadline=None)
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


@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    cold=st.sampled_from([0.0, 0.3]),
    mtbf=st.sampled_from([None, 0.3, 2.0]),
    spot=st.sampled_from([None, 0.5, 3.0]),
    recovery=st.sampled_from(["finish", "recompute", "migrate"]),
    policy=st.sampled_from([None, "queue", "kv-usage", "predictive"]),
    blocks=st.sampled_from([60, 90, 400]),
    bandwidth=st.sampled_from([1e8, 1e9, 1e10, None]),
    users=st.sampled_from([None, None, 9]),
    stages=st.sampled_from([1, 1, 1, 2]),
    router=st.sampled_from(["round-robin", "least-requests", "prefix-aware"]),
    first_token=st.sampled_from(["prefill", "decode"]),
    hits=st.booleans(),
    short=st.sampled_from([0, 100]),
    push=st.sampled_from(["pull", "push", "layers"]),
    mixed=st.sampled_from([None, None, MixedPlan(300, 2), MixedPlan(None, 1)]),
    both=st.sampled_from([0, 0, 1]),
    budget=st.sampled_from([512, 512, 64]),
)
def test_prefill_and_decode_replicas_may_die(
    seed: int, cold: float, mtbf: float | None, spot: float | None, recovery: str, policy: str | None, blocks: int,
    bandwidth: float | None, users: int | None, stages: int, router: str, first_token: str, hits: bool, short: int,
    push: str, mixed: MixedPlan | None, both: int, budget: int,
) -> None:  # fmt: skip
    requests = trace(45, 80.0, seed=seed)
    args = replace(ARGS, pipeline_parallel_size=stages, async_scheduling=bool(seed % 2), max_num_batched_tokens=budget)
    plan = disaggregated(
        3,
        3,
        both=both,
        blocks=blocks,
        bandwidth=bandwidth,
        args=args,
        decode_router=RouterPlan(router),
        first_token=first_token,
        decode_prefix_hits=hits,
        min_prompt_tokens=short,
        push=push != "pull",
        layerwise=push == "layers",
        mixed=mixed,
    )
    lives = tuple(
        GroupLife(1, group.count, max(group.count - 1, 1), cold, network_bytes_per_s=1e9) for group in plan.groups
    )
    plan = replace(plan, life=LifePlan(lives, scaling_of(policy, recovery), faults_of(mtbf, spot, recovery), 5.0))
    runs = [
        hold(Simulation(requests, plan, closed_loop_users=users, step_mode=mode, seed=seed), requests)
        for mode in (False, True)
    ]
    alike(*runs)


@pytest.mark.parametrize("seed", [1, 3])
def test_clocks_change_meanwhile(seed: int) -> None:
    """A controller that throws dice for both pools, while replicas of both fail and are reclaimed."""
    requests = trace(60, 80.0, seed=seed)
    plan = disaggregated(3, 3, blocks=90, bandwidth=1e9)
    groups = tuple(replace(group, power=POWER) for group in plan.groups)
    lives = tuple(GroupLife(1, 3, 2, 0.3, network_bytes_per_s=1e9) for _ in groups)
    life = LifePlan(lives, scaling_of("queue", "migrate"), faults_of(2.0, 3.0, "migrate"), 5.0)
    clocks = ClocksPlan("tests.cluster.test_clocks:Dice", {}, 0.1)
    plan = replace(plan, groups=groups, life=life, clocks=clocks)
    runs = [hold(Simulation(requests, plan, step_mode=mode, seed=seed), requests) for mode in (False, True)]
    alike(*runs)
    assert runs[0].clocks
    assert runs[0].clocks == runs[1].clocks


class Kills(Faults):
    """The first replica of the group of this name fails at ``at_s``, for good."""

    def __init__(self, around: FaultSurroundings, options: Mapping[str, object]) -> None:
        self._group, self._at = around.groups.index(str(options["group"])), float(str(options["at_s"]))
        self._done = False

    def loss(self, group: int, slot: int) -> Loss | None:
        if group != self._group or self._done:
            return None
        self._done = True
        return Loss(self._at, "failure", 0.0, inf)


SYNC = replace(ARGS, async_scheduling=False, enable_prefix_caching=False)


def killed(group: str, at_s: float, **options: object) -> ClusterPlan:
    """Two prefill and two decode replicas; one of them fails, which the routers know at once."""
    plan = disaggregated(2, 2, blocks=2000, **{"args": SYNC, "bandwidth": 1e9, **options})  # type: ignore[arg-type]
    fault = FaultPlan("tests.cluster.test_moves_among_the_mortal:Kills", {"group": group, "at_s": at_s}, 0.0)
    lives = (GroupLife(2, 2, 2), GroupLife(2, 2, 2))
    return replace(plan, life=LifePlan(lives, None, (fault,)))


def test_kv_that_was_on_the_way_to_a_dead_decode_replica_is_sent_to_another() -> None:
    """Two prompts of 480 tokens, computed at 14.8 ms; their 62.9 MB each share 1 GB/s, so both are under way at 50 ms.
    One goes to the replica that dies then, and is sent again as a whole; nothing is computed again."""
    requests = Trace(np.zeros(2), np.full(2, 480), np.full(2, 5))
    records = hold(Simulation(requests, killed("decode", 0.05)), requests)
    transfers = records.transfers
    assert transfers is not None
    size = 480 * 131072
    assert sorted(transfers.num_bytes.tolist()) == pytest.approx([0.5e9 * (0.05 - 0.0148304), size, size], rel=1e-3)
    (cut,) = np.flatnonzero(transfers.num_bytes < size)
    assert transfers.end[cut] == pytest.approx(0.05)
    assert transfers.target.tolist().count(3) == 2  # lives 0 and 1 prefill, 2 has died
    assert records.tokens_recomputed == 0
    assert not records.attempts
    assert (records.requests.status == Status.FINISHED).all()


def test_a_prefill_replica_takes_the_kv_with_it_that_has_not_arrived() -> None:
    """The client keeps its first token; the prompt is computed again elsewhere."""
    requests = Trace(np.zeros(2), np.full(2, 480), np.full(2, 5))
    records = hold(Simulation(requests, killed("prefill", 0.05)), requests)
    assert records.attempts == {0: 1}
    assert records.tokens_recomputed == 480
    np.testing.assert_allclose(records.requests.first_token, 0.0148304)
    assert records.prefill_replica is not None
    assert records.prefill_replica.tolist() == [1, 1]
    assert records.requests.finish[0] > 0.0648


def test_an_answer_goes_on_after_its_decode_replica_has_died() -> None:
    """Its tokens so far are computed with the prompt, on a prefill replica, and the rest on the other decode replica."""
    requests = Trace(np.zeros(2), np.full(2, 480), np.full(2, 60))
    records = hold(Simulation(requests, killed("decode", 0.3)), requests)
    (lost,) = records.attempts
    assert records.requests.replica.tolist() == [3, 3]
    made_before = records.requests.extra_ranges[0]
    assert made_before[0] == lost
    assert made_before[4] == 2
    done = int(made_before[2] - made_before[1]) + 1
    assert 10 < done < 59
    assert records.tokens_recomputed == 480 + done - 1
    assert records.requests.first_token[lost] == pytest.approx(0.0148304)


def test_pools_scale_on_their_own() -> None:
    """Long answers and short prompts: the decode pool grows and the prefill pool does not."""
    requests = Trace(np.arange(300) / 30.0, np.full(300, 100), np.full(300, 300))
    plan = disaggregated(4, 4, args=SYNC)
    scaling = ScalingPlan("queue", {"target_requests": 10, "average_s": 1.0, "stabilization_down_s": 2.0}, 0.5)
    lives = (GroupLife(1, 4, 1), GroupLife(1, 4, 1))
    built = Simulation(requests, replace(plan, life=LifePlan(lives, scaling)))
    records = hold(built, requests)
    names = [life.group for life in records.replicas]
    assert names.count("prefill") == 1
    assert names.count("decode") >= 4
    assert (records.requests.status == Status.FINISHED).all()
