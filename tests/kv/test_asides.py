"""What tiers do beside the steps: loads for which a request waits aside, and a look ahead along the queue."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.cluster.elastic import FaultPlan, GroupLife, LifePlan
from simulator.cluster.plan import ClusterPlan, Group, RouterPlan
from simulator.cluster.simulation import Simulation
from simulator.cluster.transfers import KvBytes
from simulator.core.errors import PolicyError
from simulator.kv.tier import Tier, TierPlan
from simulator.kv.tiers import TierSet
from simulator.metrics import summarize
from simulator.replica.records import SimulationRecords
from simulator.scheduling import EngineArgs
from tests.cluster.test_life import check as check_life
from tests.cluster.test_many_replicas import ARGS, LINEAR, same, trace
from tests.kv.test_tiers import ABA, BYTES, DRAM, A, B, prompts, tiers
from tests.scheduling.invariants import check_pool, clock_never_runs_back, ends_once, nobody_is_left
from traces.prefix import from_rows
from traces.trace import Trace

SLOW = replace(DRAM, bandwidth=1e6, latency_s=1e-3)  # 480 tokens in about half a second
PLAIN = replace(ARGS, async_scheduling=False)


def one(
    requests: Trace, found: TierSet | None, *, blocks: int = 40, args: EngineArgs = PLAIN, **options: object
) -> Simulation:
    count = int(options.pop("count", 1))  # type: ignore[call-overload]
    group = Group(args, LINEAR, blocks, tiers=found, count=count)
    return Simulation(requests, ClusterPlan((group,), RouterPlan()), **options)  # type: ignore[arg-type]


def aside(*plans: TierPlan, **more: object) -> TierSet:
    return tiers(*plans, load="async", load_if_faster=False, **more)


def with_decoder(rows: list[list[int]], tokens: int) -> Trace:
    """``prompts``, and one more request that begins before the last of them and decodes for a long time."""
    found = prompts(rows)
    n = len(rows)
    arrival = np.insert(found.arrival, n - 1, found.arrival[n - 1] - 0.1)
    return Trace(
        arrival,
        np.insert(found.prompt_tokens, n - 1, 17),
        np.insert(found.output_tokens, n - 1, tokens),
        prefix=from_rows([*rows[:-1], [999], rows[-1]], 16),
    )


def test_a_request_waits_aside_while_the_steps_of_others_go_on() -> None:
    """The decoder's steps stay short; the request that loads is admitted when all is there, and computes the rest."""
    requests = with_decoder([A, B, A], 100)
    blocking = one(requests, tiers(SLOW, load="blocking", load_if_faster=False)).run()
    beside = one(requests, aside(SLOW)).run()
    [tier] = beside.tiers
    loading = 1e-3 + tier.bytes_read / 1e6
    assert tier.bytes_read == blocking.tiers[0].bytes_read > 0
    assert loading > 0.2
    assert blocking.requests.finish[2] - beside.requests.finish[2] > 0.9 * loading
    began = beside.requests.scheduled[3] - requests.arrival[3]
    assert loading < began < loading + 0.02  # it waits for the end of the step in which its KV comes
    assert beside.requests.cached_tokens[3] == 480
    assert beside.tier_load_s == 0
    assert beside.tier_aside_s == pytest.approx(loading)


def test_an_idle_engine_sleeps_until_the_kv_is_there() -> None:
    found = one(ABA, aside(SLOW)).run()
    loading = 1e-3 + found.tiers[0].bytes_read / 1e6
    compute = LINEAR.mixed(0, 0, 0, [(5, 480)], 1)
    assert found.requests.first_token[2] - ABA.arrival[2] == pytest.approx(loading + compute)


def test_who_comes_meanwhile_is_served_at_once() -> None:
    late = Trace(
        np.append(ABA.arrival, 20.1), np.append(ABA.prompt_tokens, 17), np.append(ABA.output_tokens, 2),
        prefix=from_rows([A, B, A, [999]], 16),
    )  # fmt: skip
    found = one(late, aside(SLOW)).run()
    assert found.requests.scheduled[3] == 20.1
    assert found.requests.finish[3] < found.requests.scheduled[2]


def test_loaded_blocks_are_others_to_hit_once_they_are_there() -> None:
    arrival = np.array([0.0, 10.0, 20.0, 22.0])
    requests = Trace(arrival, np.full(4, 485), np.full(4, 2), prefix=from_rows([A, B, A, A], 16))
    found = one(requests, aside(SLOW)).run()
    assert found.requests.cached_tokens.tolist() == [0, 0, 480, 480]
    assert found.tiers[0].hit_tokens == one(ABA, aside(SLOW)).run().tiers[0].hit_tokens


def test_blocks_for_the_whole_prompt_must_be_there_before_anything_is_loaded() -> None:
    """A second request of 31 blocks has to wait for the first, though it would load beside it."""
    requests = Trace(
        np.array([0.0, 10.0, 20.0, 20.0]), np.full(4, 485), np.full(4, 2), prefix=from_rows([A, B, A, B], 16)
    )
    found = one(requests, aside(SLOW)).run()
    assert found.requests.scheduled[3] > found.requests.finish[2]
    ends_once(found, requests, drained=True)


def queue_of(rows: list[list[int]], at: float) -> Trace:
    """Three prompts one after the other, then all of ``rows`` at once."""
    arrival = np.array([0.0, 5.0, 10.0, *[at] * len(rows)])
    n = len(arrival)
    return Trace(arrival, np.full(n, 485), np.full(n, 100), prefix=from_rows([A, B, C, *rows], 16))


SSD = TierPlan("ssd", 1e9, 2e6, 1e-3)
TINY = replace(DRAM, capacity_bytes=32 * 16 * BYTES, bandwidth=1e9)
C, D = list(range(200, 230)), list(range(300, 330))


def test_blocks_come_up_while_their_request_waits() -> None:
    """A's blocks are on the disk when it comes behind D, which decodes: they are in host memory when it is admitted."""
    requests = queue_of([D, A], 20.0)
    args = replace(PLAIN, max_num_seqs=1)
    plain = one(requests, tiers(TINY, SSD, load="blocking", load_if_faster=False), args=args).run()
    ahead = one(requests, tiers(TINY, SSD, load="blocking", load_if_faster=False, prefetch=2), args=args).run()
    assert ahead.requests.cached_tokens[4] == plain.requests.cached_tokens[4] == 480
    dram, disk = ahead.tiers
    assert disk.bytes_prefetched == disk.bytes_read > 0 == plain.tiers[1].bytes_prefetched
    assert disk.hit_tokens == 0
    assert dram.hit_tokens > plain.tiers[0].hit_tokens
    served = ahead.requests.first_token[4] - ahead.requests.scheduled[4]
    unserved = plain.requests.first_token[4] - plain.requests.scheduled[4]
    assert unserved - served > 0.8 * disk.bytes_read / SSD.bandwidth
    assert summarize(ahead)["kv_tiers"]["tiers"]["ssd"]["bytes_prefetched"] == disk.bytes_prefetched


def test_what_is_still_on_its_way_up_is_waited_for_and_not_read_twice() -> None:
    requests = queue_of([A], 20.0)
    found = one(requests, tiers(TINY, SSD, load="blocking", load_if_faster=False, prefetch=1)).run()
    _, disk = found.tiers
    loading = 1e-3 + disk.bytes_read / SSD.bandwidth
    assert disk.bytes_read == disk.bytes_prefetched > 0
    assert found.requests.first_token[3] - 20.0 > loading


def test_what_the_window_needs_is_forgotten_last() -> None:
    tier = Tier(replace(DRAM, capacity_bytes=4 * 16 * BYTES), 16 * BYTES, window=1)
    tier.store([1, 2, 3], 16 * BYTES)
    tier.expect([1, 2])
    assert tier.room == 2
    tier.store([4, 5, 6], 16 * BYTES)
    assert [block for block in range(7) if block in tier] == [1, 2, 5, 6]
    tier.served([1, 2])
    tier.store([7, 8], 16 * BYTES)
    assert [block for block in range(9) if block in tier] == [1, 2, 7, 8]  # they were used last
    tier.store([9, 10, 11], 16 * BYTES)
    assert 1 not in tier


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    load=st.sampled_from(["async", "async", "layerwise"]),
    prefetch=st.sampled_from([0, 1, 4]),
    count=st.sampled_from([1, 1, 2]),
    shared=st.booleans(),
    if_faster=st.booleans(),
    capacity=st.sampled_from([20, 60, 10_000]),
    bandwidth=st.sampled_from([1e6, 1e7, 1e9]),
    ahead=st.booleans(),
    args=st.sampled_from(
        [
            {},
            {"scheduling_policy": "priority"},
            {"watermark": 0.1},
            {"max_num_seqs": 3},
            {"scheduler_reserve_full_isl": False},
            {"long_prefill_token_threshold": 64},
        ]
    ),
    rate=st.sampled_from([20.0, 100.0]),
    blocks=st.sampled_from([70, 90, 150]),
)
def test_spans_are_steps_and_every_block_comes_back(
    seed: int, load: str, prefetch: int, count: int, shared: bool, if_faster: bool, capacity: int, bandwidth: float,
    ahead: bool, args: dict[str, object], rate: float, blocks: int,
) -> None:  # fmt: skip
    upper = TierPlan("dram", capacity * 16 * BYTES, 1e9, 1e-5)
    lower = TierPlan("ssd", 1e9, bandwidth, 1e-4, "through" if shared else "evict", "lru", shared)
    engine = replace(ARGS, async_scheduling=ahead, **args)  # type: ignore[arg-type]
    if engine.scheduling_policy == "priority":
        prefetch = 0
    found = tiers(upper, lower, load=load, load_if_faster=if_faster, prefetch=prefetch)
    requests = trace(70, rate, seed=seed)
    runs: list[SimulationRecords] = []
    for step_mode in (False, True):
        built = one(requests, found, blocks=blocks, count=count, args=engine, step_mode=step_mode)
        records = built.run()
        ends_once(records, requests, drained=True)
        clock_never_runs_back(records)
        for replica in built.replicas:
            check_pool(replica.engine.state.pool)
            nobody_is_left(replica.engine.state)
            asides = replica.engine.state.asides
            assert asides is None or not (asides.loading or asides.loaded or asides._seen)  # noqa: SLF001
        runs.append(records)
    same(*runs)
    assert runs[0].tiers == runs[1].tiers
    assert runs[0].tier_aside_s == runs[1].tier_aside_s


# -- routers -----------------------------------------------------------------------------------------------------


def routed(
    requests: Trace, *, weight: float, step_mode: bool = False, blocks: int = 40, count: int = 2, **more: object
) -> Simulation:
    group = Group(PLAIN, LINEAR, blocks, tiers=tiers(DRAM, **more), count=count)
    router = RouterPlan("prefix-aware", {"tier_weight": weight, "hit_threshold": 0.5}, 0.0)
    return Simulation(requests, ClusterPlan((group,), router), step_mode=step_mode)


def test_a_router_that_sees_tiers_sends_a_prompt_to_where_it_was() -> None:
    """A and then B go to the first replica, whose tier then holds most of A; the idlest is the first one of two."""
    late = [A, B, C, D]
    arrival = np.array([0.0, 5.0, 5.0, 10.0, 20.0])
    requests = Trace(arrival, np.full(5, 485), np.full(5, 2), prefix=from_rows([*late, B], 16))
    blind, seeing = routed(requests, weight=0.0).run(), routed(requests, weight=0.8).run()
    where = seeing.requests.replica
    assert where[4] == where[1]
    assert seeing.requests.cached_tokens[4] == 480
    assert blind.requests.replica[:4].tolist() == where[:4].tolist()


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), weight=st.sampled_from([0.3, 1.0]), load=st.sampled_from(["async", "layerwise"]))
def test_spans_are_steps_when_a_router_looks_at_tiers(seed: int, weight: float, load: str) -> None:
    requests = trace(80, 100.0, seed=seed)
    built = [routed(requests, weight=weight, step_mode=mode, blocks=90, count=3, load=load) for mode in (False, True)]
    one, other = (simulation.run() for simulation in built)
    same(one, other)
    assert one.tiers == other.tiers


@pytest.mark.parametrize(
    ("options", "interval_s", "found", "words"),
    [
        ({"index": "approximate"}, 0.0, (DRAM,), "exact index"),
        ({}, 0.05, (DRAM,), "as they were"),
        ({}, 0.0, (replace(DRAM, write="through", shared=True),), "none but shared"),
    ],
)
def test_routers_that_would_see_no_tiers_are_refused(
    options: dict[str, object], interval_s: float, found: tuple[TierPlan, ...], words: str
) -> None:
    group = Group(PLAIN, LINEAR, 40, tiers=tiers(*found), count=2)
    router = RouterPlan("prefix-aware", {"tier_weight": 0.5, **options}, interval_s)  # type: ignore[dict-item]
    with pytest.raises(PolicyError, match=words):
        Simulation(ABA, ClusterPlan((group,), router))


# -- replicas that fail --------------------------------------------------------------------------------------------


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    recovery=st.sampled_from(["finish", "recompute"]),
    load=st.sampled_from(["async", "layerwise"]),
    prefetch=st.sampled_from([0, 3]),
    shared=st.booleans(),
)
def test_who_waits_aside_on_a_replica_that_fails_goes_elsewhere(
    seed: int, recovery: Literal["finish", "recompute"], load: str, prefetch: int, shared: bool
) -> None:
    pool = TierPlan("pool", 1e9, 1e6, 1e-4, write="through" if shared else "evict", shared=shared)
    found = tiers(TINY, pool, load=load, prefetch=prefetch, load_if_faster=False)
    group = Group(ARGS, LINEAR, 90, tiers=found, count=2, kv=KvBytes(1e5))
    often = FaultPlan("failures", {"mtbf_s": 0.5, "mttr_s": 0.4}, detection_s=0.2, recovery=recovery, max_attempts=9)
    life = {"mean_life_s": 1.0, "mean_away_s": 0.5, "warning_s": 0.3}
    faults = (often, FaultPlan("spot", life, recovery=recovery, max_attempts=9))
    cluster = ClusterPlan(
        (group,), RouterPlan("least-requests"), life=LifePlan((GroupLife(1, 3, 2),), None, faults, 5.0)
    )
    requests = trace(60, 60.0, seed=seed)
    runs = []
    for step_mode in (False, True):
        built = Simulation(requests, cluster, step_mode=step_mode, seed=seed)
        records = built.run()
        check_life(records, requests, built)
        for replica in built.replicas:
            check_pool(replica.engine.state.pool)
        runs.append(records)
    same(*runs)
    assert runs[0].tiers == runs[1].tiers
