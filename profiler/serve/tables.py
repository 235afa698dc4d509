"""Kernel times by interpolation between measured points: no fit, so that a comparison judges the simulator and not a
fit. Between points time is a power of the shape (straight on log-log axes); beyond the last it grows in proportion.
"""

from __future__ import annotations

import math
import statistics
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from profiler.measure.journal import read
from simulator.core.errors import CalibrationError

Rows = Sequence[Mapping[str, Any]]


class Line1:
    """Seconds over one positive number."""

    def __init__(self, points: Iterable[tuple[float, float]]) -> None:
        ordered = sorted(points)
        self.x: list[float] = [x for x, _ in ordered]
        self.t: list[float] = [t for _, t in ordered]
        self._log = [math.log(t) for t in self.t]

    def at(self, x: float) -> float:
        if x <= self.x[0]:
            return self.t[0]
        if x >= self.x[-1]:
            return self._beyond(x)
        i = bisect_left(self.x, x)
        share = math.log(x / self.x[i - 1]) / math.log(self.x[i] / self.x[i - 1])
        return math.exp(self._log[i - 1] + share * (self._log[i] - self._log[i - 1]))

    def _beyond(self, x: float) -> float:
        """With the slope between the last two points, and never with less than none."""
        if len(self.x) == 1:
            return self.t[0] * x / self.x[0]
        slope = max(0.0, (self.t[-1] - self.t[-2]) / (self.x[-1] - self.x[-2]))
        return self.t[-1] + slope * (x - self.x[-1])


class Grid2:
    """Seconds over two: a ``Line1`` over ``b`` for every measured ``a``, and a power law between."""

    def __init__(self, points: Iterable[tuple[float, float, float]]) -> None:
        rows: dict[float, list[tuple[float, float]]] = defaultdict(list)
        for a, b, t in points:
            rows[a].append((b, t))
        self.a = sorted(rows)
        self.lines = [Line1(rows[a]) for a in self.a]

    def at(self, a: float, b: float) -> float:
        if a <= self.a[0]:
            return self.lines[0].at(b)
        if a >= self.a[-1]:
            return self.lines[-1].at(b) * a / self.a[-1]
        i = bisect_left(self.a, a)
        low, high = self.lines[i - 1].at(b), self.lines[i].at(b)
        share = math.log(a / self.a[i - 1]) / math.log(self.a[i] / self.a[i - 1])
        return float(low * (high / low) ** share)


def _medians(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per point, its seconds the median over files and rounds."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        found[row.get("again", row["id"])].append(row)
    return [same[0] | {"median_s": statistics.median(r["median_s"] for r in same)} for same in found.values()]


class Tables:
    """Everything campaigns on one device know about one dtype. Look-ups raise CalibrationError on what they lack.

    Several files of the same campaign, measured at different times, give the median of each point: on a machine whose
    speed drifts, the middle of it.
    """

    def __init__(self, paths: Path | Sequence[Path], dtype: str) -> None:
        paths = [paths] if isinstance(paths, Path) else list(paths)
        self.paths, self.dtype = paths, dtype
        rows = [row for path in paths for row in read(path)]
        points = _medians(r for r in rows if r["kind"] == "point" and r.get("dtype") == dtype)
        self.yardstick_s = statistics.median([r["yardstick_s"] for r in rows if r["kind"] == "suite"] or [math.nan])
        self._by_op: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in points:
            self._by_op[row["op"]].append(row)
        self._lines: dict[tuple[Any, ...], Line1] = {}
        self._grids: dict[tuple[Any, ...], Grid2] = {}

    def gemm(self, m: int, n: int, k: int) -> float:
        return self._line("gemm", "m", n=n, k=k).at(m)

    def elementwise(self, kernel: str, width: int, tokens: int) -> float:
        return self._line("elementwise", "tokens", kernel=kernel, width=width).at(tokens)

    def moe(self, tokens: int, hidden: int, inter: int, experts: int, top_k: int) -> float:
        """Routing drawn evenly, as a router with random weights does; the faster of the back ends measured."""
        shape = {"hidden": hidden, "inter": inter, "experts": experts, "top_k": top_k, "routing": "uniform"}
        backends = {r["backend"] for r in self._by_op["moe"]}
        return min(self._line("moe", "tokens", backend=b, **shape).at(tokens) for b in sorted(backends))

    def prefill(self, heads: tuple[int, int, int], new: int, computed: int, backend: str) -> float:
        grid = self._grid("prefill_attention", heads, _prefill_axes, batch=1, window=None, backend=backend)
        return grid.at(computed + 1, new)

    def decode(self, heads: tuple[int, int, int], batch: int, context_sum: float, backend: str) -> float:
        grid = self._grid("decode_attention", heads, _decode_axes, spread="equal", window=None, backend=backend)
        return grid.at(batch, context_sum / batch)

    def packed(self, heads: tuple[int, int, int], queries: int, keys: float) -> float:
        return self._grid("packed_attention", heads, _packed_axes).at(queries, keys)

    def backends(self, op: str) -> list[str]:
        return sorted({r["backend"] for r in self._by_op[op]})

    def _rows(self, op: str, fixed: Mapping[str, Any]) -> list[dict[str, Any]]:
        found = [r for r in self._by_op[op] if all(r.get(k) == v for k, v in fixed.items())]
        if not found:
            wanted = ", ".join(f"{k} = {v}" for k, v in fixed.items())
            raise CalibrationError(
                f"{op} was not measured in {self.dtype} at {wanted}",
                where=", ".join(map(str, self.paths)),
                remedy="Add the model to the campaign's models and profile again.",
            )
        return found

    def _line(self, op: str, axis: str, **fixed: Any) -> Line1:
        key = (op, *sorted(fixed.items()))
        if key not in self._lines:
            self._lines[key] = Line1((r[axis], r["median_s"]) for r in self._rows(op, fixed))
        return self._lines[key]

    def _grid(self, op: str, heads: tuple[int, int, int], axes: Any, **fixed: Any) -> Grid2:
        key = (op, heads, *sorted(fixed.items()))
        if key not in self._grids:
            whole = fixed | dict(zip(("heads", "kv_heads", "head_dim"), heads, strict=True))
            rows = self._rows(op, whole)
            self._grids[key] = Grid2((*axes(r), r["median_s"]) for r in rows)
        return self._grids[key]


def _prefill_axes(r: Mapping[str, Any]) -> tuple[float, float]:
    return r["computed_tokens"] + 1, r["new_tokens"]


def _decode_axes(r: Mapping[str, Any]) -> tuple[float, float]:
    return r["batch"], r["context_sum"] / r["batch"]


def _packed_axes(r: Mapping[str, Any]) -> tuple[float, float]:
    return r["queries"], r["keys"]
