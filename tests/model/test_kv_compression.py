"""Smaller KV caches: what they store, what a decode reads, and that the price says so."""

from __future__ import annotations

from dataclasses import replace

import pytest

from simulator.core.errors import UserError
from simulator.cost.calibrated import cost_model
from simulator.cost.calibration import choose
from simulator.cost.kv_reads import decode_curve
from simulator.cost.memory import kv_bytes_per_token, memory_plan
from simulator.cost.overhead import EngineOverhead
from simulator.cost.placement import Deployment
from simulator.cost.roofline import Roofline
from simulator.cost.shapes import attention_shape, decode_physics
from simulator.hardware.gpu import gpu
from simulator.model.catalogue import model
from simulator.model.compress import compressed
from simulator.model.kv_compression import PRESETS, KvCompression, extra_blocks, kv_preset

LLAMA = model("llama-2-7b")
A100 = gpu("A100-SXM-80GB")


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("kivi-2bit", 3 / 16, 3 / 16),  # 2 bits, and 32 bits per 32 elements
        ("kivi-4bit", 5 / 16, 5 / 16),
        ("gear-2bit", 0.2, 0.31),
        ("minicache", 0.74, 0.78),
        ("minicache-4bit", 0.195, 0.21),  # 5.02 times
        ("h2o", 0.2, 0.2),
        ("keyformer", 0.5, 0.5),
        ("streaming-llm", 1, 1),
        ("infinigen", 1.15, 1.15),
    ],
)
def test_bytes_per_token_are_the_papers(name: str, low: float, high: float) -> None:
    small = kv_bytes_per_token(compressed(LLAMA, kv_preset(name)))
    assert low - 1e-9 <= small / kv_bytes_per_token(LLAMA) <= high + 1e-9


def test_the_cache_holds_as_many_more_tokens() -> None:
    whole = memory_plan(LLAMA, A100).kv_tokens
    assert memory_plan(compressed(LLAMA, kv_preset("kivi-2bit")), A100).kv_tokens / whole == pytest.approx(16 / 3, 1e-3)
    assert memory_plan(compressed(LLAMA, kv_preset("h2o")), A100).kv_tokens / whole == pytest.approx(5, 1e-3)


def test_residual_tokens_are_blocks_beside() -> None:
    """128 tokens at 2 bytes instead of 3/8 of a byte are 555 tokens more: 35 blocks of 16."""
    assert extra_blocks(kv_preset("kivi-2bit"), 2.0, 16) == 35
    assert extra_blocks(KvCompression(bits=8), 2.0, 16) == 0


def test_a_decode_reads_what_is_kept_and_dequantises_it() -> None:
    """By hand, from the straight line of the data sheet: 64 requests over 1,000 tokens each."""
    operators, n, context = Roofline(A100), 64, 64_000
    shape = attention_shape(LLAMA.layers[0].attention, 1, "float16", 2.0)
    whole = operators.decode_attention(shape, n)
    kept = replace(shape, kv=KvCompression(keep=0.2))
    assert decode_curve(operators, kept, n).at(context) == pytest.approx(whole.at(0.2 * context))
    assert decode_physics(kept, n, context)[1] == pytest.approx(decode_physics(shape, n, 0.2 * context)[1])
    narrow = replace(shape, bytes_per_context=shape.bytes_per_context / 4, kv=KvCompression(bits=4, dequant_ops=4))
    elements, ordinary = 2 * 32 * 128, 19.5e12 / 2
    expected = operators.decode_attention(narrow, n).at(context) + context * elements * 4 / ordinary
    assert decode_curve(operators, narrow, n).at(context) == pytest.approx(expected)
    copied = replace(shape, kv=KvCompression(rewrite=1.0))
    moved = context * 2 * shape.bytes_per_context
    per_byte = 1 / (A100.memory_bandwidth * 0.7)
    assert decode_curve(operators, copied, n).at(context) == pytest.approx(whole.at(context) + moved * per_byte)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("calibration", ["roofline", "auto"])
def test_a_span_costs_what_its_steps_cost(name: str, calibration: str) -> None:
    """Windows, bends of the fit and the fixed part of a request included."""
    served = compressed(LLAMA, kv_preset(name))
    cost = cost_model(served, A100, choose(calibration, A100), Deployment())
    window, batch, length = cost.sliding_window, 48, 1500
    growing = 0 if window is None or length >= window else batch
    for longer in (0, 1, 200):
        seen = [0 if window is None else batch * min(length + k, window) for k in (longer, longer + 1)]
        line = cost.decode(batch, batch * (length + longer), seen[0], growing)
        if line.valid_steps > 1:
            after = cost.decode(batch, batch * (length + longer + 1), seen[1], growing)
            assert after.first == pytest.approx(line.first + line.increment, rel=1e-9)


def test_what_compression_means_nothing_to_is_refused() -> None:
    with pytest.raises(UserError, match="keys and values per head"):
        compressed(model("deepseek-v3"), kv_preset("h2o"))
    with pytest.raises(UserError, match="sliding window of 4096"):
        compressed(model("mistralai/Mistral-7B-v0.1"), kv_preset("streaming-llm"))
    with pytest.raises(UserError, match="unknown KV compression 'kivi'"):
        kv_preset("kivi")


def test_kernels_beside_attention_are_launched_by_the_cpu() -> None:
    """Without CUDA graphs the CPU launches them too: three more a layer at a second each."""
    slow = EngineOverhead(launch_s=1.0, graph_sizes=())
    served = [LLAMA, compressed(LLAMA, KvCompression(kernels=3))]
    plain, more = (cost_model(m, A100, None, Deployment(), slow).decode(1, 100, 0, 0).first for m in served)
    assert more - plain == pytest.approx(3 * 32)
