"""Shipped calibrations obey physics on dense grids, whatever was measured."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from simulator.core.errors import CalibrationError
from simulator.cost.calibrated import Calibrated, cost_model
from simulator.cost.calibration import TRANSFER, choose, describe, find, read_calibration, shipped
from simulator.cost.laws import gemm_points
from simulator.cost.placement import Deployment
from simulator.cost.roofline import Roofline
from simulator.cost.shapes import AttentionShape, attention_shape, decode_physics, prefill_physics
from simulator.hardware.gpu import gpu, gpus
from simulator.model.architecture import Attention, LatentAttention
from simulator.model.catalogue import model
from simulator.model.formats import weight_format

OWN = sorted(shipped())
TOKENS = [*range(1, 513), *range(640, 16385, 128), 40_000, 200_000]
LLAMA = Attention(num_heads=32, num_kv_heads=8, head_dim=128)
DEEPSEEK = LatentAttention(128, 1536, 512, 128, 64, 128)


@pytest.fixture(params=OWN)
def calibrated(request: pytest.FixtureRequest) -> Calibrated:
    card = gpu(request.param)
    found = find(card)
    assert found is not None
    return Calibrated(card, found)


def rises(values: Iterator[float]) -> bool:
    return all(b >= a * (1 - 1e-12) for a, b in pairwise(values))


def shapes(calibrated: Calibrated) -> list[AttentionShape]:
    found = [attention_shape(LLAMA, tp, kv, 2.0) for tp, kv in ((1, "bfloat16"), (8, "fp8"))]
    if ("latent_decode", "bf16") in calibrated.calibration.fits:
        found.append(attention_shape(DEEPSEEK, 8, "bfloat16", 2.0))
    return found


def test_the_gpus_that_people_rent_ship() -> None:
    assert {"A100-SXM-80GB", "B200", "GB200", "H100-SXM", "H200-SXM", "L40S", "RTX-PRO-6000"} <= set(OWN)


@pytest.mark.parametrize("name", OWN)
def test_a_file_is_small_and_says_where_it_comes_from(name: str) -> None:
    path = shipped()[name]
    assert path.stat().st_size < 450_000  # with the two formats that Blackwell alone multiplies
    found = read_calibration(path)
    assert found.gpu == name
    assert all(p["source"] and p["licence"] for p in found.provenance)
    core = gpu(name).vendor == "any"  # of a CPU: smaller heads, nothing to talk to
    least = (
        {"gemm fp32", "decode_attention 64/fp32"} if core else {"gemm bf16", "decode_attention 128/bf16", "all_reduce"}
    )
    assert least <= set(found.errors())
    assert all(0.0 < e.mean < 0.5 and e.folds >= 2 for e in found.errors().values())


@pytest.mark.parametrize("fmt", ["bfloat16", "fp8", "nvfp4", "int4"])
@pytest.mark.parametrize(("n", "k"), [(6144, 4096), (28672, 8192), (1000, 777), (151936, 4096)])
def test_products_rise_with_tokens_and_never_beat_the_gpu(calibrated: Calibrated, fmt: str, n: int, k: int) -> None:
    form = weight_format(fmt)
    peak = calibrated.gpu.peak(form.math)[1]
    prices = [calibrated.gemm(m, n, k, form, 2.0) for m in TOKENS]
    assert rises(p.seconds for p in prices)
    for m, p in zip(TOKENS, prices, strict=True):
        weights = n * k * form.bytes_per_weight(k)
        assert p.seconds >= 0.999 * max(2.0 * m * n * k / peak, weights / calibrated.gpu.memory_bandwidth)


@pytest.mark.parametrize("fmt", ["bfloat16", "fp8"])
def test_products_are_priced_as_they_were_fitted(calibrated: Calibrated, fmt: str) -> None:
    """Making prices rise must not undo the fit, even where one token takes a slower kernel than two (fp8, Blackwell)."""
    fit = calibrated.calibration.fits.get(("gemm", {"bfloat16": "bf16"}.get(fmt, fmt)))
    if fit is None:
        return
    form, tokens = weight_format(fmt), np.array([2, 8, 32, 64, 128, 256])
    for n, k in ((2560, 8192), (14336, 4096)):
        same = np.ones(len(tokens))
        fitted = fit.seconds(
            calibrated.calibration.ceilings, gemm_points(1.0 * tokens, n * same, k * same, form.bytes_per_weight(k))
        )
        priced = np.array([calibrated.gemm(int(m), n, k, form, 2.0).seconds for m in tokens])
        assert np.abs(np.log(priced / fitted)).mean() < 0.12, (n, k)


@pytest.mark.parametrize("fmt", ["bfloat16", "fp8", "mxfp4"])
@pytest.mark.parametrize(
    ("experts", "visits", "hidden", "inter"), [(8, 2, 4096, 14336), (128, 8, 2048, 768), (32, 1.0, 7168, 2048)]
)
def test_experts_rise_with_tokens_and_never_beat_the_gpu(
    calibrated: Calibrated, fmt: str, experts: int, visits: float, hidden: int, inter: int
) -> None:
    form = weight_format(fmt)
    peak = calibrated.gpu.peak(form.math)[1]
    both = [(2 * inter, hidden), (hidden, inter)]
    prices = [calibrated.experts(m, visits, experts, both, form, 2.0) for m in TOKENS]
    assert rises(p.seconds for p in prices)
    for m, p in zip(TOKENS, prices, strict=True):
        assert p.seconds >= 0.999 * 6.0 * m * visits * hidden * inter / peak


def test_decode_attention_rises_with_context_and_batch(calibrated: Calibrated) -> None:
    card = calibrated.gpu
    for shape in shapes(calibrated):
        batches = [1, 2, 3, 5, 8, 13, 32, 33, 64, 100, 256, 511, 1024, 5000]
        contexts = np.unique(np.rint(np.geomspace(1, 300_000, 60))).tolist()
        curves = {n: calibrated.decode_attention(shape, n) for n in batches}
        for n, curve in curves.items():
            assert rises(curve.at(n * c) for c in contexts)
            for c in contexts:
                flops, size = decode_physics(shape, n, n * c)
                least = max(flops / card.peak("bf16")[1], size / card.memory_bandwidth)
                assert curve.at(n * c) >= 0.97 * least  # straight lines between knots cut a corner of at most 3 %
        for c in contexts:
            assert rises(curves[n].at(n * c) for n in batches)


def test_a_curve_has_no_jumps(calibrated: Calibrated) -> None:
    for shape in shapes(calibrated):
        curve = calibrated.decode_attention(shape, 48)
        for knot in curve.knots:
            assert curve.at(knot) == pytest.approx(curve.at(knot * (1 + 1e-9)), rel=1e-6)


def test_chunks_rise_with_tokens_and_cached_context(calibrated: Calibrated) -> None:
    card = calibrated.gpu
    for shape in shapes(calibrated):
        chunk, launch = calibrated.prefill_attention(shape), calibrated.prefill_launch(shape)
        news, cached = (
            [1, 2, 7, 16, 17, 100, 512, 1000, 2048, 8192, 100_000],
            [0, 1, 15, 100, 1024, 5000, 131_072, 900_000],
        )
        for c in cached:
            assert rises(chunk(n, c) for n in news)
        for n in news:
            assert rises(chunk(n, c) for c in cached)
            for c in cached:
                flops, size = prefill_physics(shape, n, c)
                least = max(flops / card.peak("bf16")[1], (size - shape.bytes_per_chunk) / card.memory_bandwidth)
                assert launch + chunk(n, c) >= 0.97 * least


def test_beyond_the_last_knot_work_sets_the_pace(calibrated: Calibrated) -> None:
    shape = attention_shape(LLAMA, 1, "bfloat16", 2.0)
    chunk = calibrated.prefill_attention(shape)
    ratio = prefill_physics(shape, 600_000, 0)[0] / prefill_physics(shape, 300_000, 0)[0]
    assert chunk(600_000, 0) / chunk(300_000, 0) == pytest.approx(ratio, rel=0.01)


def test_collectives_rise_with_size(calibrated: Calibrated) -> None:
    for ranks in (2, 4, 6, 8):
        for price in (calibrated.all_reduce, calibrated.all_gather):
            assert rises(price(float(s), ranks).seconds for s in np.geomspace(64, 4e9, 80))


def test_a_chunk_costs_about_a_microsecond_to_price(calibrated: Calibrated) -> None:
    chunk = calibrated.prefill_attention(attention_shape(LLAMA, 1, "bfloat16", 2.0))
    best = min(_timed(chunk) for _ in range(5))
    assert best < 5e-6  # 0.5 on an idle machine


def _timed(chunk: object, calls: int = 2000) -> float:
    start = time.process_time()
    for i in range(calls):
        chunk(512 + i % 97, 3 * i)  # type: ignore[operator]
    return (time.process_time() - start) / calls


@pytest.mark.parametrize("name", [n for n, twin in TRANSFER.items() if twin in OWN])
def test_a_borrowed_calibration_says_so_and_obeys_the_borrowers_ceilings(name: str) -> None:
    card = gpu(name)
    found = choose("auto", card)
    assert found is not None
    assert found.transferred_from
    said = describe(card, found, {})
    assert "error is unknown" in said["transferred_from"]
    price = Calibrated(card, found).gemm(4096, 8192, 8192, weight_format("bfloat16"), 2.0)
    assert price.seconds >= 2.0 * 4096 * 8192 * 8192 / card.peak("bf16")[1]


def test_a_gpu_that_nothing_was_measured_on_falls_back_to_its_data_sheet() -> None:
    card = gpu("MI300X")
    assert choose("auto", card) is None
    cost = cost_model(model("Llama-3.1-8B"), card, None, Deployment())
    assert isinstance(cost.operators, Roofline)
    assert describe(card, None, {})["stated_error"] == "unknown"


def test_what_is_not_measured_is_said_once() -> None:
    card = gpu("A100-SXM-80GB")
    found = find(card)
    assert found is not None
    calibrated = Calibrated(card, found)
    for _ in range(3):
        calibrated.gemm(8, 4096, 4096, weight_format("int4"), 2.0)
        calibrated.decode_attention(attention_shape(DEEPSEEK, 8, "bfloat16", 2.0), 4)
    assert set(calibrated.notes) == {"gemm int4", "latent attention"}


def test_experts_slower_than_in_16_bits_are_said() -> None:
    """What the tables of Hopper hold for fp8 with one scale per tensor, and for no other narrow format."""
    shapes = [(28672, 4096), (4096, 14336)]
    for card, fmt, slower in (("H200-SXM", "fp8", True), ("H200-SXM", "fp8_block", False), ("B200", "fp8", False)):
        found = find(gpu(card))
        assert found is not None
        priced = Calibrated(gpu(card), found)
        priced.experts(8, 2.0, 8, shapes, weight_format(fmt), 2.0)
        assert ("times the 16-bit" in priced.notes.get(f"experts {fmt}", "")) == slower


def test_a_name_that_is_no_calibration_gets_a_remedy() -> None:
    with pytest.raises(CalibrationError, match="H100-SXM") as error:
        choose("H100-SXN", gpu("H100-SXM"))
    assert "windtunnel calibrate" in str(error.value)


@pytest.mark.parametrize("damage", ["{", "[]", '{"schema": 99}', "cut", "coefficients"])
def test_a_damaged_file_is_an_error_of_the_user(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "c.json"
    text = shipped()["A100-SXM-80GB"].read_text()
    if damage == "cut":
        row = json.loads(text)
        del row["fits"][0]["constants"]
        damage = json.dumps(row)
    elif damage == "coefficients":
        row = json.loads(text)
        row["fits"][0]["surfaces"][0]["int16"] = "AAAA"
        damage = json.dumps(row)
    path.write_text(damage)
    with pytest.raises(CalibrationError):
        read_calibration(path)


def test_every_gpu_of_the_catalogue_has_an_answer() -> None:
    for card in gpus().values():
        choose("auto", card)
