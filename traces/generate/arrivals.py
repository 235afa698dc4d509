"""Arrival processes, as small frozen classes that map one to one to YAML.

``times(n, rng)`` gives the first ``n`` arrivals in seconds. ``at_rate(rate, n)`` is the same process with a mean rate
of ``rate`` over the window that ``n`` requests take; burstiness and shape stay.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Protocol, Self

import numpy as np

from simulator.core.errors import TraceError
from traces.generate.distributions import Quantiles
from traces.trace import Floats


class Arrivals(Protocol):
    """A point process."""

    def times(self, n: int, rng: np.random.Generator) -> Floats:
        """The first ``n`` arrivals, s, non-decreasing."""
        ...

    def at_rate(self, rate: float, n: int) -> Self:
        """The same process with ``rate`` requests/s on average over its first ``n`` arrivals."""
        ...


@dataclass(frozen=True, slots=True)
class Poisson:
    """Independent arrivals at ``rate`` per second."""

    rate: float

    def __post_init__(self) -> None:
        _positive("poisson", "rate", self.rate)

    def times(self, n: int, rng: np.random.Generator) -> Floats:
        return np.cumsum(rng.exponential(1 / self.rate, n))

    def at_rate(self, rate: float, n: int) -> Self:  # noqa: ARG002
        return replace(self, rate=rate)


@dataclass(frozen=True, slots=True)
class Gamma:
    """Gamma gaps, as ``vllm bench serve --burstiness`` draws them: shape ``burstiness``, mean ``1 / rate``.

    burstiness 1 is Poisson, below 1 burstier (the gaps' CV is ``burstiness ** -0.5``), above 1 more even, infinity
    constant (vllm/benchmarks/serve.py).
    """

    rate: float
    burstiness: float = 1.0

    def __post_init__(self) -> None:
        _positive("gamma", "rate", self.rate)
        if not self.burstiness > 0:
            raise TraceError(f"gamma: burstiness must be > 0, not {self.burstiness}")

    def times(self, n: int, rng: np.random.Generator) -> Floats:
        if math.isinf(self.burstiness):
            return Constant(self.rate).times(n, rng)
        return np.cumsum(rng.gamma(self.burstiness, 1 / (self.rate * self.burstiness), n))

    def at_rate(self, rate: float, n: int) -> Self:  # noqa: ARG002
        return replace(self, rate=rate)


@dataclass(frozen=True, slots=True)
class Weibull:
    """Weibull gaps with the given ``shape`` and mean ``1 / rate``; below 1 burstier than Poisson."""

    rate: float
    shape: float

    def __post_init__(self) -> None:
        _positive("weibull", "rate", self.rate)
        _positive("weibull", "shape", self.shape)

    def times(self, n: int, rng: np.random.Generator) -> Floats:
        return np.cumsum(rng.weibull(self.shape, n) / (self.rate * math.gamma(1 + 1 / self.shape)))

    def at_rate(self, rate: float, n: int) -> Self:  # noqa: ARG002
        return replace(self, rate=rate)


@dataclass(frozen=True, slots=True)
class Constant:
    """One arrival every ``1 / rate`` seconds."""

    rate: float

    def __post_init__(self) -> None:
        _positive("constant", "rate", self.rate)

    def times(self, n: int, rng: np.random.Generator) -> Floats:  # noqa: ARG002
        return np.arange(1, n + 1) / self.rate

    def at_rate(self, rate: float, n: int) -> Self:  # noqa: ARG002
        return replace(self, rate=rate)


@dataclass(frozen=True, slots=True)
class AtOnce:
    """Everything at 0 s: offline batch inference, vLLM's ``--request-rate inf``."""

    def times(self, n: int, rng: np.random.Generator) -> Floats:  # noqa: ARG002
        return np.zeros(n)

    def at_rate(self, rate: float, n: int) -> Self:  # noqa: ARG002
        raise TraceError(f"at_once: every request arrives at 0 s, so there is no rate of {rate:g} requests/s to have")


@dataclass(frozen=True, slots=True)
class Gaps:
    """Independent gaps from an empirical distribution (``q``, ``values``), stretched to a mean of ``1 / rate``.

    Keeps the tail that a gamma law with the same CV does not have: a burst and then minutes of silence.
    """

    rate: float
    q: tuple[float, ...]
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        _positive("gaps", "rate", self.rate)
        shape = Quantiles(self.q, self.values)
        object.__setattr__(self, "q", shape.q)
        object.__setattr__(self, "values", shape.values)
        _positive("gaps", "largest value", self.values[-1])

    def times(self, n: int, rng: np.random.Generator) -> Floats:
        mean = float(np.trapezoid(self.values, self.q))
        return np.cumsum(Quantiles(self.q, self.values).ppf(rng.random(n))) / (mean * self.rate)

    def at_rate(self, rate: float, n: int) -> Self:  # noqa: ARG002
        return replace(self, rate=rate)


@dataclass(frozen=True, slots=True)
class OnOff:
    """Two-state Markov-modulated Poisson process: ``rate_on`` and ``rate_off`` for exponential times of given means."""

    rate_on: float
    mean_on_s: float
    mean_off_s: float
    rate_off: float = 0.0

    def __post_init__(self) -> None:
        for name in ("rate_on", "mean_on_s", "mean_off_s"):
            _positive("on_off", name, getattr(self, name))
        if not 0 <= self.rate_off < math.inf:
            raise TraceError(f"on_off: rate_off must be >= 0 and finite, not {self.rate_off}")

    @property
    def rate(self) -> float:
        """Long-run mean, requests/s."""
        on, off = self.mean_on_s, self.mean_off_s
        return (self.rate_on * on + self.rate_off * off) / (on + off)

    def times(self, n: int, rng: np.random.Generator) -> Floats:
        # A unit Poisson process run through the random integrated rate: exact, and no event-by-event loop.
        needed = np.cumsum(rng.exponential(1.0, n))
        spans = np.zeros(0)
        expected = self.rate_on * self.mean_on_s + self.rate_off * self.mean_off_s
        while n and _mass(spans, self.rate_on, self.rate_off) <= needed[-1]:
            cycles = 16 + int(1.1 * needed[-1] / expected)
            more = rng.exponential(1.0, (cycles, 2)) * (self.mean_on_s, self.mean_off_s)
            spans = np.concatenate((spans, more.ravel()))
        rates = np.tile((self.rate_on, self.rate_off), len(spans) // 2)
        edges = np.concatenate(([0.0], np.cumsum(spans)))
        mass = np.concatenate(([0.0], np.cumsum(spans * rates)))
        at = np.searchsorted(mass, needed, side="left") - 1
        return edges[at] + (needed - mass[at]) / rates[at] if n else needed

    def at_rate(self, rate: float, n: int) -> Self:  # noqa: ARG002
        """Same states for the same times, both rates scaled."""
        _positive("on_off", "rate", rate)
        factor = rate / self.rate
        return replace(self, rate_on=self.rate_on * factor, rate_off=self.rate_off * factor)


@dataclass(frozen=True, slots=True)
class RateCurve:
    """A rate that changes over time: ``rates[i]`` per second at ``times_s[i]``, linear between, then repeated or held.

    A jump is two equal times. Arrivals are those of ``within`` at one per second, moved by the inverse of the
    integrated rate (Cinlar 1975, ch. 4: exact for Poisson; for other processes it keeps the local burstiness).
    """

    times_s: tuple[float, ...]
    rates: tuple[float, ...]
    within: Poisson | Gamma | Weibull | Constant | Gaps = field(default_factory=lambda: Poisson(1.0))
    repeat: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "times_s", tuple(map(float, self.times_s)))
        object.__setattr__(self, "rates", tuple(map(float, self.rates)))
        t, r = np.array(self.times_s), np.array(self.rates)
        if len(t) != len(r) or len(t) < 2:
            raise TraceError("rate_curve: times_s and rates need the same length, two or more")
        if t[0] != 0 or (np.diff(t) < 0).any() or not np.isfinite(t).all():
            raise TraceError("rate_curve: times_s must start at 0 and never fall")
        if (r < 0).any() or not np.isfinite(r).all():
            raise TraceError(f"rate_curve: rates must be >= 0 and finite, not {r.min():g}..{r.max():g}")
        if not self._masses()[-1] > 0 or not (self.repeat or r[-1] > 0):
            raise TraceError("rate_curve: the rate is 0 for ever after some time, so the requests would never arrive")

    def _masses(self) -> Floats:
        """Expected arrivals up to each knot."""
        t, r = np.array(self.times_s), np.array(self.rates)
        return np.concatenate(([0.0], np.cumsum(np.diff(t) * (r[1:] + r[:-1]) / 2)))

    def expected(self, time_s: float) -> float:
        """Expected arrivals in the first ``time_s`` seconds."""
        t, r, mass = np.array(self.times_s), np.array(self.rates), self._masses()
        rounds = math.floor(time_s / t[-1]) if self.repeat else 0
        rest = time_s - rounds * t[-1]
        if rest >= t[-1]:
            return float(mass[-1] + (rest - t[-1]) * r[-1])
        i = int(np.searchsorted(t, rest, side="right")) - 1
        x = rest - t[i]
        end = r[i] + (r[i + 1] - r[i]) * x / (t[i + 1] - t[i])
        return float(rounds * mass[-1] + mass[i] + x * (r[i] + end) / 2)

    def times(self, n: int, rng: np.random.Generator) -> Floats:
        return self.inverse(self.within.at_rate(1.0, n).times(n, rng))

    def inverse(self, mass: Floats) -> Floats:
        """Times by which that many arrivals are expected."""
        t, r, knots = np.array(self.times_s), np.array(self.rates), self._masses()
        rounds = np.floor(mass / knots[-1]) if self.repeat else np.zeros(len(mass))
        rest = mass - rounds * knots[-1]
        i = np.clip(np.searchsorted(knots, rest, side="left") - 1, 0, len(t) - 2)
        left = rest - knots[i]
        width = np.maximum(t[i + 1] - t[i], np.finfo(float).tiny)
        slope = np.where(t[i + 1] > t[i], (r[i + 1] - r[i]) / width, 0.0)
        # Root of r x + slope x^2 / 2 = left, in the form that does not cancel.
        root = np.sqrt(np.maximum(r[i] ** 2 + 2 * slope * left, 0.0))
        x = np.where(left > 0, 2 * left / np.maximum(r[i] + root, np.finfo(float).tiny), 0.0)
        found = t[i] + np.minimum(x, t[i + 1] - t[i]) + rounds * t[-1]
        beyond = t[-1] + (rest - knots[-1]) / r[-1] if r[-1] > 0 else found
        return np.maximum.accumulate(np.where(rest > knots[-1], beyond, found)) if len(mass) else found

    def at_rate(self, rate: float, n: int) -> Self:
        """The curve scaled so that ``n`` arrivals are expected in its first ``n / rate`` seconds."""
        _positive("rate_curve", "rate", rate)
        expected = self.expected(n / rate)
        if expected <= 0:
            raise TraceError(
                f"rate_curve: its rate is 0 throughout the first {n / rate:g} s; no scale gives {n} requests"
            )
        return replace(self, rates=tuple(r * n / expected for r in self.rates))


def diurnal(
    rate: float, *, amplitude: float = 0.5, peak_s: float = 14 * 3600.0, period_s: float = 86_400.0
) -> RateCurve:
    """A sine day: mean ``rate``, peak ``rate * (1 + amplitude)`` at ``peak_s``, as a curve of 96 straight pieces."""
    _positive("diurnal", "rate", rate)
    _positive("diurnal", "period_s", period_s)
    if not 0 <= amplitude <= 1:
        raise TraceError(f"diurnal: amplitude must lie in [0, 1], not {amplitude}")
    t = np.linspace(0.0, period_s, 97)
    rates = rate * (1 + amplitude * np.cos(2 * np.pi * (t - peak_s) / period_s))
    return RateCurve(tuple(t), tuple(np.maximum(rates, 0.0)))


ARRIVALS: dict[str, type[Arrivals]] = {
    "poisson": Poisson,
    "gamma": Gamma,
    "weibull": Weibull,
    "constant": Constant,
    "at_once": AtOnce,
    "gaps": Gaps,
    "on_off": OnOff,
    "rate_curve": RateCurve,
}


def _mass(spans: Floats, rate_on: float, rate_off: float) -> float:
    return float(spans[0::2].sum() * rate_on + spans[1::2].sum() * rate_off)


def _positive(kind: str, name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise TraceError(f"{kind}: {name} must be > 0 and finite, not {value}")
