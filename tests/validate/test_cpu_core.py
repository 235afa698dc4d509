"""The one device this project measured itself: what ships for it comes from the committed measurements, and prices a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from profiler.fit.calibrate import calibrate
from profiler.fit.command import ceilings_of
from profiler.fit.shipped import RECIPES, tables_of
from profiler.tables.columns import Tables
from profiler.validate import kernels
from profiler.validate.run import metrics
from profiler.validate.served import Options
from simulator.cost.calibration import read_calibration, shipped
from simulator.hardware.gpu import gpu
from simulator.scenario import load, run

ROOT = Path(__file__).resolve().parents[2]
CORE = "Xeon-Emerald-Rapids-core"
FITTED = ("gemm", "prefill_attention", "decode_attention")
SCENARIO = """
model: {name: Qwen2.5-0.5B, dtype: float32}
hardware: {gpu: Xeon-Emerald-Rapids-core}
engine: {max_num_seqs: 4, max_model_len: 2048, overhead: torch-eager}
workload: {preset: {name: azure-conv, num_requests: 3, rate: 0.01}}
"""


def test_its_calibration_is_within_thirty_per_cent_and_what_the_measurements_give() -> None:
    """Attention and small kernels are fitted again; products have many shapes and would take a minute."""
    recipe = next(r for r in RECIPES if r.gpu == CORE)
    tables = tables_of(recipe, Path("nowhere"))
    few = Tables({op: tables.frames[op] for op in ("decode_attention", "elementwise")}, tables.provenance)
    again, kept = calibrate(few, CORE, ceilings_of(gpu(CORE), tables)).errors(), read_calibration(shipped()[CORE])
    assert {"decode_attention 64/fp32", "decode_attention 64/bf16", "elementwise"} <= again.keys()
    for key, error in again.items():
        assert kept.errors()[key].mean == pytest.approx(error.mean, rel=0.05)
    assert all(e.mean < 0.3 for key, e in kept.errors().items() if key.startswith(FITTED))
    (said,) = kept.provenance
    assert said["device"] == "Intel(R) Xeon(R) Processor"
    assert said["cpu"] == "1 of 2 cores, AVX512"
    assert said["clock"] == "CPU seconds of one thread"


def test_validate_tells_each_operators_error_beside_the_calibrations_own() -> None:
    comparison = kernels.compare(ROOT / "docs" / "measured" / "cpu" / "measurements.jsonl.gz", Options())
    values = {m.name: m.value for m in metrics([comparison])}
    for operator in ("gemm.fp32", "prefill_attention.64.fp32", "decode_attention.64.fp32"):
        seen, held_out = (values[f"kernels.{operator}.{what}.{CORE}"] for what in ("mape", "held_out"))
        assert 0 < seen < held_out < 30  # what a fit has seen it knows better


def test_a_scenario_runs_on_the_core_with_its_calibration(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(SCENARIO)
    result = run(load(path))
    said = result.provenance["calibration"]
    assert said["name"].startswith(CORE)
    assert said["held_out_error"].startswith("gemm ")
    # 494 million weights of 4 bytes a token: no core streams them faster than its bandwidth, and this one is not five times slower
    least = 494e6 * 4 / gpu(CORE).memory_bandwidth
    assert least < result.summary["latency"]["tpot_s"]["p50"] < 5 * least
