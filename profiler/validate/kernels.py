"""Kernel measurements (tables, or files of ``windtunnel profile``) against a calibration, operator by operator.

What a calibration was fitted on is no test of it: the notes repeat the error that the fit measured on whole shapes it
had left out (``held_out``), and ``mape`` is over every row measured, which is the test where the rows are another's.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from profiler.fit.calibrate import parts
from profiler.fit.host import gpu_seconds
from profiler.fit.operators import RECIPES
from profiler.tables.columns import Tables
from profiler.tables.read import SUFFIXES, read_tables
from profiler.validate.reading import MeasurementError, open_text
from profiler.validate.residuals import Comparison, Metric, Residual, errors_of, mape, median_error
from profiler.validate.served import Options
from simulator.core.errors import HardwareError
from simulator.cost.calibration import Calibration, Collective, choose, read_calibration
from simulator.hardware.gpu import Gpu
from simulator.hardware.gpu import gpu as find_gpu

KIND = "kernels"
MEASURED = (".jsonl", ".jsonl.gz")
BARS = {"gemm bf16": 3.0}
OTHER_BAR = {"H100-SXM": 5.0, "H200-SXM": 5.0}  # every operator; 7 % on other GPUs
COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")


def is_kernels(folder: Path) -> bool:
    """Whether tables of kernels lie in or below the folder, and its GPU can be told."""
    if any(is_measured(f) for f in folder.iterdir() if f.is_file()):
        return True
    tables = any(f.name.endswith((".parquet", ".jsonl")) or "dense" in f.name for f in _files(folder))
    return tables and _named(folder) is not None


def is_measured(file: Path) -> bool:
    """Whether ``windtunnel profile`` wrote it: the first line says so."""
    if not file.name.endswith(MEASURED):
        return False
    try:
        with open_text(file) as lines:
            first = json.loads(lines.readline())
    except (MeasurementError, OSError, EOFError, ValueError):
        return False
    return isinstance(first, dict) and first.get("kind") == "header" and "device" in first


def _files(folder: Path) -> list[Path]:
    return sorted(f for f in folder.rglob("*") if f.name.endswith(SUFFIXES))


def _named(folder: Path, *names: str) -> Gpu | None:
    """From ``names``, else as ``h100_sxm`` or ``RTXPRO6000-Llama-3.1-8B-tp1``: the folder's name, its first word, or
    that of the one above.
    """
    for name in (*names, folder.name, folder.name.split("-", maxsplit=1)[0], folder.parent.name):
        try:
            return find_gpu(name)
        except HardwareError:
            continue
    return None


def compare(path: Path, options: Options) -> Comparison:
    """Every row the calibration prices. Raises CalibrationError, or MeasurementError when it prices none."""
    tables = read_tables([path])
    card = _card(path, tables, options)
    calibration = choose(options.calibration, card)
    if calibration is None:
        raise MeasurementError(f"no calibration of {card.name} to compare with.", where="--calibration")
    residuals: list[Residual] = []
    for operator, recipe in RECIPES.items():
        frame = tables.frames.get(operator)
        for key, rows in parts(frame, recipe) if frame is not None else ():
            fit = calibration.fits.get((operator, key))
            if fit is not None:
                dtype = str(rows["dtype"].iloc[0])
                usable = recipe.cold(recipe.points(rows, dtype), gpu_seconds(rows, recipe), calibration.ceilings)
                if "host" in rows:
                    usable &= ~rows["host"].to_numpy()
                # Operands warm in the cache are no engine's, and what waits for its host is no kernel's time.
                rows = rows.loc[usable].reset_index(drop=True)  # noqa: PLW2901
                points = recipe.points(rows, dtype)
                seconds = fit.seconds(calibration.ceilings, points)
                residuals += _rows(path, f"{operator} {key}", rows, seconds, card)
    residuals += _elementwise(path, tables, calibration, card)
    residuals += _network(path, tables, calibration, card)
    if not residuals:
        raise MeasurementError(f"nothing here is priced by {calibration.name}.", where=str(path))
    seen = {r.metric for r in residuals}
    notes = [f"calibration {calibration.name}" + (" (transferred)" if calibration.transferred_from else "")]
    notes += [f"not priced: {what}" for what in _unpriced(tables, seen)]
    stated = {label: error for label, error in sorted(calibration.errors().items()) if label in seen}
    claims = [
        Metric(f"{KIND}.{_label(label)}.held_out.{card.name}", 100.0 * error.mean, "%")
        for label, error in stated.items()
    ]
    return Comparison(KIND, path, tuple(residuals), tuple(notes), tuple(claims))


def _card(path: Path, tables: Tables, options: Options) -> Gpu:
    """The calibration's GPU where ``--calibration`` names a file; else what the measurements or their folder say.

    A CPU goes by the catalogue's only one.
    """
    file = Path(options.calibration)
    if file.is_file():
        return find_gpu(read_calibration(file).gpu)
    devices = [p["device"] for p in tables.provenance if "device" in p]
    cpu = ["cpu"] if any("cpu" in p for p in tables.provenance) else []
    card = _named(path, *devices, *cpu)
    if card is None:
        raise MeasurementError(
            f"measured on {devices[0] if devices else 'an unnamed GPU'}, which the catalogue does not hold.",
            where=str(path), remedy="Name the calibration's file with --calibration.",
        )  # fmt: skip
    return card


def _unpriced(tables: Tables, seen: set[str]) -> list[str]:
    """Measured operators and formats that the calibration holds nothing of."""
    found = []
    for operator, recipe in RECIPES.items():
        frame = tables.frames.get(operator)
        for key, _ in parts(frame, recipe) if frame is not None else ():
            if f"{operator} {key}" not in seen:
                found.append(f"{operator} {key}")
    return found


def _elementwise(path: Path, tables: Tables, calibration: Calibration, card: Gpu) -> list[Residual]:
    frame, stream = tables.frames.get("elementwise"), calibration.stream
    if frame is None or stream is None:
        return []
    bandwidth = calibration.ceilings.bandwidth
    sizes = zip(frame["bytes"].to_numpy(float), frame["kernels"].to_numpy(int), strict=True)
    seconds = np.array([stream.seconds(size, kernels, bandwidth) for size, kernels in sizes])
    return _rows(path, "elementwise", frame, seconds, card)


def _label(metric: str) -> str:
    return metric.replace(" ", ".").replace("/", ".")


def _rows(path: Path, metric: str, rows: pd.DataFrame, seconds: np.ndarray, card: Gpu) -> list[Residual]:
    measured = rows["seconds"].to_numpy(float)
    case = f"{path.parent.name}/{path.name}"
    return [
        Residual(KIND, f"{case}:{i}", metric, "ms", p * 1e3, m * 1e3, "kernels", card.name, m * 1e3)
        for i, (p, m) in enumerate(zip(seconds.tolist(), measured.tolist(), strict=True))
    ]


def _network(path: Path, tables: Tables, calibration: Calibration, card: Gpu) -> list[Residual]:
    found: list[Residual] = []
    for operator in COLLECTIVES:
        frame = tables.frames.get(operator)
        for ranks, rows in frame.groupby("ranks", sort=True) if frame is not None else ():
            collective: Collective | None = calibration.collectives.get((operator, int(str(ranks))))
            if collective is not None:
                seconds = np.array([collective.at(s) for s in rows["size_bytes"].to_numpy(float)])
                found += _rows(path, operator, rows, seconds, card)
    return found


def summary(residuals: Sequence[Residual]) -> list[Metric]:
    """Mean and median absolute error per GPU and operator."""
    metrics: list[Metric] = []
    for card in sorted({r.gpu for r in residuals}):
        own = [r for r in residuals if r.gpu == card]
        for metric in sorted({r.metric for r in own}):
            errors = errors_of(own, metric)
            label = _label(metric)
            bar = BARS.get(metric, OTHER_BAR.get(card, 7.0)) if card in OTHER_BAR else 7.0
            metrics.append(Metric(f"{KIND}.{label}.mape.{card}", mape(errors), "%", bar))
            metrics.append(Metric(f"{KIND}.{label}.median.{card}", median_error(errors), "%"))
    return [*metrics, Metric(f"{KIND}.rows", len(residuals), "rows")]
