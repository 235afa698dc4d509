"""The price of a step: straight lines that equal stepping, monotone, and never faster than the machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.core.errors import HardwareError, ModelError
from simulator.cost.analytic import FixedCost, LinearCost
from simulator.cost.breakdown import HEADERS, breakdown, rendered
from simulator.cost.defaults import batch_defaults, engine_overhead
from simulator.cost.interface import StepCost
from simulator.cost.operators import Curve, sum_curves
from simulator.cost.overhead import EngineOverhead, capture_sizes
from simulator.cost.placement import Deployment, stage_sizes
from simulator.cost.roofline import EFFICIENCY, Roofline, RooflineCost
from simulator.cost.shapes import AttentionShape, attended_pairs, attention_shape, decode_physics, prefill_physics
from simulator.cost.step import OperatorCost
from simulator.hardware.gpu import gpu
from simulator.model.catalogue import model
from simulator.model.config import from_config

DEPLOYMENTS = [
    ("llama-3.1-8b", "h100", 1, 1),
    ("llama-3.1-70b", "a100", 4, 1),
    ("llama-3.1-70b", "h100", 2, 4),
    ("gpt-oss-120b", "h200", 2, 1),
    ("deepseek-v3", "b200", 8, 1),
    ("qwen3-0.6b", "h100", 1, 1),
    ("mixtral-8x7b", "l40s", 8, 1),
]


@cache
def priced(name: str, card: str, tp: int, pp: int) -> RooflineCost:
    return RooflineCost(model(name), gpu(card), tensor_parallel_size=tp, pipeline_parallel_size=pp)


def windowed(cost: StepCost, lengths: Sequence[int]) -> tuple[int, int]:
    """(clipped sum, requests still growing), as the engine keeps them."""
    w = cost.sliding_window
    return (sum(min(n, w) for n in lengths), sum(n < w for n in lengths)) if w else (0, 0)


@given(
    lengths=st.lists(st.integers(1, 20_000), min_size=1, max_size=60),
    steps=st.integers(1, 60),
    which=st.sampled_from(DEPLOYMENTS),
)
@settings(max_examples=150, deadline=None)
def test_a_span_costs_what_its_steps_cost_one_by_one(
    lengths: list[int], steps: int, which: tuple[str, str, int, int]
) -> None:
    cost = priced(*which)
    window = cost.sliding_window
    line = cost.decode(len(lengths), sum(lengths), *windowed(cost, lengths))
    # The engine ends a span when a request reaches the window.
    until_window = min((window - n for n in lengths if n < window), default=steps) if window else steps
    steps = min(steps, line.valid_steps, until_window)
    for j in range(steps):
        grown = [n + j for n in lengths]
        alone = cost.decode(len(grown), sum(grown), *windowed(cost, grown)).first
        assert line.first + line.increment * j == pytest.approx(alone, rel=1e-12)


@pytest.mark.parametrize("which", DEPLOYMENTS)
def test_more_of_anything_never_costs_less(which: tuple[str, str, int, int]) -> None:
    cost = priced(*which)
    w = cost.sliding_window or 0
    batches = [1, 2, 3, 4, 7, 8, 9, 31, 64, 65, 255, 256, 257, 300, 511, 512, 513, 640, 1000]
    by_batch = [cost.decode(n, 400_000, 1000 * min(w, 400), 0).first for n in batches]
    assert by_batch == sorted(by_batch)
    by_context = [cost.decode(64, c, 64 * min(w, 100), 0).first for c in (6_400, 64_000, 640_000, 6_400_000)]
    assert by_context == sorted(by_context)
    chunks = [
        1,
        2,
        15,
        16,
        17,
        100,
        255,
        256,
        257,
        500,
        512,
        513,
        600,
        639,
        640,
        641,
        1024,
        2000,
        2048,
        4096,
        8191,
        8192,
    ]
    by_chunk = [cost.mixed(8, 8000, 8 * min(w, 1000), [(q, 300)], 9) for q in chunks]
    assert by_chunk == sorted(by_chunk)
    by_computed = [cost.mixed(0, 0, 0, [(512, c)], 1) for c in (0, 1, 100, 127, 128, 129, 1000, 10_000, 100_000)]
    assert by_computed == sorted(by_computed)
    by_sampled = [cost.mixed(8, 8000, 8 * min(w, 1000), [(512, 0)], n) for n in (0, 1, 8, 9, 64)]
    assert by_sampled == sorted(by_sampled)


@pytest.mark.parametrize("which", DEPLOYMENTS)
def test_a_mixed_step_without_chunks_is_a_decode_step(which: tuple[str, str, int, int]) -> None:
    cost = priced(*which)
    w = 20 * (cost.sliding_window or 0)
    assert cost.mixed(20, 9000, w, [], 20) == cost.decode(20, 9000, w, 0).first
    # A chunk of one token costs at least what the decode it replaces costs.
    assert cost.mixed(19, 8500, w, [(1, 499)], 20) >= cost.decode(20, 9000, w, 0).first - 20 * 1e-6


@pytest.mark.parametrize("which", DEPLOYMENTS)
@pytest.mark.parametrize(
    ("decodes", "chunks"), [(1, ()), (64, ()), (700, ()), (0, ((8192, 0),)), (33, ((777, 5000), (40, 0)))]
)
def test_the_breakdown_sums_to_the_step_and_obeys_the_peaks(
    which: tuple[str, str, int, int], decodes: int, chunks: tuple[tuple[int, int], ...]
) -> None:
    cost = priced(*which)
    context, clipped = decodes * 2000, decodes * min(2000, cost.sliding_window or 0)
    rows = breakdown(cost, decodes, context, chunks, windowed=clipped)
    total = cost.mixed(decodes, context, clipped, chunks, decodes + len(chunks))
    assert sum(row.seconds for row in rows) == pytest.approx(total, rel=1e-12)
    fastest = max(cost.gpu.peak_flops.values())
    for row in rows:
        assert row.seconds >= row.flops / fastest
        if row.bound != "network":
            assert row.seconds >= 0.999 * row.bytes / cost.gpu.memory_bandwidth
    table = rendered(rows)
    assert len(table) == len(rows) + 1
    assert all(len(line) == len(HEADERS) for line in table)


def test_no_step_beats_reading_the_weights_once_or_the_flops_of_its_tokens() -> None:
    cost = priced("llama-3.1-8b", "h100", 1, 1)
    matrices = (8.03e9 - 2 * 128256 * 4096) + 128256 * 4096
    assert cost.decode(1, 1, 0, 0).first > 2 * matrices / 3.35e12
    assert cost.mixed(0, 0, 0, [(8192, 0)], 1) > 2 * 6.97e9 * 8192 / 989e12


def test_llama_8b_on_h100_is_where_serving_engines_are() -> None:
    """vLLM decodes Llama-3.1-8B in bf16 at 140-150 tokens/s alone on an H100 and prefills 30-45k tokens/s."""
    cost = priced("llama-3.1-8b", "h100", 1, 1)
    assert 6.0e-3 < cost.decode(1, 1000, 0, 0).first < 7.5e-3
    assert 30_000 < 8192 / cost.mixed(0, 0, 0, [(8192, 0)], 1) < 45_000


def test_chunking_a_prompt_keeps_its_attention() -> None:
    whole = attended_pairs(4096, 0, None)
    assert whole == 4096 * 4097 / 2
    assert sum(attended_pairs(512, c, None) for c in range(0, 4096, 512)) == whole


@given(new=st.integers(1, 300), computed=st.integers(0, 300), window=st.one_of(st.none(), st.integers(1, 200)))
@settings(max_examples=200, deadline=None)
def test_pairs_are_counted_as_by_hand(new: int, computed: int, window: int | None) -> None:
    seen = [computed + i + 1 if window is None else min(computed + i + 1, window) for i in range(new)]
    assert attended_pairs(new, computed, window) == sum(seen)


@given(
    new=st.integers(1, 9000),
    computed=st.integers(0, 50_000),
    which=st.sampled_from([("llama-3.1-8b", 1), ("gpt-oss-20b", 1), ("deepseek-v3", 8)]),
)
@settings(max_examples=200, deadline=None)
def test_the_hot_path_formula_equals_the_readable_one(new: int, computed: int, which: tuple[str, int]) -> None:
    operators = Roofline(gpu("h100"))
    for layer in set(model(which[0]).layers):
        shape = attention_shape(layer.attention, which[1], "bfloat16", 2.0)
        flops, size = prefill_physics(shape, new, computed)
        expected = max(flops / (989e12 * 0.55), size / (3.35e12 * 0.75))
        assert operators.prefill_attention(shape)(new, computed) == pytest.approx(expected, rel=1e-9)


def test_linear_attention_does_not_grow_with_context() -> None:
    hybrid = from_config(
        {
            "model_type": "qwen3_next", "hidden_size": 2048, "num_hidden_layers": 4, "num_attention_heads": 16,
            "num_key_value_heads": 2, "head_dim": 256, "intermediate_size": 5120, "vocab_size": 151936,
            "full_attention_interval": 4, "linear_num_key_heads": 16, "linear_num_value_heads": 32,
            "linear_key_head_dim": 128, "linear_value_head_dim": 128, "linear_conv_kernel_dim": 4,
        },
        "hybrid",
    )  # fmt: skip
    shapes = {attention_shape(x.attention, 1, "bfloat16", 2.0) for x in hybrid.layers}
    linear = next(s for s in shapes if s.kind == "linear")
    assert decode_physics(linear, 8, 1e6) == decode_physics(linear, 8, 1.0)
    assert decode_physics(linear, 8, 0)[1] >= 8 * 2 * 32 * 128 * 128 * 4  # each state read and written in fp32
    slow = RooflineCost(hybrid, gpu("l4"))
    assert slow.decode(8, 800_000, 0, 0).increment > 0  # the full-attention layer still does


def test_experts_touched_grow_from_top_k_to_all() -> None:
    moe = priced("mixtral-8x7b", "l40s", 8, 1)
    one, many = (next(r for r in breakdown(moe, n, n * 100) if r.operator == "experts") for n in (1, 1000))
    per_expert = 32 * 3 * 4096 * 14336 / 8 * 2
    assert one.bytes == pytest.approx(2 * per_expert, rel=0.01)
    assert 8 * per_expert < many.bytes < 10 * per_expert  # all of them, and a thousand rows


def test_quantised_weights_and_cache_move_fewer_bytes() -> None:
    llama, h100, alone = model("llama-3.1-70b"), gpu("h100"), (1, 1000, 0, 0)
    times = [
        RooflineCost(llama, h100, tensor_parallel_size=4, quantization=q).decode(*alone).first
        for q in (None, "fp8", "int4")
    ]
    assert times == sorted(times, reverse=True)
    wide = RooflineCost(llama, h100, tensor_parallel_size=4).decode(256, 2_000_000, 0, 0)
    narrow = RooflineCost(llama, h100, tensor_parallel_size=4, kv_cache_dtype="fp8").decode(256, 2_000_000, 0, 0)
    assert narrow.increment == pytest.approx(wide.increment / 2)
    # An A100 has no fp8 units: prefill gains nothing.
    a100 = [
        RooflineCost(model("llama-3.1-8b"), gpu("a100"), quantization=q).mixed(0, 0, 0, [(8192, 0)], 1)
        for q in (None, "fp8")
    ]
    assert a100[1] == pytest.approx(a100[0], rel=0.01)


def test_expert_parallel_holds_whole_experts_and_the_same_work() -> None:
    qwen, h200 = model("qwen3-235b-a22b"), gpu("h200")
    sliced, spread = (
        RooflineCost(qwen, h200, tensor_parallel_size=8, enable_expert_parallel=ep) for ep in (False, True)
    )
    rows = [next(r for r in breakdown(c, 0, 0, [(8192, 0)]) if r.operator == "experts") for c in (sliced, spread)]
    assert rows[0].flops == pytest.approx(rows[1].flops)


def test_a_pipeline_stage_costs_its_share_and_the_hop() -> None:
    llama, h100 = model("llama-3.1-70b"), gpu("h100")
    whole = RooflineCost(llama, h100, tensor_parallel_size=2)
    stage = RooflineCost(llama, h100, tensor_parallel_size=2, pipeline_parallel_size=4)
    share = stage.mixed(0, 0, 0, [(4096, 0)], 1) / whole.mixed(0, 0, 0, [(4096, 0)], 1)
    assert 0.25 < share < 0.27
    assert any(r.operator == "pipeline_send" for r in breakdown(stage, 8, 800))
    assert stage_sizes(61, 4) == (15, 15, 16, 15)
    assert stage_sizes(30, 4) == (7, 8, 8, 7)
    with pytest.raises(ModelError, match="cannot cut"):
        RooflineCost(llama, h100, pipeline_parallel_size=81)


def test_a_small_model_waits_for_the_cpu_and_the_line_says_how_long() -> None:
    cost = RooflineCost(model("qwen3-0.6b"), gpu("h100"), overhead=EngineOverhead(cpu_step_s=2e-3))
    line = cost.decode(4, 400, 0, 0)
    assert line.increment == 0.0
    last, after = (cost.decode(4, 400 + 4 * j, 0, 0) for j in (line.valid_steps - 1, line.valid_steps))
    assert last.first == line.first
    assert after.first > line.first
    assert after.increment > 0
    assert any("waiting for the CPU" in r.operator for r in breakdown(cost, 4, 400))


def test_asynchronous_scheduling_hides_the_cpu() -> None:
    llama, h100 = model("llama-3.1-8b"), gpu("h100")
    hidden, shown = (
        RooflineCost(llama, h100, overhead=EngineOverhead(async_scheduling=a)).decode(64, 64_000, 0, 0).first
        for a in (True, False)
    )
    assert shown - hidden == pytest.approx(0.7e-3 + 64 * 6e-6)


def test_graph_sizes_are_vllms() -> None:
    sizes = capture_sizes()
    assert sizes[:6] == (1, 2, 4, 8, 16, 24)
    assert sizes[-1] == 512
    assert len(sizes) == 3 + 31 + 17
    assert capture_sizes(max_num_seqs=100)[-1] == 200
    assert 100 in capture_sizes(max_num_seqs=100)
    overhead = EngineOverhead()
    assert [overhead.padded(n) for n in (1, 3, 9, 250, 257, 512, 513)] == [1, 4, 16, 256, 272, 512, 513]
    cost = priced("llama-3.1-8b", "h100", 1, 1)
    assert cost.decode(9, 9000, 0, 0).first < cost.decode(16, 16_000, 0, 0).first
    eager = EngineOverhead(graph_sizes=())
    assert eager.padded(9) == 9
    small = [
        RooflineCost(model("qwen3-0.6b"), gpu("h100"), overhead=o).decode(1, 100, 0, 0).first for o in (overhead, eager)
    ]
    assert small[1] > small[0]


def test_defaults_follow_the_gpu() -> None:
    assert (batch_defaults(gpu("b200")).max_num_batched_tokens, batch_defaults(gpu("b200")).max_num_seqs) == (
        16384,
        1024,
    )
    assert (batch_defaults(gpu("h100")).max_num_batched_tokens, batch_defaults(gpu("h100")).max_num_seqs) == (
        8192,
        1024,
    )
    for card in ("a100", "l4", "rtx4090"):
        assert (batch_defaults(gpu(card)).max_num_batched_tokens, batch_defaults(gpu(card)).max_num_seqs) == (2048, 256)
    assert engine_overhead(gpu("b200"), max_num_seqs=1024, max_num_batched_tokens=16384).graph_sizes[-1] == 1024
    assert (
        engine_overhead(gpu("h100"), max_num_seqs=1024, max_num_batched_tokens=8192, enforce_eager=True).graph_sizes
        == ()
    )


def test_bfloat16_where_there_is_none() -> None:
    assert RooflineCost(model("llama-3.1-8b"), gpu("v100")).placed.dtype == "float16"
    with pytest.raises(HardwareError, match="dtype: float16"):
        RooflineCost(model("llama-3.1-8b"), gpu("v100"), dtype="bfloat16")
    with pytest.raises(ModelError, match="quantization: fp8"):
        RooflineCost(model("llama-3.1-8b"), gpu("h100"), dtype="fp8")


class Bent(Roofline):
    """A calibration whose decode attention bends twice: dear, cheap, dear again."""

    def decode_attention(self, shape: AttentionShape, num_decodes: int) -> Curve:
        line = super().decode_attention(shape, num_decodes)
        b, s, k = line.base[0], line.slope[0], (1000.0 * num_decodes, 3000.0 * num_decodes)
        middle = b + (2 * s - s) * k[0]
        return Curve((b, middle, middle - (3 * s - s) * k[1]), (2 * s, s, 3 * s), k)


@pytest.mark.parametrize("name", ["llama-3.1-8b", "gpt-oss-20b"])
def test_prices_that_bend_are_exact_through_valid_steps(name: str) -> None:
    cost = OperatorCost(model(name), Bent(gpu("h100")), Deployment(), EngineOverhead(cpu_step_s=0.0))
    lengths, spans, j = [700, 900, 1100, 5], 0, 0
    while j < 4000:
        grown = [n + j for n in lengths]
        line = cost.decode(4, sum(grown), *windowed(cost, grown))
        until = (
            min((cost.sliding_window - n for n in grown if n < cost.sliding_window), default=4000)
            if cost.sliding_window
            else 4000
        )
        steps = min(line.valid_steps, until)
        for i in (0, steps // 2, steps - 1):
            there = [n + i for n in grown]
            alone = cost.decode(4, sum(there), *windowed(cost, there)).first
            assert line.first + line.increment * i == pytest.approx(alone, rel=1e-12)
        assert cost.mixed(4, sum(grown), windowed(cost, grown)[0], [], 4) == line.first
        spans, j = spans + 1, j + steps
    assert spans >= 3


def test_curves_add_up() -> None:
    a = Curve((0.0, 10.0), (2.0, 1.0), (10.0,))
    b = Curve((1.0,), (0.5,))
    both = sum_curves([(2, a), (3, b)])
    for c in (0.0, 5.0, 10.0, 11.0, 1e6):
        assert both.at(c) == pytest.approx(2 * a.at(c) + 3 * b.at(c))
    assert sum_curves([]).at(123.0) == 0.0


def test_analytic_costs() -> None:
    fixed: StepCost = FixedCost(0.01, 1e-5)
    assert fixed.decode(10, 5000, 0, 0).first == pytest.approx(0.0101)
    assert fixed.mixed(10, 5000, 0, [(100, 0), (50, 100)], 11) == pytest.approx(0.01 + 160e-5)
    linear: StepCost = LinearCost(0.005, 1e-5, 1e-4, 1e-7, 1e-9)
    line = linear.decode(10, 5000, 0, 0)
    assert line.first + line.increment * 3 == pytest.approx(linear.decode(10, 5030, 0, 0).first)
    assert linear.mixed(10, 5000, 0, [], 10) == line.first
    whole = linear.mixed(0, 0, 0, [(1000, 0)], 1)
    halves = linear.mixed(0, 0, 0, [(500, 0)], 0) + linear.mixed(0, 0, 0, [(500, 500)], 1)
    assert halves == pytest.approx(whole + 0.005)  # one more step, the same pairs


def test_a_replaced_efficiency_changes_the_price() -> None:
    slower = {**EFFICIENCY, "gemm": replace(EFFICIENCY["gemm"], memory=0.4)}
    llama, h100 = model("llama-3.1-8b"), gpu("h100")
    assert (
        RooflineCost(llama, h100, efficiency=slower).decode(1, 10, 0, 0).first
        > 1.5 * RooflineCost(llama, h100).decode(1, 10, 0, 0).first
    )
