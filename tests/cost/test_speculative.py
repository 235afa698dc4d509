"""Prices of drafts and of the steps that verify them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from simulator.core.errors import HardwareError
from simulator.cost.analytic import FixedCost
from simulator.cost.beside import beside
from simulator.cost.hosted import Offload
from simulator.cost.memory import memory_plan
from simulator.cost.offload import OffloadedCost, link_bandwidth
from simulator.cost.overhead import EngineOverhead
from simulator.cost.placement import Deployment
from simulator.cost.roofline import RooflineCost
from simulator.cost.speculative import DraftModel, Lookup, MedusaHeads, SpeculativeCost, head, kv_per_token, verifying
from simulator.hardware.gpu import gpu
from simulator.model.catalogue import model

H100 = gpu("H100-SXM")
LLAMA = model("meta-llama/Llama-3.1-8B")
QUIET = EngineOverhead(gpu_gap_s=0.0, cpu_step_s=0.0, cpu_per_sequence_s=0.0, launch_s=0.0, graph_sizes=())
PLAIN = RooflineCost(LLAMA, H100, overhead=QUIET)


def step(queries: int, batch: int, context: int) -> float:
    return verifying(PLAIN, queries).decode(batch, batch * context, 0, 0).first


def test_one_query_is_a_plain_step() -> None:
    assert verifying(PLAIN, 1) is PLAIN


def test_verifying_is_almost_free_alone_and_costs_compute_in_a_large_batch() -> None:
    """The weights are read once; at 256 requests they are 1,280 tokens, well beyond the ridge of about 300."""
    assert step(5, 1, 1000) == pytest.approx(step(1, 1, 1000), rel=0.03)
    assert 2.0 < step(5, 256, 100) / step(1, 256, 100) < 5.0


def test_keys_are_read_once_for_all_queries() -> None:
    """Attention of 5 queries over 30,000 keys takes what one takes, while 5 sequences of their own take 5 times it."""
    over = step(5, 8, 30_000) - step(5, 8, 1_000)
    assert over == pytest.approx(step(1, 8, 30_000) - step(1, 8, 1_000), rel=0.01)
    assert over < 0.25 * (step(1, 40, 30_000) - step(1, 40, 1_000))


def test_many_queries_over_long_contexts_are_bound_by_compute() -> None:
    """A tree of 255 for each of 32 heads over 8 KV heads: 1,020 FLOPs a byte."""
    slope = [(step(q, 1, 40_000) - step(q, 1, 20_000)) / 20_000 for q in (1, 256)]
    flops = 256 * 4 * 32 * 128 * 32 / (H100.peak("bf16")[1] * 0.55)
    assert slope[1] == pytest.approx(flops, rel=0.02)
    assert slope[1] > 3 * slope[0]


def test_a_mixed_step_verifies_too() -> None:
    chunk = [(512, 0)]
    plain = PLAIN.mixed(64, 64_000, 0, chunk, 65)
    five = verifying(PLAIN, 5).mixed(64, 64_000, 0, chunk, 65)
    assert five > plain
    assert five == pytest.approx(PLAIN.mixed(64, 64_000, 0, [(512 + 4 * 64, 0)], 65 + 4 * 64), rel=0.05)
    assert verifying(PLAIN, 5).mixed(4, 400, 0, [], 4) == verifying(PLAIN, 5).decode(4, 400, 0, 0).first


def test_a_draft_model_runs_once_per_drafted_token() -> None:
    drafter = DraftModel(FixedCost(0.002, 0.0))
    assert drafter.draft(3, 300, 0, 5, 4) == pytest.approx(0.008)
    assert DraftModel(FixedCost(0.002, 0.0), parallel=True).draft(3, 300, 0, 5, 4) == pytest.approx(0.002)
    assert drafter.draft(0, 0, 0, 5, 4) == drafter.draft(3, 300, 0, 1, 0) == 0.0
    cost = SpeculativeCost(FixedCost(0.01, 0.0), drafter, lambda _: 4, lambda drafts: drafts)
    assert cost.decode(3, 300, 0, 0).first == pytest.approx(0.018)
    assert cost.mixed(3, 300, 0, [(100, 0)], 4) == pytest.approx(0.01 + 0.002 + 0.008)  # the prompt drafts too


def test_a_batch_that_drafts_nothing_is_a_plain_step() -> None:
    cost = SpeculativeCost(PLAIN, MedusaHeads(PLAIN, 4), lambda n: 0 if n > 8 else 4, lambda drafts: drafts)
    assert cost.decode(16, 16_000, 0, 0).first == PLAIN.decode(16, 16_000, 0, 0).first
    assert cost.decode(8, 8_000, 0, 0).first > PLAIN.decode(8, 8_000, 0, 0).first


def test_heads_cost_what_they_hold() -> None:
    """EAGLE's head of an 8B model: one layer of 32 and the output layer, 1.5 GB read a pass, at 0.8 x 3.35 TB/s."""
    eagle = head(PLAIN, quantized=False, per_level=1, parallel=False)
    layer = 218.1e6 + 2 * 4096 * 4096
    assert eagle.weight_bytes == pytest.approx(2 * layer, rel=0.01)
    assert eagle.kv_bytes_per_token == kv_per_token(PLAIN) / 32
    read = 2 * (layer + 128_256 * 4096) / (0.8 * H100.memory_bandwidth)
    assert eagle.draft(1, 100, 0, 4, 3) == pytest.approx(3 * read, rel=0.1)
    medusa = MedusaHeads(PLAIN, 4)
    assert medusa.weight_bytes == 4 * 2 * 4096 * (4096 + 128_256)
    assert medusa.draft(1, 100, 0, 64, 4) == pytest.approx(medusa.weight_bytes / (0.8 * H100.memory_bandwidth), rel=0.1)
    assert medusa.kv_bytes_per_token == 0
    assert Lookup(1e-3).draft(2, 5, 0, 3, 2) == 1e-3


def test_drafts_take_memory_from_the_kv_cache() -> None:
    plan = memory_plan(LLAMA, H100)
    eagle = head(PLAIN, quantized=False, per_level=1, parallel=False)
    less = beside(plan, eagle.weight_bytes, eagle.kv_bytes_per_token, given_blocks=False)
    assert less.block_bytes == pytest.approx(plan.block_bytes * 33 / 32)
    room = plan.kv_cache_bytes - eagle.weight_bytes
    assert less.num_gpu_blocks == room // less.block_bytes
    assert sum(size for _, size in less.terms) == plan.total_bytes
    with pytest.raises(HardwareError, match="too little for one request"):
        beside(plan, plan.kv_cache_bytes, 0.0, given_blocks=False)
    assert beside(plan, 0, 0.0, given_blocks=False) == replace(plan, kv_cache_bytes=plan.kv_cache_bytes)


def test_weights_that_are_copied_are_copied_once_for_all_queries() -> None:
    """Half of the 7e9 parameters in the layers, 16 bits each, over PCIe: however many tokens are verified."""
    link = Deployment(offload=Offload(weights_host=0.5))
    half = OffloadedCost(LLAMA, PLAIN.operators, link, QUIET)
    one, tree = (verifying(half, n).decode(1, 1000, 0, 0).first for n in (1, 21))
    assert one == pytest.approx(7.0e9 / link_bandwidth(H100, None), rel=0.05)
    assert tree == pytest.approx(one, rel=0.02)
