"""Grows a forest on what physics and surfaces leave: gradient boosting of decision tables.

Each table sees a random part of the whole shapes and of the features (stochastic gradient boosting, Friedman 2002,
doi:10.1016/S0167-9473(01)00065-2), so that no table can lean on single shapes. Deterministic: the seed is fixed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from simulator.cost.correction import Floats
from simulator.cost.forest import STEP, Forest

EDGES = 48  # thresholds per axis at most: all midpoints of a grid, quantiles of what is no grid
SMALL = 500  # a table of fewer points cannot feed every cell of a deep forest
ROBUST = 0.03  # as the surfaces': residuals beyond count linearly


@dataclass(frozen=True)
class ForestSpec:
    """``rate``: share of what a cell finds that is taken; ``pull``: points of weight that pull a cell to zero."""

    tables: int
    depth: int
    rate: float = 0.3
    pull: float = 5.0
    features: float = 0.4
    shapes: float = 0.7

    def within(self, points: int) -> ForestSpec:
        """What so many points can feed: half a table and an eighth of a cell each."""
        if points >= SMALL:
            return self
        depth = max(1, min(self.depth, int(np.log2(max(points / 8.0, 2.0)))))
        return replace(self, tables=min(self.tables, points // 2), depth=depth)


def edges_of(values: Floats, most: int = EDGES) -> tuple[float, ...]:
    distinct = np.unique(np.round(values, 9))
    if len(distinct) <= most:
        found = 0.5 * (distinct[1:] + distinct[:-1])
    else:
        found = np.quantile(values, np.linspace(0.0, 1.0, most + 1)[1:-1])
    return tuple(sorted({float(e) for e in found.astype(np.float32)}))


def grow(
    spec: ForestSpec, features: Mapping[str, Floats], target: Floats, shape: NDArray[np.int64], weights: Floats
) -> Forest | None:
    """``shape``: which whole shape each point belongs to. None where no feature varies."""
    spec = spec.within(len(target))
    edges = {name: found for name in sorted(features) if (found := edges_of(features[name]))}
    axes = list(edges)
    if not axes:
        return None
    bins = [np.searchsorted(edges[a], features[a], side="right").astype(np.int64) for a in axes]
    widths = [len(edges[a]) + 1 for a in axes]
    rng = np.random.default_rng(0)
    _, group = np.unique(shape, return_inverse=True)
    several = max(1, round(spec.features * len(axes)))
    left, splits, values = target.copy(), [], []
    for _ in range(spec.tables):
        robust = weights / np.maximum(1.0, np.abs(left) / ROBUST)
        part = np.flatnonzero((rng.random(int(group.max()) + 1) < spec.shapes)[group])
        seen = np.sort(rng.choice(len(axes), several, replace=False))
        pull, weight = (robust * left)[part], robust[part]
        questions, cell = _questions(spec, {int(f): bins[f][part] for f in seen}, widths, pull, weight)
        size = 1 << spec.depth
        gained = spec.rate * np.bincount(cell, pull, size) / (np.bincount(cell, weight, size) + spec.pull)
        # As stored: what rounding leaves, later tables make good.
        gained = np.clip(np.rint(gained / STEP), -127, 127) * STEP
        everywhere = np.zeros(len(target), dtype=np.int64)
        for f, edge in questions:
            everywhere = everywhere * 2 + (bins[f] > edge)
        left -= gained[everywhere]
        splits.append(questions)
        values.append(gained)
    return Forest(
        tuple(axes), tuple(edges[a] for a in axes), np.asarray(splits, dtype=np.uint8).reshape(-1, spec.depth, 2),
        np.asarray(values),
    ).rounded()  # fmt: skip


def _questions(
    spec: ForestSpec, bins: Mapping[int, NDArray[np.int64]], widths: Sequence[int], pull: Floats, weight: Floats
) -> tuple[list[tuple[int, int]], NDArray[np.int64]]:
    """The questions that explain most, one after the other, and each point's cell under them."""
    cell = np.zeros(len(pull), dtype=np.int64)
    questions: list[tuple[int, int]] = []
    for depth in range(spec.depth):
        best, question = -1.0, (0, 0)
        for f, column in bins.items():
            shape = (1 << depth, widths[f])
            key = cell * widths[f] + column
            g = np.bincount(key, pull, shape[0] * shape[1]).reshape(shape).cumsum(axis=1)
            w = np.bincount(key, weight, shape[0] * shape[1]).reshape(shape).cumsum(axis=1)
            low, high = g[:, :-1], g[:, -1:] - g[:, :-1]
            gain = low**2 / (w[:, :-1] + spec.pull) + high**2 / (w[:, -1:] - w[:, :-1] + spec.pull)
            each = gain.sum(axis=0)
            edge = int(each.argmax())
            if each[edge] > best:
                best, question = float(each[edge]), (f, edge)
        f, edge = question
        questions.append(question)
        cell = cell * 2 + (bins[f] > edge)
    return questions, cell
