"""What GPUs and their electricity cost: on demand, reserved, spot; carbon by region and hour."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import pytest

from simulator.core.errors import UserError
from simulator.hardware.gpu import gpu
from simulator.scenario.energy import REGIONS
from simulator.scenario.load import load
from simulator.scenario.run import run

SCENARIO = """
model: Qwen/Qwen2.5-0.5B
hardware: {gpu: H100-SXM}
cluster: {replicas: 2}
workload: {synthetic: {num_requests: 60, arrivals: {process: poisson, rate: 20}, lengths: {prompt: 300, output: 20}}}
energy: {carbon: {region: US-CAL-CISO, start_hour: 18}}
"""
SERIES = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "traces" / "carbon"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "s.yaml"
    found.write_text(SCENARIO)
    return found


def test_a_run_is_paid_at_the_price_that_is_named(path: Path) -> None:
    def paid(*settings: str) -> float:
        return float(run(load(path, list(settings))).summary["cost"]["usd_per_hour"])

    h100, l40s = gpu("H100-SXM"), gpu("L40S")
    assert paid() == pytest.approx(2 * (h100.price("on-demand") or 0))
    assert paid("hardware.pricing=reserved") == pytest.approx(2 * (h100.price("reserved") or 0))
    away = "cluster.faults=[{policy: spot, options: {mean_life_s: 1e9, mean_away_s: 0, warning_s: 0}}]"
    assert paid("hardware.pricing=spot", away) == pytest.approx(2 * (h100.price("spot") or 0))
    mixed = "cluster.groups=[{name: a, replicas: 1}, {name: b, replicas: 1, hardware: {gpu: L40S, pricing: spot}}]"
    both = (h100.price("on-demand") or 0) + (l40s.price("spot") or 0)
    assert paid("cluster.replicas=1", mixed, away) == pytest.approx(both)
    assert run(load(path, ["hardware={gpu: A40, pricing: spot}", away])).summary["cost"] is None  # no offer is known


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("hardware={gpu: H100-SXM, pricing: spot}", "taken away"),
        ("hardware={gpu: H100-SXM, pricing: reserved, price_per_gpu_hour: 2}", "is the price already"),
        ("hardware={gpu: H100-SXM, pricing: cheap}", "on-demand"),
        ("energy.carbon={region: US-CAL}", "US-CAL-CISO"),
        ("energy.carbon={region: GB, gco2_per_kwh: [1]}", "exactly one"),
    ],
)
def test_what_is_wrong_is_named(path: Path, setting: str, words: str) -> None:
    with pytest.raises(UserError) as error:
        run(load(path, [setting]))
    assert words in f"{error.value} {error.value.remedy}"


def test_carbon_is_that_of_the_regions_hour(path: Path) -> None:
    at_noon = run(load(path)).summary["carbon"]
    at_night = run(load(path, ["energy.carbon.start_hour=8"])).summary["carbon"]
    assert at_noon["mean_gco2_per_kwh"] == pytest.approx(133)
    assert at_night["mean_gco2_per_kwh"] == pytest.approx(290)


@pytest.mark.skipif(not SERIES.is_dir(), reason="the hourly series are not in this checkout")
def test_the_shipped_day_is_the_mean_of_2024() -> None:
    with gzip.open(next(SERIES.glob("*lca*")), "rt") as file:
        rows = [row for row in csv.DictReader(file) if row["utc"].startswith("2024")]
    with REGIONS.open() as file:
        day = list(csv.DictReader(line for line in file if not line.startswith("#")))
    assert len(day) == 24
    for zone in ("US-CAL-CISO", "DE-LU", "ZA"):
        for hour, shipped in enumerate(day):
            values = [float(row[zone]) for row in rows if int(row["utc"][11:13]) == hour]
            assert float(shipped[zone]) == pytest.approx(sum(values) / len(values), abs=0.51)
