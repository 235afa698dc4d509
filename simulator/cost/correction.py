"""Smooth corrections over the logarithm of a shape: sums of multilinear (hat-function) surfaces on knots.

A correction is what is left of a measured kernel's time when physics has been divided out: ``log t = log physics +
sum of surfaces``. Each surface spans some of the shape's coordinates. Outside its knots a surface keeps the value of
its edge, so that beyond the measured range the last known efficiency holds.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
STEP = 5e-4  # coefficients are stored as multiples of this: 0.05 % of a kernel's time


@dataclass(frozen=True)
class Surface:
    """One tensor-product surface: hat functions on ``knots[i]`` (ascending) of the coordinate ``axes[i]``."""

    axes: tuple[str, ...]
    knots: tuple[tuple[float, ...], ...]
    values: Floats  # shape: one length per axis

    def at(self, coordinates: Mapping[str, Floats]) -> Floats:
        """The surface at points given by one array per coordinate."""
        index, weight = corners(self.knots, [coordinates[a] for a in self.axes])
        flat = self.values.ravel()
        total: Floats = (flat[index] * weight).sum(axis=0)
        return total

    def to_json(self) -> dict[str, Any]:
        steps = np.rint(self.values / STEP).astype("<i2")
        packed = base64.b64encode(zlib.compress(steps.tobytes(), 9)).decode()
        return {"axes": list(self.axes), "knots": [[round(k, 6) for k in axis] for axis in self.knots], "int16": packed}

    @staticmethod
    def from_json(row: Mapping[str, Any]) -> Surface:
        """Raises ValueError, KeyError or zlib.error on a damaged row."""
        knots = tuple(tuple(float(k) for k in axis) for axis in row["knots"])
        steps = np.frombuffer(zlib.decompress(base64.b64decode(row["int16"])), dtype="<i2")
        return Surface(tuple(row["axes"]), knots, (steps * STEP).reshape([len(axis) for axis in knots]))

    def rounded(self) -> Surface:
        """As it will be read back from a file."""
        return Surface.from_json(self.to_json())


def corners(knots: Sequence[Sequence[float]], coordinates: Sequence[Floats]) -> tuple[NDArray[np.int64], Floats]:
    """Flat indices and weights of the ``2^D`` knots around each point: two arrays (2^D, points)."""
    low, share, strides = [], [], []
    stride = 1
    for axis in reversed(knots):
        strides.append(stride)
        stride *= len(axis)
    strides.reverse()
    for axis, x in zip(knots, coordinates, strict=True):
        k = np.asarray(axis, dtype=float)
        if len(k) == 1:
            low.append(np.zeros(len(x), dtype=np.int64))
            share.append(np.zeros(len(x)))
            continue
        i = np.clip(np.searchsorted(k, x, side="right") - 1, 0, len(k) - 2)
        low.append(i)
        share.append(np.clip((x - k[i]) / (k[i + 1] - k[i]), 0.0, 1.0))
    sides = [(0,) if len(axis) == 1 else (0, 1) for axis in knots]
    index, weight = [], []
    for corner in product(*sides):
        index.append(sum((low[d] + c) * strides[d] for d, c in enumerate(corner)))
        w = np.ones(len(coordinates[0]))
        for d, c in enumerate(corner):
            w = w * (share[d] if c else 1.0 - share[d])
        weight.append(w)
    return np.asarray(index, dtype=np.int64), np.asarray(weight)


def correction(surfaces: Sequence[Surface], coordinates: Mapping[str, Floats]) -> Floats:
    """Sum of surfaces: the logarithm of measured over physics."""
    size = len(next(iter(coordinates.values())))
    total = np.zeros(size)
    for surface in surfaces:
        total += surface.at(coordinates)
    return total


def monotone(values: Floats, axis: int = -1) -> Floats:
    """The nearest positive array that never falls along ``axis``, in squared logarithms: neighbours that fall are
    pooled at their geometric mean. One value too high (a batch of one that runs another kernel) then moves the others
    little.

    Pool adjacent violators: Robertson, Wright and Dykstra, Order Restricted Statistical Inference, 1988. It keeps the
    order of two arrays, so that what rises along one axis still does after another, and stays above any bound that
    rises itself.
    """
    logs = np.moveaxis(np.log(values), axis, -1)
    rising = (np.diff(logs, axis=-1) >= 0.0).all(axis=-1)
    pooled = logs.copy()
    for row in np.argwhere(~rising):
        pooled[tuple(row)] = _pooled(logs[tuple(row)].tolist())
    found = np.where(np.moveaxis(pooled == logs, -1, axis), values, np.exp(np.moveaxis(pooled, -1, axis)))
    return np.asarray(np.maximum.accumulate(found, axis=axis))  # but for rounding it rises already


def _pooled(values: list[float]) -> Floats:
    means: list[float] = []
    sizes: list[int] = []
    for value in values:
        mean, size = value, 1
        while means and means[-1] > mean:
            mean = (means[-1] * sizes[-1] + mean * size) / (sizes[-1] + size)
            size += sizes.pop()
            means.pop()
        means.append(mean)
        sizes.append(size)
    return np.repeat(means, sizes)
