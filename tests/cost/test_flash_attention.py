"""FlashAttention-2 deals one thread block per head and sequence: what that costs, against measurements and by dealing."""

from __future__ import annotations

from heapq import heapify, heapreplace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.cost.breakdown import breakdown
from simulator.cost.flash_attention import CHIPS, MEASURED, blocks_of, fuses
from simulator.cost.roofline import RooflineCost
from simulator.cost.shapes import attention_shape
from simulator.hardware.gpu import gpu, gpus
from simulator.model.catalogue import model

LLAMA = model("llama-3.1-8b")
SHAPE = attention_shape(LLAMA.layers[0].attention, 1, "bfloat16", 2.0)
RTX = gpu("rtxpro6000")
KEY_S = MEASURED.packed_s
BANDWIDTH = 1.5e12  # bytes/s that its decode attention reaches


def dealt(lengths: np.ndarray, heads: int, slots: int, keys_per_s: float) -> float:
    """Seconds until the last block is done: dealt head by head to whoever is free; a block alone reads ``1 / KEY_S``
    keys a second, all of them together ``keys_per_s``."""
    work = np.tile(lengths.astype(float), heads)
    busy = list(work[:slots])
    heapify(busy)
    for keys in work[slots:]:
        heapreplace(busy, busy[0] + keys)
    ends = np.sort(busy)
    rate = np.minimum(1 / KEY_S, keys_per_s / np.arange(len(ends), 0, -1))
    return float((np.diff(ends, prepend=0.0) / rate).sum())


def spread(lengths: np.ndarray) -> tuple[int, int, int]:
    return int(lengths.sum()), int(lengths.max()), int((lengths.astype(np.int64) ** 2).sum())


@pytest.mark.parametrize("sequences", [48, 64, 128, 256])
@pytest.mark.parametrize("kind", ["one long", "exponential", "uniform"])
def test_the_tail_is_what_dealing_blocks_out_leaves(sequences: int, kind: str) -> None:
    """On average over the order of the batch, within 4 % of attention; equal prices are up to 30 % off."""
    law = blocks_of(RTX, SHAPE)
    assert law is not None
    draw = np.random.default_rng(7)
    errors, without = [], []
    for _ in range(10):
        lengths = {
            "one long": np.r_[3400, draw.uniform(600, 1000, sequences - 1)],
            "exponential": draw.exponential(1000, sequences) + 20,
            "uniform": draw.uniform(200, 1800, sequences),
        }[kind].round()
        context, longest, squares = spread(lengths)
        measured = dealt(draw.permutation(lengths), SHAPE.kv_heads, 188, BANDWIDTH / 512)
        equal = context * SHAPE.bytes_per_context / BANDWIDTH
        equal += 0.25 * KEY_S * context / sequences  # equal blocks end together but for their last wave
        errors.append((equal + KEY_S * law.ahead(context, longest, squares)) / measured - 1)
        without.append(equal / measured - 1)
    assert abs(np.mean(errors)) < 0.04
    assert abs(np.mean(errors)) < 0.3 * abs(np.mean(without)) + 0.02


def test_the_tail_of_batches_measured_with_one_sequence_four_times_as_long() -> None:
    """LLMServingSim's uneven batches on an RTX PRO 6000, pure decodes: (sequences, short, measured over equal)."""
    cost = blocks_of(RTX, SHAPE)
    assert cost is not None
    for sequences, short, mean_us, uneven_us in (
        (32, 1024, 384.0 / 3, 384.4 / 3), (64, 512, 394.9 / 3, 473.6 / 3), (64, 1024, 681.9 / 3, 844.8 / 3),
        (64, 2048, 1237.8 / 3, 1551.3 / 3), (128, 1024, 1236.6 / 3, 1357.2 / 3), (256, 1024, 2277.0 / 3, 2374.1 / 3),
    ):  # fmt: skip
        lengths = np.array([4 * short] + [short] * (sequences - 1)) + 1
        tail = cost.tail_s(sequences) * cost.ahead(*spread(lengths))
        # The long one came first there, the kindest order: the price is of any order, and 1 to 2 % more.
        assert (mean_us * 1e-6 + tail) / (uneven_us * 1e-6) == pytest.approx(1.01, abs=0.025), (sequences, short)


def test_mixed_batches_as_measured() -> None:
    """Decodes of equal length beside a chunk: (decodes, context, chunk) -> microseconds of attention beyond the chunk's,
    LLMServingSim on an RTX PRO 6000."""
    law = blocks_of(RTX, SHAPE)
    assert law is not None
    for decodes, each, chunk, measured in (
        (16, 512, 16, 41), (32, 1024, 16, 158), (64, 16, 2048, 164), (64, 512, 512, 196), (64, 1024, 2048, 397),
        (128, 256, 16, 234), (128, 512, 16, 380), (128, 512, 2048, 571), (128, 1024, 16, 664), (128, 1024, 1024, 764),
        (128, 2048, 256, 1544), (128, 8192, 16, 8715),
    ):  # fmt: skip
        context = decodes * (each + 1)
        alone = context * SHAPE.bytes_per_context / BANDWIDTH
        seconds = law.beside(decodes)(alone, context, 0, 0, chunk, 1e-5)
        assert seconds == pytest.approx(measured * 1e-6, rel=0.2), (decodes, each, chunk)


def test_few_decodes_run_beside_the_chunk_and_cost_nothing_more() -> None:
    law = blocks_of(RTX, SHAPE)
    assert law is not None
    assert law.beside(2)(1e-5, 1000, 500, 500_000, 16, 1e-3) == 0.0  # 96 blocks on 188 SMs, the chunk's are longer
    assert law.beside(2)(1e-5, 1000, 500, 500_000, 16, 0.0) > 1e-5
    assert law.beside(2)(1e-5, 1000, 500, 500_000, 2048, 1e-3) > 1e-5  # the chunk fills the GPU by itself


lengths = st.lists(st.integers(1, 20_000), min_size=1, max_size=300)


@settings(max_examples=200, deadline=None)
@given(lengths=lengths, name=st.sampled_from(["rtxpro6000", "l40s", "a100"]), chunk=st.integers(1, 4096))
def test_unequal_lengths_never_cost_less_and_equal_ones_no_more(lengths: list[int], name: str, chunk: int) -> None:
    cost = COSTS[name]
    n, (context, longest, squares) = len(lengths), spread(np.array(lengths))
    equal = cost.decode(n, context, 0, 0)
    uneven = cost.decode(n, context, 0, 0, longest, squares)
    assert uneven.first >= equal.first * (1 - 1e-12)
    assert uneven.valid_steps >= 1
    assert cost.mixed(n, context, 0, [], n, longest, squares) == uneven.first
    aboard = [cost.mixed(n, context, 0, [(chunk, 100)], n + 1, *s) for s in ((0, 0), (longest, squares))]
    assert aboard[1] >= aboard[0] * (1 - 1e-12) > 0.0
    same = n * longest, longest, n * longest * longest
    assert cost.decode(n, n * longest, 0, 0, *same[1:]).first == pytest.approx(cost.decode(n, n * longest, 0, 0).first)


COSTS = {name: RooflineCost(LLAMA, gpu(name)) for name in ("rtxpro6000", "l40s", "a100", "h100")}


def test_only_where_flash_attention_2_runs() -> None:
    assert not COSTS["h100"].uneven
    assert COSTS["a100"].uneven
    assert blocks_of(gpu("b200"), SHAPE) is None
    latent = model("deepseek-v3")
    assert not RooflineCost(latent, RTX, tensor_parallel_size=8).uneven
    known = {name for name in gpus() if fuses(gpus()[name])}
    assert known
    assert all(any(name.startswith(chip) for chip in CHIPS) for name in known)


def test_a_batch_too_small_to_fill_the_gpu_is_split_and_has_no_tail() -> None:
    cost = COSTS["rtxpro6000"]

    def slower(n: int) -> float:
        context, longest, squares = spread(np.array([4000] + [1000] * (n - 1)))
        return cost.decode(n, context, 0, 0, longest, squares).first / cost.decode(n, context, 0, 0).first

    assert slower(37) == 1.0  # 37 x 8 heads: under 0.8 blocks for each of two per SM
    assert slower(38) > 1.05


def test_a_span_reprices_before_the_spread_has_changed_much() -> None:
    cost = COSTS["rtxpro6000"]
    lengths = np.array([8000] + [200] * 99)
    line = cost.decode(100, *spread(lengths)[:1], 0, 0, *spread(lengths)[1:])
    assert 1 < line.valid_steps < 100
    last = lengths + line.valid_steps - 1
    there = cost.decode(100, *spread(last)[:1], 0, 0, *spread(last)[1:]).first
    assert line.first + line.increment * (line.valid_steps - 1) == pytest.approx(there, rel=0.03)


def test_a_breakdown_shows_what_a_mixed_step_pays() -> None:
    cost = COSTS["rtxpro6000"]
    decodes, context, chunk = 128, 128 * 1024, [(2048, 0)]
    rows = {r.operator: r.seconds for r in breakdown(cost, decodes, context, chunk)}
    alone = {r.operator: r.seconds for r in breakdown(cost, decodes, context)}
    name = "attention decode (softmax)"
    assert 1.5 * alone[name] < rows[name] < 3.0 * alone[name]
    total = sum(r.seconds for r in breakdown(cost, decodes, context, chunk))
    assert total == pytest.approx(cost.mixed(decodes, context, 0, chunk, decodes + 1))
