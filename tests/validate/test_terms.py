"""Terms that validation found missing: what each changes, and what it leaves alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from profiler.validate.document import BEGIN, END, replace_between, table
from profiler.validate.fit_overhead import JOBS, RANGES
from profiler.validate.residuals import Metric
from simulator.cost.marlin import marlin_experts
from simulator.cost.overhead import EngineOverhead
from simulator.cost.roofline import Roofline, RooflineCost
from simulator.hardware.gpu import gpu
from simulator.model.catalogue import model
from simulator.model.formats import weight_format

LLAMA = model("llama-3.1-8b")


def test_marlin_waits_for_the_same_weights_and_multiplies_more_slowly() -> None:
    operators, shapes = Roofline(gpu("h200")), [(5760, 2880), (2880, 2880)]

    def seconds(tokens: int) -> tuple[float, float]:
        plain = operators.experts(tokens, 4.0, 128, shapes, weight_format("mxfp4"), 2.0).seconds
        return marlin_experts(operators, tokens, 4.0, 128, shapes, 2.0).seconds, plain

    few, plain = seconds(64)
    assert few == pytest.approx(plain)
    times = [seconds(n)[0] for n in (1, 64, 512, 1024, 2048, 4096, 8192)]
    assert times == sorted(times)
    assert all(marlin >= other for marlin, other in map(seconds, (64, 512, 1024, 8192)))


def test_gpt_oss_under_marlin_keeps_its_bytes() -> None:
    plain, marlin = (RooflineCost(model("gpt-oss-120b"), gpu("h200"), quantization=q) for q in (None, "mxfp4_marlin"))
    assert plain.placed.quantization is not None
    assert marlin.placed.quantization is not None
    assert marlin.placed.quantization.scope == plain.placed.quantization.scope == "experts"
    assert marlin.decode(4, 4000, 4 * 128, 0).first == pytest.approx(plain.decode(4, 4000, 4 * 128, 0).first)


def test_another_overhead_shares_the_kernels() -> None:
    cost = RooflineCost(LLAMA, gpu("h100"))
    slower = cost.with_overhead(replace(cost.overhead, gpu_gap_s=cost.overhead.gpu_gap_s + 1e-3))
    assert slower.decode(64, 64_000, 0, 0).first == pytest.approx(cost.decode(64, 64_000, 0, 0).first + 1e-3)
    assert slower.mixed(8, 8000, 0, [(512, 0)], 9) == pytest.approx(cost.mixed(8, 8000, 0, [(512, 0)], 9) + 1e-3)


def test_launching_bounds_a_prefill_above_the_captured_sizes_alone() -> None:
    small, slow = model("qwen2.5-1.5b"), EngineOverhead(launch_s=5e-5)
    cost = RooflineCost(small, gpu("h100"), overhead=slow)
    pieces, eager = (cost.mixed(0, 0, 0, [(n, 0)], 1) for n in (512, 513))
    assert eager > 2 * pieces
    assert eager == pytest.approx(slow.serial_s(1) + slow.floor_s(1, cost._launches(513)))
    full = EngineOverhead(launch_s=5e-5, full_graphs=False)
    decode = [RooflineCost(small, gpu("h100"), overhead=o).decode(1, 100, 0, 0).first for o in (slow, full)]
    assert decode[1] > decode[0]


def test_what_a_client_sees_grows_with_its_prompt() -> None:
    overhead = EngineOverhead(api_request_s=5e-3, api_token_s=4e-6)
    assert overhead.request_s(1000.0) == pytest.approx(9e-3)


def test_fitted_parameters_have_ranges_and_jobs_fit_what_they_name() -> None:
    for job in JOBS:
        assert set(job.free) <= set(RANGES)
        assert all(low <= start <= high for low, high, start in RANGES.values())


def test_the_page_is_rewritten_between_its_markers_alone() -> None:
    found = {"requests.ttft.mean.error": Metric("requests.ttft.mean.error", -3.0, "%", 2.0)}
    lines = table(found)
    assert any("-3.0 %" in line and "(missed)" in line for line in lines)
    assert any("not run" in line for line in lines)
    page = replace_between(f"before\n{BEGIN}\nold\n{END}\nafter\n", lines)
    assert page.startswith("before\n")
    assert page.endswith(f"{END}\nafter\n")
    assert "old" not in page
    assert replace_between(page, lines) == page
