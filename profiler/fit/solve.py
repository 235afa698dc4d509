"""Regularised least squares of surfaces, robust to single kernels that fall out of line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import splu

from simulator.cost.correction import Floats, Surface, corners

ROBUST = 0.03  # residuals beyond this count linearly, not squared: the bar is a mean ABSOLUTE error
ROUNDS = 3


@dataclass(frozen=True)
class SurfaceSpec:
    """A surface to fit. ``smooth``: weight of second differences per axis; ``ridge``: pull towards zero.

    Both count in points: with ridge 1 a coefficient needs one point's weight to move half way.
    """

    axes: tuple[str, ...]
    knots: tuple[tuple[float, ...], ...]
    smooth: tuple[float, ...]
    ridge: float = 0.05

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(len(axis) for axis in self.knots)

    def design(self, coordinates: Mapping[str, Floats]) -> sparse.csr_matrix:
        index, weight = corners(self.knots, [coordinates[a] for a in self.axes])
        size = index.shape[1]
        rows = np.broadcast_to(np.arange(size), index.shape)
        entries = (weight.ravel(), (rows.ravel(), index.ravel()))
        return sparse.csr_matrix(entries, shape=(size, int(np.prod(self.shape))))

    def penalty(self) -> sparse.csr_matrix:
        total = self.ridge * sparse.identity(int(np.prod(self.shape)), format="csr")
        for axis, weight in enumerate(self.smooth):
            difference = _second_difference(np.asarray(self.knots[axis]))
            if weight and difference.shape[0]:
                factors = [sparse.identity(n) for n in self.shape]
                factors[axis] = difference.T @ difference
                total = total + weight * _kron(factors)
        return total


def _kron(factors: Sequence[Any]) -> Any:
    whole: Any = factors[0]
    for factor in factors[1:]:
        whole = sparse.kron(whole, factor)
    return whole.tocsr()


def _second_difference(knots: Floats) -> sparse.csr_matrix:
    """Rows: the change of slope at each inner knot, scaled so that equal spacing gives (1, -2, 1)."""
    size = len(knots)
    if size < 3:
        return sparse.csr_matrix((0, size))
    step = np.diff(knots)
    mean = step.mean()
    rows = sparse.lil_matrix((size - 2, size))
    for i in range(size - 2):
        rows[i, i] = mean / step[i]
        rows[i, i + 1] = -mean / step[i] - mean / step[i + 1]
        rows[i, i + 2] = mean / step[i + 1]
    return rows.tocsr()


def solve(
    specs: Sequence[SurfaceSpec], coordinates: Mapping[str, Floats], target: Floats, weights: Floats | None = None
) -> list[Surface]:
    """Surfaces whose sum follows ``target``. Deterministic; iteratively reweighted towards least absolute errors."""
    design = sparse.hstack([s.design(coordinates) for s in specs]).tocsr()
    penalty = sparse.block_diag([s.penalty() for s in specs]).tocsc()
    base = np.ones(len(target)) if weights is None else weights
    scale, found = base, np.zeros(design.shape[1])
    for _ in range(ROUNDS):
        normal = (design.T @ sparse.diags(scale) @ design + penalty).tocsc()
        found = splu(normal, permc_spec="MMD_AT_PLUS_A", options={"SymmetricMode": True}).solve(
            design.T @ (scale * target)
        )
        scale = base / np.maximum(1.0, np.abs(target - design @ found) / ROBUST)
    surfaces, start = [], 0
    for spec in specs:
        size = int(np.prod(spec.shape))
        surfaces.append(Surface(spec.axes, spec.knots, found[start : start + size].reshape(spec.shape)))
        start += size
    return surfaces
