"""Kernel tables against a calibration: a table a tenth slower than the calibration says is a tenth off."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from profiler.fit.operators import RECIPES
from profiler.validate import kernels
from profiler.validate.kinds import discover
from profiler.validate.reading import MeasurementError
from profiler.validate.served import Options
from simulator.cost.calibration import choose
from simulator.hardware.gpu import gpu


def gemm_table(folder: Path, factor: float) -> Path:
    """An aiconfigurator table of an H100 made from the shipped calibration, ``factor`` times as slow."""
    card = gpu("h100")
    calibration = choose("auto", card)
    assert calibration is not None
    m, n, k = (np.array(v) for v in zip(*[(m, n, 4096) for m in (1024, 2048, 4096) for n in (4096, 8192)], strict=True))
    shapes = pd.DataFrame({"m": m, "n": n, "k": k})
    points = RECIPES["gemm"].points(shapes, "bf16")
    seconds = calibration.fits["gemm", "bf16"].seconds(calibration.ceilings, points) * factor
    folder.mkdir(parents=True)
    stamp = {"framework": "VLLM", "version": "0.24.0", "device": "NVIDIA H100 80GB HBM3", "op_name": "gemm"}
    shapes.assign(**stamp, kernel_source="linear", gemm_dtype="bfloat16", latency=seconds * 1e3).to_parquet(
        folder / "gemm.parquet"
    )
    return folder


@pytest.mark.parametrize("factor", [1.0, 1.25])
def test_a_table_shows_how_far_it_is_from_the_calibration(tmp_path: Path, factor: float) -> None:
    folder = gemm_table(tmp_path / "h100_sxm", factor)
    (found,) = discover(folder)
    assert found.kind == "kernels"
    comparison = found.compare(folder, Options())
    values = {m.name: m for m in kernels.summary(comparison.residuals)}
    metric = values["kernels.gemm.bf16.mape.H100-SXM"]
    assert metric.value == pytest.approx(100 * (1 - 1 / factor), abs=1e-6)
    assert metric.bar == 3.0
    assert metric.met is (factor == 1.0)
    assert any(note.startswith("held out gemm bf16") for note in comparison.notes)


def test_without_a_calibration_there_is_nothing_to_compare(tmp_path: Path) -> None:
    folder = gemm_table(tmp_path / "h100_sxm", 1.0)
    with pytest.raises(MeasurementError, match="no calibration of H100-SXM"):
        kernels.compare(folder, Options(calibration="roofline"))
    with pytest.raises(MeasurementError, match="no measurement of a known kind"):
        discover(gemm_table(tmp_path / "nowhere", 1.0))
