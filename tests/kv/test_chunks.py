"""Chunks are reused wherever they stand, at the price of reading them and computing a share of them again."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.cluster.plan import ClusterPlan, Group, RouterPlan
from simulator.cluster.simulation import Simulation
from simulator.core.errors import ScenarioError
from simulator.kv.tier import TierPlan
from simulator.kv.tiers import TierSet
from simulator.replica.records import SimulationRecords
from tests.cluster.test_many_replicas import ARGS, LINEAR, same
from tests.scheduling.invariants import check_pool, clock_never_runs_back, ends_once, nobody_is_left
from traces.generate.documents import prefix_of_chunks
from traces.trace import Chunks, Trace

BYTES = 1000.0  # per token
DRAM = TierPlan("dram", 1e9, 1e12, write="through")
ASK = 20  # tokens of every question


def rag(rows: list[list[tuple[int, int]]], *, every_s: float = 10.0, question: int = ASK) -> Trace:
    """Prompts of the given (document, tokens) and a question, one after the other."""
    offsets = np.concatenate(([0], np.cumsum([len(row) for row in rows])))
    flat = np.array([part for row in rows for part in row], dtype=np.int64).reshape(-1, 2)
    chunks = Chunks(offsets, flat[:, 0], flat[:, 1])
    n, prompt = len(rows), chunks.totals() + question
    output = np.full(n, 2)
    return Trace(
        np.linspace(0.0, every_s * (n - 1), n), prompt, output, prefix=prefix_of_chunks(chunks, 16), chunks=chunks
    )


def one(
    trace: Trace,
    *plans: TierPlan,
    r: float = 0.25,
    blocks: int = 400,
    count: int = 1,
    step_mode: bool = False,
    **more: object,
) -> SimulationRecords:
    found = TierSet(plans, BYTES, 10, match="chunks", recompute_fraction=r, **more) if plans else None  # type: ignore[arg-type]
    group = Group(replace(ARGS, async_scheduling=False), LINEAR, blocks, tiers=found, count=count)
    built = Simulation(trace, ClusterPlan((group,), RouterPlan()), step_mode=step_mode)
    records = built.run()
    ends_once(records, trace, drained=True)
    clock_never_runs_back(records)
    for replica in built.replicas:
        check_pool(replica.engine.state.pool)
        nobody_is_left(replica.engine.state)
    return records


A, B, C = (1, 100), (2, 160), (3, 90)


def test_documents_in_another_order_are_loaded_but_for_a_share() -> None:
    trace = rag([[A, B], [B, A]])
    assert one(trace).requests.cached_tokens.tolist() == [0, 0]  # no common prefix
    records = one(trace, DRAM)
    # B stands at the beginning and is whole; of A a quarter is computed again; what is spared comes in blocks of 16.
    spared = 160 + 0.75 * 100
    assert records.requests.cached_tokens.tolist() == [0, int(spared // 16) * 16]
    [dram] = records.tiers
    assert dram.bytes_read == pytest.approx(260 * BYTES)
    assert dram.bytes_written == pytest.approx(-(-100 // 16) * 16 * BYTES + 160 * BYTES)
    assert dram.hit_tokens == pytest.approx(records.requests.cached_tokens[1])


def test_what_the_gpu_holds_as_a_prefix_is_not_loaded() -> None:
    records = one(rag([[A, B], [A, C]]), DRAM)
    assert records.requests.cached_tokens.tolist() == [0, 96]  # six full blocks of A
    assert records.tiers[0].bytes_read == 0  # the four tokens left of A make no block
    records = one(rag([[A, B], [C], [A, C]]), DRAM)
    spared = 4 + 90 * 0.75  # A's rest stands where it was, C does not
    assert records.requests.cached_tokens[2] == 96 + int(spared // 16) * 16
    assert records.tiers[0].bytes_read == pytest.approx(94 * BYTES)


@pytest.mark.parametrize("r", [0.0, 0.15, 0.5, 1.0])
def test_the_share_is_computed_again(r: float) -> None:
    records = one(rag([[A, B, C], [C, B, A]]), DRAM, r=r)
    spared = 90 + (1 - r) * 260
    assert records.requests.cached_tokens[1] == int(spared + 1e-9) // 16 * 16
    tail = records.steps.prefill_tokens[records.steps.prefill_tokens > 0][-1]
    assert tail == 350 + ASK - records.requests.cached_tokens[1]


def test_a_step_takes_the_longer_of_loading_and_computing() -> None:
    slow = replace(DRAM, bandwidth=1e6)
    trace = rag([[A, B], [B, A]])
    fast, late = one(trace, DRAM), one(trace, slow, load_if_faster=False)
    computing = LINEAR.mixed(0, 0, 0, [(280 - 224, 224)], 1)
    loading = 260 * BYTES / 1e6
    extra = late.requests.first_token[1] - fast.requests.first_token[1]
    assert extra == pytest.approx(loading / 10 + max(0.9 * loading - computing, 0.0), rel=0.01)
    assert one(trace, replace(DRAM, bandwidth=1e3)).tiers[0].bytes_read == 0  # computing is faster


def test_the_first_layers_compute_all_of_a_chunk_to_choose_what_is_computed_again() -> None:
    """Of A's 100 tokens 75 are spared, but not in the first layers; B at the beginning of the prompt needs no choice."""
    trace = rag([[A, B], [B, A]])
    first = [
        one(trace, DRAM, recompute_layers=layers).requests.first_token[1] - trace.arrival[1] for layers in (0, 1, 10)
    ]
    all_layers = LINEAR.mixed(0, 0, 0, [(76, 0)], 1) - LINEAR.mixed(0, 0, 0, [(1, 75)], 1)
    assert first[1] - first[0] == pytest.approx(all_layers / 10, rel=0.01)
    assert first[2] - first[0] == pytest.approx(all_layers, rel=0.01)
    alike = [one(trace, DRAM, r=0.0, recompute_layers=layers).requests.first_token[1] for layers in (0, 1)]
    assert alike[0] == alike[1]  # nothing is chosen


def test_a_chunk_is_there_when_it_has_been_computed() -> None:
    at_once = rag([[A, B], [B, A]], every_s=1e-6)
    pool = replace(DRAM, shared=True)
    assert one(at_once, pool, count=2).requests.cached_tokens.tolist() == [0, 0]
    assert one(at_once, pool, count=1).requests.cached_tokens.tolist() == [0, 224]  # the next step knows of it
    assert one(rag([[A, B], [B, A]]), pool, count=2).requests.cached_tokens.tolist() == [0, 224]


def test_prompts_below_a_block_have_nothing_to_share() -> None:
    assert one(rag([[(1, 5)], [(1, 5)]], question=3), DRAM).requests.cached_tokens.tolist() == [0, 0]


def test_a_trace_must_name_chunks() -> None:
    plain = replace(rag([[A], [A]]), chunks=None)
    with pytest.raises(ScenarioError, match="name no chunks"):
        one(plain, DRAM)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(st.lists(st.integers(0, 5), min_size=0, max_size=4, unique=True), min_size=1, max_size=14),
    seed=st.integers(0, 1000),
    r=st.sampled_from([0.0, 0.15, 0.7]),
    blocks=st.sampled_from([40, 120]),
    capacity=st.sampled_from([100, 400, 10_000]),
    count=st.sampled_from([1, 2]),
    gap=st.sampled_from([0.001, 0.05, 2.0]),
    shared=st.booleans(),
)
def test_spans_are_steps(
    rows: list[list[int]], seed: int, r: float, blocks: int, capacity: int, count: int, gap: float, shared: bool
) -> None:
    lengths = np.random.default_rng(seed).integers(1, 120, 6).tolist()
    trace = rag([[(d, lengths[d]) for d in row] for row in rows], every_s=gap)
    tier = replace(DRAM, capacity_bytes=capacity * BYTES, bandwidth=1e7, shared=shared)
    a, b = (one(trace, tier, r=r, blocks=blocks, count=count, step_mode=mode) for mode in (False, True))
    same(a, b)
    assert a.tiers == b.tiers
    assert sum(t.hit_tokens for t in a.tiers) <= a.requests.cached_tokens.sum() + 1e-6
