"""Tiers behind the prefix cache: what is forgotten comes back, at the price of reading it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.cluster.plan import ClusterPlan, Group, RouterPlan
from simulator.cluster.simulation import Simulation
from simulator.core.errors import UserError
from simulator.kv.tier import TierPlan
from simulator.kv.tiers import TierSet
from simulator.metrics import summarize
from simulator.replica.records import SimulationRecords
from simulator.scenario import load, run
from simulator.scheduling import EngineArgs
from simulator.scheduling.policy import resolve
from tests.cluster.test_many_replicas import ARGS, LINEAR, same, trace
from tests.scheduling.invariants import check_pool, clock_never_runs_back, ends_once, nobody_is_left
from traces.prefix import from_rows
from traces.trace import Trace

BYTES = 1000.0  # per token
DRAM = TierPlan("dram", 1e9, 1e12)
POOL = TierPlan("pool", 1e9, 1e12, write="through", shared=True)
A, B = list(range(30)), list(range(100, 130))


def tiers(*plans: TierPlan, **more: object) -> TierSet:
    return TierSet(plans, BYTES, 10, **more)  # type: ignore[arg-type]


def one(
    requests: Trace, found: TierSet | None, *, blocks: int = 40, count: int = 1, step_mode: bool = False
) -> Simulation:
    group = Group(replace(ARGS, async_scheduling=False), LINEAR, blocks, tiers=found, count=count)
    return Simulation(requests, ClusterPlan((group,), RouterPlan()), step_mode=step_mode)


def prompts(rows: list[list[int]], *, every_s: float = 10.0) -> Trace:
    """Prompts of 30 blocks and 5 tokens, one after the other."""
    n = len(rows)
    return Trace(np.linspace(0.0, (n - 1) * every_s, n), np.full(n, 485), np.full(n, 2), prefix=from_rows(rows, 16))


ABA = prompts([A, B, A])  # in a cache of 39 blocks: the second A finds what B has left of the first


def test_what_the_cache_forgot_is_loaded_and_not_computed() -> None:
    without = one(ABA, None).run()
    with_dram = one(ABA, tiers(DRAM)).run()
    left = int(without.requests.cached_tokens[2])
    assert 0 < left < 480
    assert with_dram.requests.cached_tokens.tolist() == [0, 0, 480]
    [dram] = with_dram.tiers
    assert dram.hit_tokens == 480 - left
    assert dram.bytes_read == pytest.approx((480 - left) * BYTES)
    assert dram.bytes_written >= dram.bytes_read
    summary = summarize(with_dram)["kv_tiers"]
    assert summary["gpu"]["hit_tokens"] == left
    assert summary["tiers"]["dram"]["hit_tokens"] == 480 - left
    saved = without.requests.first_token[2] - with_dram.requests.first_token[2]
    computed = LINEAR.mixed(0, 0, 0, [(485 - left, left)], 1) - LINEAR.mixed(0, 0, 0, [(5, 480)], 1)
    assert saved == pytest.approx(computed, rel=0.02)


@pytest.mark.parametrize("mode", ["blocking", "layerwise"])
def test_loading_takes_its_time(mode: str) -> None:
    """All of it before the step computes, or all but the first layer's share hidden behind computing."""
    slow = replace(DRAM, bandwidth=1e7, latency_s=1e-3)
    fast = one(ABA, tiers(DRAM)).run()
    found = one(ABA, tiers(slow, load=mode, load_if_faster=False)).run()
    [tier] = found.tiers
    loading = 1e-3 + tier.bytes_read / 1e7
    compute = LINEAR.mixed(0, 0, 0, [(5, 480)], 1)
    late = found.requests.first_token[2] - fast.requests.first_token[2]
    extra = loading if mode == "blocking" else loading / 10 + max(0.9 * loading - compute, 0.0)
    assert late == pytest.approx(extra, rel=0.01)
    assert tier.busy_s == pytest.approx(loading)
    assert found.tier_load_s == pytest.approx(extra)


def test_what_is_faster_to_compute_is_computed() -> None:
    crawling = replace(DRAM, bandwidth=1e4)
    assert one(ABA, tiers(crawling)).run().tiers[0].bytes_read == 0
    assert one(ABA, tiers(crawling, load_if_faster=False)).run().tiers[0].bytes_read > 0


def test_a_small_tier_forgets_too_and_the_next_one_has_it() -> None:
    small, ssd = replace(DRAM, capacity_bytes=5 * 16 * BYTES), TierPlan("ssd", 1e9, 1e11)
    alone, both = one(ABA, tiers(small)).run(), one(ABA, tiers(small, ssd)).run()
    assert alone.requests.cached_tokens[2] < both.requests.cached_tokens[2] == 480
    dram, disk = both.tiers
    assert disk.hit_tokens > 0
    assert dram.hit_tokens + disk.hit_tokens == 480 - one(ABA, None).run().requests.cached_tokens[2]


def test_a_shared_tier_serves_what_another_replica_computed() -> None:
    twice = prompts([A, A])  # round robin: on two replicas
    apart = one(twice, tiers(replace(POOL, shared=False)), blocks=100, count=2).run()
    assert apart.requests.cached_tokens.tolist() == [0, 0]
    together = one(twice, tiers(POOL), blocks=100, count=2).run()
    assert together.requests.cached_tokens.tolist() == [0, 480]
    assert [tier.replica for tier in together.tiers] == [-1]


def test_nothing_is_read_before_it_is_computed() -> None:
    at_once = prompts([A, A], every_s=1e-6)
    assert one(at_once, tiers(POOL), blocks=100, count=2).run().requests.cached_tokens.tolist() == [0, 0]


@pytest.mark.parametrize("policy", ["vllm", "sarathi", "fastgen"])
def test_who_waits_for_a_free_sequence_leaves_the_span_as_it_is(policy: str) -> None:
    """To the last bit of a float: an arrival that finds none does not end the span, nor looks at every step of it."""
    requests = replace(prompts([A, B], every_s=0.31), output_tokens=np.array([90, 2]))
    full = policy != "vllm"
    args = EngineArgs(
        policy=policy, max_num_seqs=1, max_num_batched_tokens=512, enable_prefix_caching=True, async_scheduling=False,
        scheduler_reserve_full_isl=full,
    )  # fmt: skip
    plan = ClusterPlan((Group(args, LINEAR, 70, tiers=tiers(DRAM)),), RouterPlan())
    same(*(Simulation(requests, plan, step_mode=mode).run() for mode in (False, True)))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    count=st.sampled_from([1, 1, 2]),
    shared=st.booleans(),
    write=st.sampled_from(["evict", "through"]),
    capacity=st.sampled_from([20, 200, 10_000]),
    bandwidth=st.sampled_from([1e7, 1e9]),
    eviction=st.sampled_from(["lru", "s3-fifo", "lfu"]),
)
def test_spans_are_steps_and_every_block_comes_back(
    seed: int, count: int, shared: bool, write: str, capacity: int, bandwidth: float, eviction: str
) -> None:
    how = "through" if shared else write
    plan = TierPlan("t", capacity * 16 * BYTES, bandwidth, 1e-4, how, eviction, shared)  # type: ignore[arg-type]
    requests = trace(80, 100.0, seed=seed)
    runs: list[SimulationRecords] = []
    for step_mode in (False, True):
        built = one(requests, tiers(plan), blocks=90, count=count, step_mode=step_mode)
        records = built.run()
        ends_once(records, requests, drained=True)
        clock_never_runs_back(records)
        for replica in built.replicas:
            check_pool(replica.engine.state.pool)
            nobody_is_left(replica.engine.state)
        runs.append(records)
    same(*runs)
    assert runs[0].tiers == runs[1].tiers


@pytest.mark.parametrize(
    ("policy", "options"),
    [("vllm", {"scheduler_reserve_full_isl": False}), ("fastgen", {}), ("sarathi", {}), ("sglang", {})],
)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), bandwidth=st.sampled_from([1e6, 1e7, 1e9]), blocks=st.sampled_from([70, 90]))
def test_spans_are_steps_where_what_is_found_decides_who_is_admitted(
    policy: str, options: dict[str, bool], seed: int, bandwidth: float, blocks: int
) -> None:
    """Whether reading is faster than computing changes as reads queue up and end, in the middle of a span."""
    args = EngineArgs(
        policy=policy,
        max_num_seqs=16,
        max_num_batched_tokens=512,
        enable_prefix_caching=True,
        **options,  # type: ignore[arg-type]
    )
    group = Group(resolve(args), LINEAR, blocks, tiers=tiers(TierPlan("t", 20 * 16 * BYTES, bandwidth, 1e-4)))
    cluster = ClusterPlan((group,), RouterPlan())
    one, other = (Simulation(trace(60, 100.0, seed=seed), cluster, step_mode=mode).run() for mode in (False, True))
    same(one, other)
    assert one.tiers == other.tiers


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("engine.kv_tiers.0.name=ssd", "needs a 'bandwidth'"),
        ("engine.kv_tiers.0.shared=true", "write: through"),
        ("engine.kv_tiers.0.eviction=lur", "unknown eviction policy"),
        ("engine.kv_tiers.0.eviction=belady", "looks into the future"),
        ("engine.kv_tiers.0.capacity_bytes=0", "more than 0"),
        ("engine.enable_prefix_caching=false", "it is off"),
        ("engine={kv_tiers: [{name: dram, capacity_bytes: 1GB}], kv_tier_load: async, policy: sglang}", "wait aside"),
        (
            "engine={kv_tiers: [{name: dram, capacity_bytes: 1GB, eviction: lfu}], kv_tier_prefetch: 4}",
            "nowhere to fetch",
        ),
        ("engine.kv_recompute_layers=99", "32 layers"),
        ("engine.kv_recompute_layers=2", "of chunks in new places"),
        ("engine.kv_recompute_fraction=0.5", "of chunks in new places"),
        ("engine={kv_tier_load: async}", "no tiers to load from"),
        ("engine={kv_tier_match: chunks}", "no tiers to load from"),
        ("engine={kv_recompute_fraction: 0.5}", "no tiers to load from"),
        ("engine={kv_tier_prefetch: 2}", "no tiers to load from"),
        ("engine.pipeline_parallel_size=2", "KV tiers and pipeline stages"),
    ],
)
def test_wrong_tiers_are_answered(tmp_path: Path, setting: str, words: str) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(
        "model: Llama-3.1-8B\nhardware: H100-SXM\nengine: {kv_tiers: [{name: dram, capacity_bytes: 100GB}]}\n"
        "workload: {preset: {name: azure-conv, num_requests: 5}}\n"
    )

    def started() -> None:
        run(load(path, [setting]))

    with pytest.raises(UserError) as error:
        started()
    assert words in str(error.value)
