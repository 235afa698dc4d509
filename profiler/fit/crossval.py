"""Fits a recipe, and measures its error on whole shapes that the fit did not see."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
import pandas as pd

from profiler.fit.boost import grow
from profiler.fit.constants import fit_constants
from profiler.fit.operators import Recipe, knots, number_of
from profiler.fit.solve import SurfaceSpec, solve
from simulator.cost.calibration import Fit, HeldOut
from simulator.cost.correction import Floats, Surface, correction
from simulator.cost.forest import Forest
from simulator.cost.kernels import Ceilings, Constants
from simulator.cost.laws import Points

FOLDS = 5
RATIO_KNOTS = (8, 64, 512, 4096)  # of two formats' times, along each axis


@dataclass(frozen=True)
class Fitted:
    constants: Constants
    surfaces: tuple[Surface, ...]
    forest: Forest | None
    number: str
    held_out: HeldOut | None
    physics_alone: float  # mean error of the physics without a correction


def folds_by_shape(frame: pd.DataFrame, columns: tuple[str, ...], folds: int = FOLDS, seed: int = 0) -> np.ndarray:
    """A fold for every row; rows of one whole shape share theirs."""
    shape = frame.groupby(list(columns), sort=True).ngroup().to_numpy()
    order = np.random.default_rng(seed).permutation(int(shape.max()) + 1)
    return np.asarray(order[shape] % folds)


@dataclass(frozen=True)
class Sample:
    """Rows to fit. ``weights`` of their points; ``shape``: which whole shape each belongs to.

    ``twin``: seconds of another format's row of the same shape, or NaN; ``host``: the row's own seconds are the host's.
    """

    points: Points
    seconds: Floats
    weights: Floats
    shape: np.ndarray
    twin: Floats
    host: np.ndarray

    def part(self, chosen: np.ndarray) -> Sample:
        points = {name: column[chosen] for name, column in self.points.items()}
        return Sample(points, *(x[chosen] for x in (self.seconds, self.weights, self.shape, self.twin, self.host)))

    def kernels_only(self, recipe: Recipe) -> Floats:
        """Seconds of the kernels. Where a row timed the host, its twin's at the ratio that the two formats keep where
        it did not (least squares over m, n and k apart; far from any such row they are alike), and never longer than
        the host waited.
        """
        if not self.host.any():
            return self.seconds
        coordinates = {name: np.log(self.points[name]) for name in recipe.columns}
        known = ~self.host & ~np.isnan(self.twin)
        seen = {name: column[known] for name, column in coordinates.items()}
        specs = [
            SurfaceSpec((name,), (knots(column, *RATIO_KNOTS),), (1.0,), 3.0) for name, column in coordinates.items()
        ]
        ratio = solve(specs, seen, np.log(self.seconds[known] / self.twin[known]))
        alike = self.twin * np.exp(correction(ratio, coordinates))
        return np.where(self.host, np.minimum(alike, self.seconds), self.seconds)


def fit(recipe: Recipe, ceilings: Ceilings, frame: pd.DataFrame, dtype: str) -> Fitted:
    """Constants of the physics and surfaces on what they leave; again per fold for the error, which counts only rows
    that timed a kernel.
    """
    number = number_of(dtype)[0]
    points, seconds = recipe.points(frame, dtype), frame["seconds"].to_numpy(dtype=float)
    fold = folds_by_shape(frame, recipe.shape)
    shapes = frame.drop_duplicates(list(recipe.shape)).shape[0]
    whole = frame["whole"].to_numpy(dtype=float) if "whole" in frame else seconds
    weights = (seconds / whole) ** 2 * (frame["weight"].to_numpy(dtype=float) if "weight" in frame else 1.0)
    shape = frame.groupby(list(recipe.shape), sort=True).ngroup().to_numpy()
    host = frame["host"].to_numpy(dtype=bool) if "host" in frame else np.zeros(len(frame), dtype=bool)
    twin = frame["twin"].to_numpy(dtype=float) if "host" in frame else np.full(len(frame), np.nan)
    sample = Sample(points, seconds, weights, shape, twin, host)
    constants, surfaces, forest = _fit(recipe, ceilings, number, sample)
    predicted = np.full(len(seconds), np.nan)
    count = min(FOLDS, shapes)
    if count > 1:
        for i in range(count):
            test = fold == i
            own = _fit(recipe, ceilings, number, sample.part(~test), constants)
            predicted[test] = predict(recipe, ceilings, number, *own, sample.part(test).points)
    error = (np.abs(predicted - seconds) / whole)[~host]
    alone = (np.abs(recipe.law.seconds(constants, ceilings, number, points) - seconds) / whole)[~host]
    held_out = None if count < 2 else HeldOut.of(error, len(np.unique(shape[~host])), count)
    return Fitted(constants, tuple(s.rounded() for s in surfaces), forest, number, held_out, float(alone.mean()))


def _fit(
    recipe: Recipe, ceilings: Ceilings, number: str, sample: Sample, near: Constants | None = None
) -> tuple[Constants, list[Surface], Forest | None]:
    """The best over the law's switches; with ``near``, its switches stay. A forest grows on what surfaces leave."""
    law, best = recipe.law, None
    points, weights, seconds = sample.points, sample.weights, sample.kernels_only(recipe)
    names = list(law.switches)
    for setting in product(*(law.switches[n] if near is None else (near[n],) for n in names)):
        switches = dict(zip(names, setting, strict=True))
        constants = fit_constants(law, ceilings, number, points, seconds, switches, near)
        physics = law.seconds(constants, ceilings, number, points)
        coordinates = law.coordinates(constants, points)
        target = np.log(seconds / physics)
        surfaces = solve(recipe.specs(coordinates), coordinates, target, weights)
        miss = float(np.average(np.abs(target - correction(surfaces, coordinates)), weights=weights))
        if best is None or miss < best[0]:
            best = miss, constants, surfaces
    assert best is not None
    _, constants, surfaces = best
    coordinates = law.coordinates(constants, points)
    if recipe.forest is None or law.features is None:
        return constants, surfaces, None
    left = np.log(seconds / law.seconds(constants, ceilings, number, points)) - correction(surfaces, coordinates)
    features = law.features(ceilings, points, coordinates)
    return constants, surfaces, grow(recipe.forest, features, left, sample.shape, weights)


def predict(
    recipe: Recipe, ceilings: Ceilings, number: str, constants: Constants, surfaces: list[Surface],
    forest: Forest | None, points: Points,
) -> Floats:  # fmt: skip
    """As a calibration will: never under the ceilings."""
    law = recipe.law
    fit = Fit(law.operator, "", number, constants, tuple(surfaces), None, {}, {}, forest)
    return fit.seconds(ceilings, points)
