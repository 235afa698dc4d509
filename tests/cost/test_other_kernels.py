"""Kernels at another speed than those that were measured."""

from __future__ import annotations

import pytest

from simulator.cost.calibrated import Calibrated, cost_model
from simulator.cost.calibration import find
from simulator.cost.other_kernels import KernelSpeed, OtherKernels
from simulator.cost.placement import Deployment
from simulator.cost.roofline import Roofline
from simulator.cost.shapes import attention_shape, prefill_physics
from simulator.hardware.gpu import gpu
from simulator.model.architecture import Attention
from simulator.model.catalogue import model
from simulator.model.formats import weight_format

H100 = gpu("H100-SXM")
BF16 = weight_format("bfloat16")
SHAPE = attention_shape(Attention(num_heads=32, num_kv_heads=8, head_dim=128), 1, "bfloat16", 2.0)


def measured() -> Calibrated:
    found = find(H100)
    assert found is not None
    return Calibrated(H100, found)


def other(**speed: float) -> OtherKernels:
    return OtherKernels(measured(), KernelSpeed(**speed))  # type: ignore[arg-type]  # whole numbers among them


def test_half_the_speed_is_twice_the_time() -> None:
    before, after = measured(), other(gemm=0.5, prefill_attention=0.5, decode_attention=0.5)
    assert after.gemm(512, 4096, 4096, BF16, 2.0).seconds == 2 * before.gemm(512, 4096, 4096, BF16, 2.0).seconds
    chunk, slow = before.prefill_attention(SHAPE), after.prefill_attention(SHAPE)
    assert slow(512, 2000) == 2 * chunk(512, 2000)
    for context in (0.0, 1e4, 1e6, 1e7):
        assert after.decode_attention(SHAPE, 32).at(context) == pytest.approx(
            2 * before.decode_attention(SHAPE, 32).at(context)
        )


def test_nothing_beats_the_peaks() -> None:
    after = other(gemm=1e9, prefill_attention=1e9, decode_attention=1e9)
    price = after.gemm(8192, 8192, 8192, BF16, 2.0)
    assert price.flops / price.seconds == pytest.approx(H100.peak("bf16")[1])
    flops, _ = prefill_physics(SHAPE, 8192, 0)
    assert after.prefill_attention(SHAPE)(8192, 0) >= flops / H100.peak("bf16")[1] * (1 - 1e-12)
    curve = after.decode_attention(SHAPE, 32)
    assert curve.at(2e6) - curve.at(1e6) >= 1e6 * SHAPE.bytes_per_context / H100.memory_bandwidth * (1 - 1e-9)


def test_a_flat_product_alone_is_faster() -> None:
    before, after = measured(), other(gemm=1.1, gemm_max_tokens=8)
    assert after.gemm(8, 4096, 4096, BF16, 2.0).seconds < before.gemm(8, 4096, 4096, BF16, 2.0).seconds
    assert after.gemm(9, 4096, 4096, BF16, 2.0) == before.gemm(9, 4096, 4096, BF16, 2.0)


def test_curves_stay_continuous() -> None:
    curve = other(decode_attention=1.7).decode_attention(SHAPE, 16)
    for i, knot in enumerate(curve.knots):
        here, there = (curve.base[j] + curve.slope[j] * knot for j in (i, i + 1))
        assert here == pytest.approx(there)


def test_as_measured_is_the_calibration_itself() -> None:
    llama = model("meta-llama/Llama-3.1-8B")
    plain = cost_model(llama, H100, find(H100), Deployment(), speed=KernelSpeed(gemm_max_tokens=8))
    assert isinstance(plain.operators, Calibrated)
    faster = cost_model(llama, H100, None, Deployment(), speed=KernelSpeed(communication=2.0, elementwise=2.0))
    step = (32, 32_000, 32_000, 0)
    assert faster.decode(*step).first < cost_model(llama, H100, None, Deployment()).decode(*step).first


def test_two_of_four_weights_are_fewer_bytes() -> None:
    sheet = Roofline(H100)
    dense, sparse = (sheet.gemm(1, 8192, 8192, weight_format(f), 2.0).bytes for f in ("bfloat16", "sparse24"))
    assert sparse / dense == pytest.approx(9 / 16, rel=1e-3)
