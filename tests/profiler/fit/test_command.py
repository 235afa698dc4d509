"""From tables to a run: the commands, and what a run says about its calibration."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from simulator.cli.main import app
from simulator.scenario import load, run
from simulator.scenario.result import Result

SCENARIO = """
model: {name: Llama-3.1-8B}
hardware: {gpu: H100-SXM}
workload: {preset: {name: azure-conv, num_requests: 8}}
"""


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    path = tmp_path / "s.yaml"
    path.write_text(SCENARIO)
    return path


def gemm_table(folder: Path) -> Path:
    """Products three times slower than an H100's."""
    sizes = (512, 1024, 2048, 4096, 8192, 16384)
    rows = [
        {"framework": "VLLM", "version": "9", "device": "X", "op_name": "gemm", "kernel_source": "k",
         "gemm_dtype": "bfloat16", "m": m, "n": n, "k": k,
         "latency": 3e3 * (3e-6 + 2.0 * n * k / 3e12 + 2.0 * m * n * k / 7e14)}
        for m, n, k in product((1, 64, 1024, 8192), sizes, sizes)
    ]  # fmt: skip
    path = folder / "gemm.parquet"
    pd.DataFrame(rows).to_parquet(path)
    return path


def tpot(result: Result) -> float:
    return float(result.summary["latency"]["tpot_s"]["p50"])


def test_a_calibration_of_ones_own_prices_a_run_and_is_named_with_its_error(tmp_path: Path, scenario: Path) -> None:
    table, out = gemm_table(tmp_path), tmp_path / "mine.json"
    result = CliRunner().invoke(app, ["calibrate", str(table), "--gpu", "h100", "--out", str(out), "--name", "mine"])
    assert result.exit_code == 0, result.output
    assert "held_out_error_gemm_bf16=" in result.output
    slow = run(load(scenario, [f"hardware.calibration={out}"]))
    said = slow.provenance["calibration"]
    assert said["name"] == "mine"
    assert said["held_out_error"].startswith("gemm ")
    assert "roofline" in said["beyond_the_measurements"]  # attention was not in the table
    shipped, roofline = run(load(scenario)), run(load(scenario, ["hardware.calibration=roofline"]))
    assert tpot(slow) > 2 * tpot(shipped)
    assert shipped.provenance["calibration"]["name"] == "H100-SXM, vLLM 0.24.0"
    assert roofline.provenance["calibration"]["stated_error"] == "unknown"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "no such file"),
        (["empty"], "no table"),
        (["empty", "--gpu", "H1000"], "unknown GPU"),
    ],
)
def test_what_cannot_be_fitted_is_an_error_of_the_user(tmp_path: Path, arguments: list[str], words: str) -> None:
    (tmp_path / "empty").mkdir()
    where, *rest = arguments
    gpu = [] if rest else ["--gpu", "h100"]
    command = ["calibrate", str(tmp_path / where), *rest, *gpu, "--out", str(tmp_path / "c.json")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2
    assert words in result.output + result.stderr
    assert not (tmp_path / "c.json").exists()


def test_a_scenario_with_a_calibration_that_is_none(scenario: Path) -> None:
    result = CliRunner().invoke(app, ["run", str(scenario), "--set", "hardware.calibration=nowhere.json"])
    assert result.exit_code == 2
    assert "hardware.calibration" in result.output + result.stderr


def test_shipped_calibrations_are_listed_with_their_errors() -> None:
    result = CliRunner().invoke(app, ["calibrations", "--json"])
    assert result.exit_code == 0
    rows = {row["gpu"]: row for row in json.loads(result.output)}
    assert rows["H100-SXM"]["gemm bf16"] < 5.0
    assert "H100-PCIe" in rows["H100-SXM"]["stands in for"]
