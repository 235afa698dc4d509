"""The GPU catalogue: plausible, sourced, and found by the names people use."""

from __future__ import annotations

import csv
import pickle
import re
import statistics
from pathlib import Path

import pytest
import yaml

from simulator.core.errors import HardwareError
from simulator.hardware.gpu import GIB, gpu, gpus

SHARED = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"


def test_names_and_aliases() -> None:
    assert gpu("h100").name == "H100-SXM"
    assert gpu("NVIDIA A100-SXM-80GB") is gpu("a100")
    assert gpu("rtx_pro_6000_server").name == "RTX-PRO-6000"
    with pytest.raises(HardwareError, match=r"Did you mean 'H100-SXM'"):
        gpu("h1000")
    claimed = [alias.lower() for g in gpus().values() for alias in g.aliases]
    assert len(claimed) == len(set(claimed))


@pytest.mark.parametrize("name", [g.name for g in gpus().values() if g.vendor != "any"])  # it has a test of its own
def test_every_figure_is_plausible_and_sourced(name: str) -> None:
    g = gpus()[name]
    assert 10 * GIB < g.memory_bytes < 300 * GIB
    assert 2e11 < g.memory_bandwidth < 1e13
    assert 5e13 < g.peak("bf16")[1] < 3e15
    assert g.peak("fp8")[1] >= g.peak("bf16")[1]
    assert 0 < g.idle_w < g.tdp_w
    assert g.link.bandwidth < g.memory_bandwidth
    assert g.source
    assert g.price_per_hour is None or 0.1 < g.price_per_hour < 20
    assert pickle.loads(pickle.dumps(g)) == g  # sweeps cross processes


def test_a_cpu_core_is_listed_with_what_was_measured_on_one() -> None:
    core = gpu("cpu")
    assert core.peak("fp32") == ("fp32", pytest.approx(195e9))
    assert core.peak("fp8")[0] == "bf16"
    assert core.peak("bf16")[1] < core.peak("fp32")[1]  # without matrix units, conversion costs more than it saves
    assert core.memory_bandwidth == pytest.approx(26e9)
    assert "profiler/campaigns/cpu.yaml" in core.source


def test_formats_without_tensor_cores_fall_back() -> None:
    assert gpu("a100").peak("fp8") == ("bf16", 312e12)
    assert gpu("v100").peak("bf16") == ("fp16", 125e12)
    assert gpu("h100").peak("mxfp4")[0] == "bf16"
    assert gpu("b200").peak("mxfp4")[0] == "fp8"
    assert gpu("b200").peak("fp4") == ("fp4", 9000e12)


def test_groups_beyond_a_node_use_the_network() -> None:
    assert gpu("h100").group_link(8).kind == "nvlink"
    assert gpu("h100").group_link(16).kind == "network"


SYSTEMS = {
    "a100_sxm": "a100", "b200_sxm": "b200", "b300_sxm": "b300", "gb200": "gb200", "h100_sxm": "h100",
    "h200_sxm": "h200", "l40s": "l40s", "rtx_pro_6000_server": "rtx_pro_6000",
}  # fmt: skip


@pytest.mark.skipif(not (SHARED / "kernels").is_dir(), reason="reference kernel data is not in this checkout")
@pytest.mark.parametrize("folder", SYSTEMS)
def test_peaks_agree_with_an_independent_list(folder: str) -> None:
    node = yaml.safe_load((SHARED / "kernels" / folder / "system.yaml").read_text())
    g = gpu(SYSTEMS[folder])
    assert g.memory_bandwidth == pytest.approx(node["gpu"]["mem_bw"], rel=0.01)
    assert g.peak_flops["bf16"] == pytest.approx(node["gpu"]["bfloat16_tc_flops"], rel=0.01)
    assert g.link.bandwidth == pytest.approx(node["node"]["intra_node_bw"], rel=0.01)
    assert g.tdp_w == node["gpu"]["power"]
    assert 0.97 < g.memory_bytes / node["gpu"]["mem_capacity"] <= 1.0


PRICES = SHARED / "traces" / "price" / "gpu_hourly_2026-05-24.csv"


@pytest.mark.skipif(not PRICES.is_file(), reason="the price list is not in this checkout")
@pytest.mark.parametrize(
    ("name", "substring", "memory"), [("l40s", "L40S", 48), ("h200", "H200", 141), ("l4", "L4", 24)]
)
def test_prices_are_medians_of_the_dated_list(name: str, substring: str, memory: int) -> None:
    with PRICES.open(newline="") as file:
        offers = [
            float(row["price_usd_hour"]) for row in csv.DictReader(file)
            if row["gpu_model"].endswith(substring) and row["vram_gb"] == str(memory)
            and row["tier"] == "on-demand" and row["is_spot"] == "False"
        ]  # fmt: skip
    assert gpu(name).price_per_hour == pytest.approx(statistics.median(offers), rel=0.02)


@pytest.mark.skipif(not PRICES.is_file(), reason="the price list is not in this checkout")
@pytest.mark.parametrize(
    ("name", "pattern", "memory"), [("h100", "H100 SXM", 80), ("h200", "H200 SXM", 141), ("a100", "A100.* SXM", 80), ("l40s", "L40S", 48)]
)
def test_spot_prices_are_medians_of_the_interruptible_offers(name: str, pattern: str, memory: int) -> None:
    with PRICES.open(newline="") as file:
        offers = [
            float(row["price_usd_hour"]) for row in csv.DictReader(file)
            if re.search(pattern, row["gpu_model"]) and row["vram_gb"] == str(memory) and row["tier"] == "spot"
        ]  # fmt: skip
    assert gpu(name).spot_price_per_hour == pytest.approx(statistics.median(offers), abs=0.0051)


def test_reserved_costs_less_than_on_demand_and_spot_less_again() -> None:
    for g in gpus().values():
        prices = [g.price("on-demand"), g.price("reserved"), g.price("spot")]
        assert (prices[0] is None) == (prices[1] is None)
        known = [price for price in prices if price is not None]
        assert known == sorted(known, reverse=True)
