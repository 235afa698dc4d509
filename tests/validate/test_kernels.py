"""Kernel tables against a calibration: a table a tenth slower than the calibration says is a tenth off."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from profiler.fit.operators import RECIPES
from profiler.validate import kernels
from profiler.validate.kinds import discover
from profiler.validate.reading import MeasurementError
from profiler.validate.run import metrics
from profiler.validate.served import Options
from simulator.cost.calibration import choose, shipped
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
    names = [m.name for m in metrics([comparison])]
    at = names.index("kernels.gemm.bf16.mape.H100-SXM")
    assert names[at + 1] == "kernels.gemm.bf16.held_out.H100-SXM"  # what the calibration claims, beside what is found


def test_without_a_calibration_there_is_nothing_to_compare(tmp_path: Path) -> None:
    folder = gemm_table(tmp_path / "h100_sxm", 1.0)
    with pytest.raises(MeasurementError, match="no calibration of H100-SXM"):
        kernels.compare(folder, Options(calibration="roofline"))
    with pytest.raises(MeasurementError, match="no measurement of a known kind"):
        discover(gemm_table(tmp_path / "nowhere", 1.0))


def measured(path: Path, device: str, kind: str, factor: float) -> Path:
    """A file of ``windtunnel profile`` made from the H100's calibration: two back ends, the faster is an engine's choice."""
    calibration = choose("auto", gpu("h100"))
    assert calibration is not None
    header = {
        "kind": "header",
        "device": {"type": kind, "name": device, "threads": 1, "cores": 2},
        "versions": {"torch": "2"},
    }
    points = [header]
    for m in (1024, 2048):
        shape = {"m": m, "n": 4096, "k": 4096}
        fit = calibration.fits["gemm", "bf16"]
        seconds = fit.seconds(calibration.ceilings, RECIPES["gemm"].points(pd.DataFrame([shape]), "bf16"))[0] * factor
        common = {"kind": "point", "op": "gemm", "dtype": "bf16", **shape}
        points += [{**common, "backend": "slow", "median_s": 7 * seconds}]
        points += [
            {**common, "backend": "fast", "median_s": seconds * x} for x in (0.5, 1.0, 3.0)
        ]  # rounds: the median
    text = "".join(json.dumps(p) + "\n" for p in points)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize("name", ["measurements.jsonl", "measurements-1.jsonl.gz"])
@pytest.mark.parametrize("whole", [True, False])
def test_what_profile_writes_is_compared_with_the_gpu_it_names(tmp_path: Path, name: str, *, whole: bool) -> None:
    file = measured(tmp_path / "any name" / name, "NVIDIA H100", "cuda", 1.25)
    (found,) = discover(file.parent if whole else file)
    values = {m.name: m.value for m in metrics([found.compare(found.path, Options())])}
    assert values["kernels.gemm.bf16.mape.H100-SXM"] == pytest.approx(20.0)


def test_a_named_calibration_says_which_gpu_is_meant(tmp_path: Path) -> None:
    file = measured(tmp_path / "measurements.jsonl", "A GPU nobody knows", "cuda", 1.0)
    with pytest.raises(MeasurementError, match="A GPU nobody knows"):
        kernels.compare(tmp_path, Options())
    comparison = kernels.compare(file, Options(calibration=str(shipped()["H100-SXM"])))
    assert {m.name: m.value for m in metrics([comparison])}["kernels.gemm.bf16.mape.H100-SXM"] == pytest.approx(
        0.0, abs=1e-6
    )
    assert not any("not priced" in note for note in comparison.notes)


def test_a_cpu_is_the_catalogues_core(tmp_path: Path) -> None:
    measured(tmp_path / "measurements.jsonl", "Some(R) Processor", "cpu", 1.0)
    file = shipped()["H100-SXM"]
    comparison = kernels.compare(tmp_path, Options(calibration=file.stem))
    assert {r.gpu for r in comparison.residuals} == {gpu("cpu").name}
    assert "(transferred)" in comparison.notes[0]
