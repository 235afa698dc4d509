"""The few constants of a law's physics, by robust nonlinear least squares on a sample of the points."""

from __future__ import annotations

import numpy as np
from scipy.optimize import least_squares

from simulator.cost.correction import Floats
from simulator.cost.kernels import Ceilings, Constants
from simulator.cost.laws import Law, Points

SAMPLE = 5000
FREE = (
    "memory",
    "compute",
    "foreign",
    "last_wave",
)  # unbounded as they are; every other constant is positive: its logarithm
EVALUATIONS = 30
CLIP = 0.7  # a point that misses by more, in the logarithm, is an outlier
REFINE = 8  # of a start that other points of the same table gave


def _free(name: str) -> bool:
    return name in FREE or name.startswith("tile_")


def fit_constants(
    law: Law,
    ceilings: Ceilings,
    number: str,
    points: Points,
    seconds: Floats,
    switches: Constants,
    near: Constants | None = None,
) -> Constants:
    """Constants that follow the measured seconds (outliers count linearly), from ``near`` or the law's own start."""
    size = len(seconds)
    rng = np.random.default_rng(0)
    chosen = np.sort(rng.choice(size, SAMPLE, replace=False)) if size > SAMPLE else np.arange(size)
    sample = {name: column[chosen] for name, column in points.items()}
    target = np.log(seconds[chosen])
    names = list(law.start)
    given = near or law.start
    start = np.array([given[n] if _free(n) else np.log(given[n]) for n in names])

    def constants(x: Floats) -> dict[str, float]:
        return {n: float(v) if _free(n) else float(np.exp(v)) for n, v in zip(names, x, strict=True)} | dict(switches)

    def misses(x: Floats) -> Floats:
        return np.asarray(np.log(law.seconds(constants(x), ceilings, number, sample)) - target)

    def residuals(x: Floats, clip: float = CLIP) -> Floats:
        return np.concatenate([np.clip(misses(x), -clip, clip), 0.02 * (x - start)])

    if np.mean(np.abs(misses(start)) > CLIP) > 0.1:
        # Much slower or faster than the start: clipped points pull at nothing, so first the scale, every point heard.
        far = least_squares(
            residuals, start, loss="soft_l1", f_scale=0.3, max_nfev=EVALUATIONS, diff_step=[1e-3], args=(np.inf,)
        )
        start = far.x
    evaluations = REFINE if near else EVALUATIONS
    result = least_squares(residuals, start, loss="soft_l1", f_scale=0.03, max_nfev=evaluations, diff_step=[1e-3])
    return {n: float(f"{v:.6g}") for n, v in constants(result.x).items()}
