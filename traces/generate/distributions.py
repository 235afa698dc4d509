"""Distributions of lengths, turns and times, as small frozen classes that map one to one to YAML.

Every one is sampled by inverting its distribution function: ``ppf(u)`` for uniform ``u``. That is what lets two of
them be coupled (``lengths.Lengths.correlation``) and keeps one draw per value, so that changing a parameter does not
shift the draws of the requests after it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from simulator.core.errors import TraceError
from traces.trace import Floats, Ints

_EVENLY = (np.arange(10_000) + 0.5) / 10_000  # probabilities


class Distribution(Protocol):
    """A distribution over non-negative numbers."""

    def ppf(self, u: Floats) -> Floats:
        """Values at the probabilities ``u`` in [0, 1)."""
        ...


@dataclass(frozen=True, slots=True)
class Fixed:
    """Always ``value``."""

    value: float

    def __post_init__(self) -> None:
        _check(self.value >= 0, f"fixed: value must be >= 0, not {self.value}")

    def ppf(self, u: Floats) -> Floats:
        return np.full(len(u), float(self.value))


@dataclass(frozen=True, slots=True)
class Uniform:
    """Equally likely between ``low`` and ``high``; whole numbers of tokens include both ends."""

    low: float
    high: float

    def __post_init__(self) -> None:
        _check(0 <= self.low <= self.high, f"uniform: need 0 <= low <= high, not {self.low} and {self.high}")

    def ppf(self, u: Floats) -> Floats:
        return self.low + (self.high - self.low) * u

    def tokens(self, u: Floats) -> Floats:
        # Rounding would give the two ends half the weight of the numbers between them.
        return np.minimum(np.floor(self.low + (self.high - self.low + 1) * u), self.high)


@dataclass(frozen=True, slots=True)
class Normal:
    """Normal with ``mean`` and ``std``, values outside [low, high] moved to the bound."""

    mean: float
    std: float
    low: float = 0.0
    high: float = float("inf")

    def __post_init__(self) -> None:
        _check(self.std >= 0, f"normal: std must be >= 0, not {self.std}")
        _check(0 <= self.low <= self.high, f"normal: need 0 <= low <= high, not {self.low} and {self.high}")

    def ppf(self, u: Floats) -> Floats:
        return np.asarray(np.clip(self.mean + self.std * _normal_ppf(u), self.low, self.high), dtype=np.float64)


MOST_SIGMA = 20.0  # beyond, e**(sigma z) leaves the range of a float


@dataclass(frozen=True, slots=True)
class LogNormal:
    """``median * exp(sigma * z)`` with normal ``z``, values outside [low, high] moved to the bound."""

    median: float
    sigma: float
    low: float = 0.0
    high: float = float("inf")

    def __post_init__(self) -> None:
        _check(self.median > 0, f"lognormal: median must be > 0, not {self.median}")
        _check(0 <= self.sigma <= MOST_SIGMA, f"lognormal: sigma must be from 0 to {MOST_SIGMA:g}, not {self.sigma}")
        _check(0 <= self.low <= self.high, f"lognormal: need 0 <= low <= high, not {self.low} and {self.high}")

    def ppf(self, u: Floats) -> Floats:
        return np.asarray(
            np.clip(self.median * np.exp(self.sigma * _normal_ppf(u)), self.low, self.high), dtype=np.float64
        )


@dataclass(frozen=True, slots=True)
class Exponential:
    """Exponential with the given mean (think times)."""

    mean: float

    def __post_init__(self) -> None:
        _check(self.mean > 0, f"exponential: mean must be > 0, not {self.mean}")

    def ppf(self, u: Floats) -> Floats:
        return -self.mean * np.log1p(-u)


@dataclass(frozen=True, slots=True)
class Geometric:
    """1, 2, 3, ... with the given mean (turns of a session); its continuation probability is ``1 - 1 / mean``."""

    mean: float

    def __post_init__(self) -> None:
        _check(self.mean >= 1, f"geometric: mean must be >= 1, not {self.mean}")

    def ppf(self, u: Floats) -> Floats:
        if self.mean == 1:
            return np.ones(len(u))
        turns: Floats = np.maximum(np.ceil(np.log1p(-u) / np.log1p(-1 / self.mean)), 1.0)
        return turns


@dataclass(frozen=True, slots=True)
class Quantiles:
    """An empirical distribution: ``values[i]`` at probability ``q[i]``, linear between them. ``q`` runs from 0 to 1."""

    q: tuple[float, ...]
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "q", tuple(map(float, self.q)))
        object.__setattr__(self, "values", tuple(map(float, self.values)))
        _check(len(self.q) == len(self.values) >= 2, "quantiles: q and values need the same length, two or more")
        _check(self.q[0] == 0 and self.q[-1] == 1, f"quantiles: q must run from 0 to 1, not {self.q[0]}..{self.q[-1]}")
        _check(all(a < b for a, b in zip(self.q, self.q[1:], strict=False)), "quantiles: q must rise")
        _check(
            all(a <= b for a, b in zip(self.values, self.values[1:], strict=False)), "quantiles: values must not fall"
        )
        _check(self.values[0] >= 0, f"quantiles: values must be >= 0, not {self.values[0]}")

    def ppf(self, u: Floats) -> Floats:
        return np.asarray(np.interp(u, self.q, self.values), dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Choice:
    """One of ``values`` with probability proportional to its weight."""

    values: tuple[float, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", tuple(map(float, self.values)))
        object.__setattr__(self, "weights", tuple(map(float, self.weights)))
        _check(
            len(self.values) == len(self.weights) >= 1, "choice: values and weights need the same length, one or more"
        )
        _check(min(self.weights) >= 0 < sum(self.weights), "choice: weights must be >= 0 and not all 0")
        _check(self.values[0] >= 0 and list(self.values) == sorted(self.values), "choice: values must rise from >= 0")

    def ppf(self, u: Floats) -> Floats:
        edges = np.cumsum(self.weights) / sum(self.weights)
        at = np.minimum(np.searchsorted(edges, u, side="right"), len(self.values) - 1)
        return np.asarray(np.array(self.values)[at], dtype=np.float64)


DISTRIBUTIONS: dict[str, type[Distribution]] = {
    "fixed": Fixed,
    "uniform": Uniform,
    "normal": Normal,
    "lognormal": LogNormal,
    "exponential": Exponential,
    "geometric": Geometric,
    "quantiles": Quantiles,
    "choice": Choice,
}


def whole(distribution: Distribution, u: Floats) -> Ints:
    """Whole numbers >= 1 at the probabilities ``u``: tokens, turns."""
    draw = distribution.tokens(u) if isinstance(distribution, Uniform) else np.rint(distribution.ppf(u))
    return np.maximum(draw, 1.0).astype(np.int64)


def below_one(distribution: Distribution) -> float:
    """Share of the draws that ``whole`` raises to 1: those below one half."""
    draws = distribution.tokens(_EVENLY) if isinstance(distribution, Uniform) else np.rint(distribution.ppf(_EVENLY))
    return float(np.mean(draws < 1))


def _normal_ppf(u: Floats) -> Floats:
    from scipy.special import ndtri  # scipy takes a while to load; most generators never need it

    tiny = np.finfo(np.float64).tiny
    return np.asarray(ndtri(np.clip(u, tiny, 1 - 1e-16)), dtype=np.float64)


def _check(ok: bool, message: str) -> None:
    if not ok:
        raise TraceError(message)
