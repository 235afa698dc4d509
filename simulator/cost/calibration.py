"""Calibration files: what was measured on a GPU, as physics' constants and corrections, with its error.

A file is JSON, one per (GPU, engine version): a readable header (provenance, ceilings, constants, held-out errors)
and the corrections' coefficients packed as text. ``Calibrated`` (calibrated.py) prices operators with one.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from simulator.core.errors import CalibrationError
from simulator.core.names import suggestion
from simulator.cost.correction import Floats, Surface, correction
from simulator.cost.forest import Forest
from simulator.cost.kernels import Ceilings, Constants
from simulator.cost.laws import LAWS, Points
from simulator.hardware.gpu import Gpu

SHIPPED = Path(__file__).with_name("calibrations")
SCHEMA = 1


@dataclass(frozen=True)
class HeldOut:
    """Relative errors ``|predicted / measured - 1|`` on whole shapes left out of the fit."""

    mean: float
    median: float
    p90: float
    points: int
    shapes: int
    folds: int

    @staticmethod
    def of(errors: Floats, shapes: int, folds: int) -> HeldOut:
        mean, median, p90 = float(errors.mean()), float(np.median(errors)), float(np.quantile(errors, 0.9))
        return HeldOut(mean, median, p90, len(errors), shapes, folds)


@dataclass(frozen=True)
class Fit:
    """One operator in one format. ``extent``: lowest and highest measured value of each coordinate."""

    operator: str
    key: str  # the number format, or head dimension and KV format
    number: str
    constants: Constants
    surfaces: tuple[Surface, ...]
    held_out: HeldOut | None
    extent: Mapping[str, tuple[float, float]]
    kernels: Mapping[str, int]  # measured kernels and their points
    forest: Forest | None = None

    def seconds(self, ceilings: Ceilings, points: Points, number: str | None = None) -> Floats:
        """Seconds, never under what the ceilings allow. ``number``: when the product runs in another format."""
        law, number = LAWS[self.operator], number or self.number
        physics = law.seconds(self.constants, ceilings, number, points)
        coordinates = law.coordinates(self.constants, points)
        bend = correction(self.surfaces, coordinates)
        if self.forest is not None and law.features is not None:
            bend = bend + self.forest.at(law.features(ceilings, points, coordinates))
        return np.maximum(physics * np.exp(bend), law.limit(ceilings, number, points))

    def outside(self, points: Points) -> tuple[str, ...]:
        """Coordinates in which some point lies beyond what was measured."""
        found = LAWS[self.operator].coordinates(self.constants, points)
        return tuple(
            name
            for name, (low, high) in self.extent.items()
            if name in found and ((found[name] < low - 0.05).any() or (found[name] > high + 0.05).any())
        )


@dataclass(frozen=True)
class Collective:
    """Measured seconds of one collective over one number of ranks, by size of the whole buffer (bytes, ascending)."""

    operator: str
    ranks: int
    sizes: tuple[float, ...]
    seconds: tuple[float, ...]

    def at(self, size_bytes: float) -> float:
        """Straight lines between measured sizes; beyond the largest its bytes per second hold."""
        if size_bytes >= self.sizes[-1]:
            return self.seconds[-1] * size_bytes / self.sizes[-1]
        return float(np.interp(size_bytes, self.sizes, self.seconds))


@dataclass(frozen=True)
class Stream:
    """Elementwise kernels: ``launch_s`` each, and ``share`` of the memory's bandwidth.

    What the kernel before has just written still lies in the cache: the first ``reach_bytes`` of a kernel move at
    ``cached`` times the bandwidth, which may be more than once.
    """

    launch_s: float
    share: float
    cached: float
    reach_bytes: float
    held_out: HeldOut | None
    source: str

    def seconds(self, size_bytes: float, kernels: int, bandwidth: float) -> float:
        """``size_bytes`` moved by all ``kernels`` together."""
        near = min(size_bytes, kernels * self.reach_bytes)
        return self.launch_s * kernels + (near / self.cached + (size_bytes - near) / self.share) / bandwidth


@dataclass(frozen=True)
class Calibration:
    """Everything fitted for one GPU."""

    name: str
    gpu: str
    engine: str
    ceilings: Ceilings
    provenance: tuple[Mapping[str, str], ...]
    fits: Mapping[tuple[str, str], Fit]
    collectives: Mapping[tuple[str, int], Collective]
    collective_errors: Mapping[str, HeldOut]
    stream: Stream | None
    transferred_from: str | None = None

    def errors(self) -> dict[str, HeldOut]:
        """Held-out error by operator and format."""
        found = {f"{f.operator} {f.key}": f.held_out for f in self.fits.values() if f.held_out}
        found.update(self.collective_errors)
        if self.stream and self.stream.held_out:
            found["elementwise"] = self.stream.held_out
        return found

    def describe(self) -> dict[str, Any]:
        """For a run's provenance: what it is and how wrong it is."""
        engines = sorted({f"{p.get('source', '?')} ({p.get('licence', '?')})" for p in self.provenance})
        said: dict[str, Any] = {"name": self.name, "engine": self.engine, "source": "; ".join(engines)}
        if self.transferred_from:
            said["transferred_from"] = (
                f"{self.transferred_from}, rescaled to this GPU's peaks; its error is unknown here"
            )
        by_operator: dict[str, list[HeldOut]] = {}
        for label, error in self.errors().items():
            by_operator.setdefault(label.split(" ", maxsplit=1)[0], []).append(error)
        said["held_out_error"] = ", ".join(
            f"{operator} {100 * _pooled(errors):.1f} %" for operator, errors in by_operator.items()
        )
        return said


def _pooled(errors: Sequence[HeldOut]) -> float:
    return sum(e.mean * e.points for e in errors) / sum(e.points for e in errors)


# -- files ----------------------------------------------------------------------------------------------------------


def to_json(calibration: Calibration) -> dict[str, Any]:
    stream = calibration.stream
    return {
        "schema": SCHEMA,
        "name": calibration.name,
        "gpu": calibration.gpu,
        "engine": calibration.engine,
        "provenance": [dict(p) for p in calibration.provenance],
        "ceilings": calibration.ceilings.to_json(),
        "elementwise": None
        if stream is None
        else {
            "launch_s": stream.launch_s, "share": stream.share, "cached": stream.cached,
            "reach_bytes": stream.reach_bytes, "held_out": _error_json(stream.held_out), "source": stream.source,
        },
        "collective_errors": {k: _error_json(e) for k, e in calibration.collective_errors.items()},
        "collectives": [
            {"operator": c.operator, "ranks": c.ranks, "sizes": [int(s) for s in c.sizes], "seconds": list(c.seconds)}
            for c in calibration.collectives.values()
        ],
        "fits": [
            {
                "operator": f.operator,
                "key": f.key,
                "number": f.number,
                "held_out": _error_json(f.held_out),
                "kernels": dict(f.kernels),
                "constants": dict(f.constants),
                "extent": {k: [round(low, 6), round(high, 6)] for k, (low, high) in f.extent.items()},
                "surfaces": [s.to_json() for s in f.surfaces],
                "forest": None if f.forest is None else f.forest.to_json(),
            }
            for f in calibration.fits.values()
        ],
    }  # fmt: skip


def _error_json(error: HeldOut | None) -> dict[str, float] | None:
    if error is None:
        return None
    return {
        "mean": round(error.mean, 5), "median": round(error.median, 5), "p90": round(error.p90, 5),
        "points": error.points, "shapes": error.shapes, "folds": error.folds,
    }  # fmt: skip


def _error(row: Mapping[str, Any] | None) -> HeldOut | None:
    if row is None:
        return None
    return HeldOut(
        float(row["mean"]), float(row["median"]), float(row["p90"]), int(row["points"]), int(row["shapes"]),
        int(row["folds"]),
    )  # fmt: skip


def read_calibration(path: Path) -> Calibration:
    """Raises CalibrationError on a file that is missing, damaged, or of another schema."""
    try:
        row = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CalibrationError(f"cannot read the calibration: {error.strerror}", where=str(path)) from error
    except (ValueError, UnicodeDecodeError) as error:
        raise CalibrationError(f"not JSON: {error}", where=str(path)) from error
    if not isinstance(row, dict) or row.get("schema") != SCHEMA:
        raise CalibrationError(
            "not a calibration of this version", where=str(path), remedy="Write it with `windtunnel calibrate`."
        )
    try:
        return _calibration(row)
    except (KeyError, TypeError, ValueError, zlib.error) as error:
        raise CalibrationError(f"damaged calibration: {type(error).__name__} {error}", where=str(path)) from error


def _calibration(row: Mapping[str, Any]) -> Calibration:
    ceilings = row["ceilings"]
    fits = [_fit(f) for f in row["fits"]]
    collectives = [
        Collective(c["operator"], int(c["ranks"]), tuple(map(float, c["sizes"])), tuple(map(float, c["seconds"])))
        for c in row["collectives"]
    ]
    stream = row["elementwise"]
    found = {k: _error(e) for k, e in row["collective_errors"].items()}
    return Calibration(
        name=row["name"],
        gpu=row["gpu"],
        engine=row["engine"],
        ceilings=Ceilings(
            int(ceilings["multiprocessors"]),
            dict(ceilings["flops"]),
            float(ceilings["bandwidth"]),
            float(ceilings["cache_bytes"]),
        ),
        provenance=tuple(row["provenance"]),
        fits={(f.operator, f.key): f for f in fits},
        collectives={(c.operator, c.ranks): c for c in collectives},
        collective_errors={k: e for k, e in found.items() if e is not None},
        stream=None
        if stream is None
        else Stream(
            float(stream["launch_s"]),
            float(stream["share"]),
            float(stream["cached"]),
            float(stream["reach_bytes"]),
            _error(stream["held_out"]),
            stream["source"],
        ),
    )


def _fit(row: Mapping[str, Any]) -> Fit:
    return Fit(
        operator=row["operator"],
        key=row["key"],
        number=row["number"],
        constants={k: float(v) for k, v in row["constants"].items()},
        surfaces=tuple(Surface.from_json(s) for s in row["surfaces"]),
        held_out=_error(row["held_out"]),
        extent={k: (float(v[0]), float(v[1])) for k, v in row["extent"].items()},
        kernels=dict(row["kernels"]),
        forest=Forest.from_json(row["forest"]) if row.get("forest") else None,
    )


# -- shipped calibrations -------------------------------------------------------------------------------------------

# GPUs nobody measured here, and the one of the same architecture whose kernels stand in.
TRANSFER = {
    "A100-SXM-40GB": "A100-SXM-80GB",
    "A100-PCIe-40GB": "A100-SXM-80GB",
    "A100-PCIe-80GB": "A100-SXM-80GB",
    "A40": "A100-SXM-80GB",
    "A10G": "A100-SXM-80GB",
    "H100-PCIe": "H100-SXM",
    "H20": "H200-SXM",
    "L4": "L40S",
    "RTX-4090": "L40S",
}
# Streaming multiprocessors in use, by GPU: architecture white papers and cudaDeviceProp.
MULTIPROCESSORS = {
    "V100-SXM2-32GB": 80, "A100-SXM-40GB": 108, "A100-PCIe-40GB": 108, "A100-SXM-80GB": 108, "A100-PCIe-80GB": 108,
    "A40": 84, "A10G": 80, "H100-SXM": 132, "H100-PCIe": 114, "H200-SXM": 132, "H20": 78, "L4": 58, "L40S": 142,
    "RTX-4090": 128, "RTX-PRO-6000": 188, "B200": 148, "B300": 148, "GB200": 152, "MI300X": 304,
}  # fmt: skip


# Last-level caches in bytes, from the same sources.
CACHE_BYTES = {
    "A100-SXM-40GB": 40e6, "A100-PCIe-40GB": 40e6, "A100-SXM-80GB": 40e6, "A100-PCIe-80GB": 40e6, "A40": 6e6,
    "A10G": 6e6, "H100-SXM": 50e6, "H100-PCIe": 50e6, "H200-SXM": 50e6, "H20": 60e6, "L4": 48e6, "L40S": 96e6,
    "RTX-4090": 72e6, "RTX-PRO-6000": 128e6, "B200": 126e6, "B300": 126e6, "GB200": 126e6,
}  # fmt: skip


@cache
def shipped() -> Mapping[str, Path]:
    """Shipped calibration files by GPU."""
    return {path.stem: path for path in sorted(SHIPPED.glob("*.json"))}


@cache
def load(path: Path) -> Calibration:
    return read_calibration(path)


def find(gpu: Gpu) -> Calibration | None:
    """The shipped calibration of a GPU: its own, else one transferred within its architecture, else None."""
    files = shipped()
    if gpu.name in files:
        return load(files[gpu.name])
    whole = gpu.sliced_from or gpu.name
    twin = whole if whole in files else TRANSFER.get(whole, "")
    return transferred(load(files[twin]), gpu) if twin in files else None


def transferred(calibration: Calibration, gpu: Gpu) -> Calibration:
    """The same efficiencies under the ceilings of another GPU, or of a slice of this one. Its links are its own:
    collectives are left out.
    """
    whole = gpu.sliced_from or gpu.name
    own = round(MULTIPROCESSORS.get(whole, calibration.ceilings.multiprocessors) * gpu.compute_share)
    cache_bytes = CACHE_BYTES.get(whole, calibration.ceilings.cache_bytes) * gpu.memory_share
    ceilings = Ceilings.of(gpu, own, cache_bytes)
    return replace(
        calibration,
        name=f"{gpu.name} from {calibration.name}",
        gpu=gpu.name,
        ceilings=ceilings,
        collectives={},
        collective_errors={},
        transferred_from=calibration.name,
    )


def choose(setting: str, gpu: Gpu) -> Calibration | None:
    """``auto``: the GPU's shipped one; ``roofline``: none; otherwise a file, or the name of a shipped one.

    Raises CalibrationError on a name that is neither, or a file fitted for another GPU.
    """
    if setting == "auto":
        return find(gpu)
    if setting == "roofline":
        return None
    path = shipped().get(setting, Path(setting))
    if not path.is_file():
        raise CalibrationError(
            f"no calibration {setting!r}",
            remedy="Give auto, roofline, a file written by `windtunnel calibrate`, or a shipped one. "
            + suggestion(setting, shipped(), noun="shipped ones"),
        )
    found = load(path.resolve())
    return found if found.gpu == gpu.name else transferred(found, gpu)


def describe(gpu: Gpu, calibration: Calibration | None, notes: Mapping[str, str]) -> dict[str, Any]:
    """For a run's provenance."""
    if calibration is None:
        return {"source": "data-sheet roofline, no calibration", "stated_error": "unknown", "gpu": gpu.name}
    said = calibration.describe()
    if notes:
        said["beyond_the_measurements"] = "; ".join(f"{what}: {how}" for what, how in sorted(notes.items()))
    return said


def calibration_rows() -> list[dict[str, Any]]:
    """One row per GPU with a calibration of its own or a borrowed one: pooled held-out error by operator, percent."""
    rows = []
    for name, path in shipped().items():
        found = load(path)
        by_operator: dict[str, list[HeldOut]] = {}
        for label, error in found.errors().items():
            operator, _, key = label.partition(" ")
            by_operator.setdefault(f"{operator} {key}" if operator == "gemm" else operator, []).append(error)
        borrowers = [gpu for gpu, twin in TRANSFER.items() if twin == name]
        row: dict[str, Any] = {"gpu": name, "engine": found.engine}
        row |= {operator: round(100 * _pooled(errors), 1) for operator, errors in by_operator.items()}
        rows.append(row | {"stands in for": ", ".join(borrowers)})
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return [{column: row.get(column) for column in columns} for row in rows]
