"""Fits a recipe, and measures its error on whole shapes that the fit did not see."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
import pandas as pd

from profiler.fit.boost import grow
from profiler.fit.constants import fit_constants
from profiler.fit.operators import Recipe, number_of
from profiler.fit.solve import solve
from simulator.cost.calibration import Fit, HeldOut
from simulator.cost.correction import Floats, Surface, correction
from simulator.cost.forest import Forest
from simulator.cost.kernels import Ceilings, Constants
from simulator.cost.laws import Points

FOLDS = 5


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


def _part(points: Points, chosen: np.ndarray) -> dict[str, Floats]:
    return {name: column[chosen] for name, column in points.items()}


def fit(recipe: Recipe, ceilings: Ceilings, frame: pd.DataFrame, dtype: str) -> Fitted:
    """Constants of the physics and surfaces on what they leave; again per fold for the error."""
    number = number_of(dtype)[0]
    points, seconds = recipe.points(frame, dtype), frame["seconds"].to_numpy(dtype=float)
    fold = folds_by_shape(frame, recipe.shape)
    shapes = frame.drop_duplicates(list(recipe.shape)).shape[0]
    whole = frame["whole"].to_numpy(dtype=float) if "whole" in frame else seconds
    weights = (seconds / whole) ** 2 * (frame["weight"].to_numpy(dtype=float) if "weight" in frame else 1.0)
    shape = frame.groupby(list(recipe.shape), sort=True).ngroup().to_numpy()
    constants, surfaces, forest = _fit(recipe, ceilings, number, points, seconds, weights, shape)
    predicted = np.full(len(seconds), np.nan)
    count = min(FOLDS, shapes)
    if count > 1:
        for i in range(count):
            train, test = fold != i, fold == i
            own = _fit(
                recipe, ceilings, number, _part(points, train), seconds[train], weights[train], shape[train], constants
            )
            predicted[test] = predict(recipe, ceilings, number, *own, _part(points, test))
    error = np.abs(predicted - seconds) / whole
    alone = np.abs(recipe.law.seconds(constants, ceilings, number, points) - seconds) / whole
    held_out = None if count < 2 else HeldOut.of(error, shapes, count)
    return Fitted(constants, tuple(s.rounded() for s in surfaces), forest, number, held_out, float(alone.mean()))


def _fit(
    recipe: Recipe,
    ceilings: Ceilings,
    number: str,
    points: Points,
    seconds: Floats,
    weights: Floats,
    shape: np.ndarray,
    near: Constants | None = None,
) -> tuple[Constants, list[Surface], Forest | None]:
    """The best over the law's switches; with ``near``, its switches stay. A forest grows on what surfaces leave."""
    law, best = recipe.law, None
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
    return constants, surfaces, grow(recipe.forest, features, left, shape, weights)


def predict(
    recipe: Recipe, ceilings: Ceilings, number: str, constants: Constants, surfaces: list[Surface],
    forest: Forest | None, points: Points,
) -> Floats:  # fmt: skip
    """As a calibration will: never under the ceilings."""
    law = recipe.law
    fit = Fit(law.operator, "", number, constants, tuple(surfaces), None, {}, {}, forest)
    return fit.seconds(ceilings, points)
