"""What a comparison yields: one residual per predicted number, metrics over them, notes on what was assumed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True, slots=True)
class Residual:
    """One number of a measurement and the simulator's prediction of it.

    load: what drives the error in this kind of data (concurrency, rate, batch size), for the pictures.
    part: ``test``, ``train`` (engine overhead was fitted on it) or ``apart`` (reported, in no metric).
    """

    kind: str
    case: str
    metric: str
    unit: str
    predicted: float
    measured: float
    model: str
    gpu: str
    load: float
    part: str = "test"

    @property
    def error(self) -> float:
        """Relative: predicted / measured - 1."""
        return self.predicted / self.measured - 1.0


@dataclass(frozen=True, slots=True)
class Metric:
    """A line of the output. ``bar``: the absolute value it should stay below."""

    name: str
    value: float
    unit: str
    bar: float | None = None

    def __str__(self) -> str:
        return f"{self.name}={self.value:.4g} {self.unit}"

    @property
    def met(self) -> bool | None:
        return None if self.bar is None else abs(self.value) <= self.bar


@dataclass(frozen=True, slots=True)
class Comparison:
    """Measurements of one file or folder against the simulator. ``notes``: what was assumed or left out.

    stated: metrics that something else claims, to be printed beside those of the residuals.
    """

    kind: str
    path: Path
    residuals: tuple[Residual, ...]
    notes: tuple[str, ...] = ()
    stated: tuple[Metric, ...] = ()


def slug(name: str) -> str:
    """``openai/gpt-oss-120b`` -> ``gpt-oss-120b``: a part of a metric's name."""
    return re.sub(r"[^\w.+-]+", "-", name.rsplit("/", 1)[-1])


Statistic = Callable[[np.ndarray], float]


def mape(errors: np.ndarray) -> float:
    """Mean absolute error, per cent."""
    return float(100.0 * np.abs(errors).mean())


def bias(errors: np.ndarray) -> float:
    """Mean signed error, per cent."""
    return float(100.0 * errors.mean())


def median_error(errors: np.ndarray) -> float:
    """Median absolute error, per cent."""
    return float(100.0 * np.median(np.abs(errors)))


def errors_of(residuals: Iterable[Residual], metric: str) -> np.ndarray:
    """Errors of one metric, those set apart left out."""
    return np.array([r.error for r in residuals if r.metric == metric and r.part != "apart"])


def over(residuals: Iterable[Residual], metric: str, statistic: Statistic) -> float:
    """A statistic of the errors of one metric; NaN without residuals."""
    errors = errors_of(residuals, metric)
    return statistic(errors) if len(errors) else float("nan")


def metrics_of(
    kind: str, residuals: Sequence[Residual], name: str, statistic: Statistic, bars: dict[str, float]
) -> list[Metric]:
    """The statistic of each metric over everything, over what no overhead was fitted on, and per model.

    bars: of the metrics to report, with the error (per cent) each should stay below.
    """
    found = []
    parts = {r.part for r in residuals}
    models = sorted({r.model for r in residuals})
    for metric, bar in bars.items():
        found.append(Metric(f"{kind}.{metric}.{name}", over(residuals, metric, statistic), "%", bar))
        found.append(Metric(f"{kind}.{metric}.bias", over(residuals, metric, bias), "%"))
        if {"train", "test"} <= parts:
            held = [r for r in residuals if r.part == "test"]
            found.append(Metric(f"{kind}.{metric}.{name}.held_out", over(held, metric, statistic), "%", bar))
        if len(models) > 1:
            for model in models:
                own = [r for r in residuals if r.model == model]
                found.append(Metric(f"{kind}.{metric}.{name}.{slug(model)}", over(own, metric, statistic), "%"))
    return found
