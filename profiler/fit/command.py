"""Tables on disk to a calibration file."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from profiler.fit.calibrate import calibrate
from profiler.tables.columns import Tables
from profiler.tables.read import read_tables
from simulator.core.errors import CalibrationError
from simulator.cost.calibration import CACHE_BYTES, MULTIPROCESSORS, Calibration, to_json
from simulator.cost.kernels import Ceilings
from simulator.hardware.gpu import Gpu
from simulator.hardware.gpu import gpu as find_gpu


def calibrate_files(
    paths: Sequence[Path], gpu: str, out: Path, name: str | None = None, progress: Callable[[str], None] = print
) -> Calibration:
    """Reads, fits, writes. Raises CalibrationError and HardwareError."""
    card = find_gpu(gpu)
    tables = read_tables(paths)
    found = calibrate(tables, card.name, ceilings_of(card, tables), name=name, progress=progress)
    write(found, out)
    return found


def ceilings_of(card: Gpu, tables: Tables) -> Ceilings:
    """The data sheet's, or what the tables' own ceilings measured where that is more."""
    stated = next((p["multiprocessors"] for p in tables.provenance if "multiprocessors" in p), None)
    units = MULTIPROCESSORS.get(card.name) or (int(stated) if stated and stated.isdecimal() else None)
    if units is None:
        raise CalibrationError(f"nobody states how many multiprocessors {card.name} has", where="--gpu")
    found = Ceilings.of(card, units, CACHE_BYTES.get(card.name, 0.0))
    frame = tables.frames.get("ceiling")
    if frame is None:
        return found
    flops, bandwidth = dict(found.flops), found.bandwidth
    for row in frame.itertuples(index=False):
        if row.quantity == "flops":
            flops[str(row.dtype)] = max(flops.get(str(row.dtype), 0.0), float(row.value))  # type: ignore[arg-type]
        elif row.quantity == "bandwidth":
            bandwidth = max(bandwidth, float(row.value))  # type: ignore[arg-type]
    return replace(found, flops=flops, bandwidth=bandwidth)


def write(calibration: Calibration, out: Path) -> None:
    """One fit to a line group, coefficients as text. The same calibration gives the same bytes."""
    text = json.dumps(to_json(calibration), indent=1)
    # Lists of plain numbers stay on one line: the header is for reading.
    text = re.sub(r"\[\s+([^\[\]{}\"]*?)\s+\]", lambda m: "[" + re.sub(r"\s+", " ", m.group(1)) + "]", text)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(out.name + ".part")
    partial.write_text(text + "\n", encoding="utf-8")
    partial.replace(out)
