"""The pictures of a plan's report, as inline SVG in the page's colours."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
from markupsafe import Markup

from simulator.planning import answer as words
from simulator.planning.capacity import t_half_width
from simulator.planning.outcome import Answer, Outcome
from simulator.planning.pictures import BEST
from simulator.planning.probe import Probe
from simulator.report.svg import Limit, Series, line_chart, number

Figure = dict[str, Any]
PLACES = ("best", "2nd", "3rd", "4th", "5th")
TRAFFIC = 1.2


def figures(answer: Answer) -> list[Figure]:
    """Those there is something to show in."""
    drawn = (goodput(answer), pareto(answer), against_slo(answer), tornado(answer), hours(answer), attainment(answer))
    return [figure for figure in drawn if figure is not None]


def goodput(answer: Answer) -> Figure | None:
    best = answer.best
    if best is None or best.sustained is None or not answer.curves.get(best.design.index):
        return None
    series, most = [], 0.0
    for place, outcome in enumerate(answer.ranked[:2]):
        x, mean, _ = _mean_goodput(answer.curves.get(outcome.design.index, ()), answer.file.plan.confidence)
        if len(x):
            series.append(Series(PLACES[place], x, mean, colour=1 + place, area=place == 0))
            most = max(most, float(x[-1]))
    line = np.array([0.0, most])
    series.append(Series("offered", line, line, colour=4))
    asked = () if answer.file.plan.rate is None else (Limit(answer.file.plan.rate, "asked"),)
    at = float(np.interp(best.sustained.rate, series[0].x, series[0].y))
    svg = line_chart(
        series,
        x_label="offered requests/s",
        y_label="requests/s within every limit",
        summary="Goodput of the best two designs against the offered rate",
        x_range=(0.0, most),
        x_limits=asked,
        dots=((best.sustained.rate, at, f"sustains {number(best.sustained.rate)}"),),
    )
    _, _, half = _mean_goodput(answer.curves[best.design.index], answer.file.plan.confidence)
    wide = float(np.max(half)) if len(half) else 0.0
    caption = (
        f"Mean of {len(best.sustained.by_seed)} replications. The best design's knee lies at "
        f"{number(best.sustained.rate)} requests/s ({words.interval(answer, best)}): above it the SLO's percentile is "
        f"missed, and goodput leaves the offered line. A run lasts until its last answer, which keeps goodput a "
        f"little under that line. Widest interval of a point: ±{number(wide)} requests/s."
    )
    return {"title": "Goodput against rate", "svg": Markup(svg), "caption": caption}  # noqa: S704  svg.py escapes


def _mean_goodput(probes: Sequence[Probe], confidence: float) -> tuple[Any, Any, Any]:
    """(rates, mean goodput, half width of its interval), a point per rate."""
    rates = sorted({probe.rate for probe in probes})
    values = [[p.goodput_request_per_s or 0.0 for p in probes if p.rate == rate] for rate in rates]
    mean = np.array([float(np.mean(found)) for found in values])
    return np.array(rates), mean, np.array([t_half_width(found, confidence) for found in values])


def against_slo(answer: Answer) -> Figure | None:
    if not answer.slo_runs:
        return None
    plan = answer.file.plan
    series = []
    for place, outcome in enumerate(answer.ranked[:BEST]):
        points = {factor: value for index, factor, value in answer.slo_runs if index == outcome.design.index}
        points[1.0] = outcome.sustained.rate if plan.find == "highest-rate" and outcome.sustained else outcome.cost
        factors = sorted(points)
        y = np.array([np.nan if points[f] is None else points[f] for f in factors], dtype=float)
        if np.isfinite(y).any():
            series.append(Series(PLACES[place], np.array(factors), y, colour=1 + place))
    if not series:
        return None
    what = {"cheapest": "USD per hour", "fewest-gpus": "GPUs", "highest-rate": "requests/s sustained"}[plan.find]
    svg = line_chart(
        series,
        x_label="SLO limits, times those asked for",
        y_label=what,
        summary=f"{what} of the best designs as the limits of the SLO are multiplied",
        x_log=True,
        x_limits=(Limit(1.0, "asked"),),
    )
    caption = (
        "The best designs again, with every limit of the SLO multiplied; first replication. A curve that ends cannot "
        "meet the tighter limits within the budget."
    )
    title = "Rate against SLO" if plan.rate is None else "Cost against SLO"
    return {"title": title, "svg": Markup(svg), "caption": caption}  # noqa: S704  svg.py escapes


def pareto(answer: Answer) -> Figure | None:
    """Output tokens/s per GPU against tokens/s per user: the best designs as their load grows, and the frontier."""
    series = []
    for place, outcome in enumerate(answer.ranked[:2]):
        points = _points(outcome, answer.curves.get(outcome.design.index, ()))
        if points:
            x, y = np.array(sorted(points)).T
            series.append(Series(PLACES[place], x, y, colour=1 + place))
    if not series:
        return None
    every = [point for outcome in answer.outcomes for point in _points(outcome, outcome.probes)]
    every += [point for outcome in answer.ranked[:2] for point in _points(outcome, answer.curves[outcome.design.index])]
    frontier = [p for p in sorted(every) if not any(q[0] >= p[0] and q[1] > p[1] for q in every)]
    x, y = np.array(frontier).T
    series.append(Series("best of all runs", x, y, colour=4))
    svg = line_chart(
        series,
        x_label="tokens/s per user (1 / median TPOT)",
        y_label="output tokens/s per GPU",
        summary="Output tokens per second and GPU against tokens per second and user",
    )
    caption = (
        "What a GPU yields against what a user sees: the best two designs at the rates of the picture before, and the "
        "frontier of all runs that were made to their end and kept up with their load, of any design."
    )
    return {"title": "Per GPU against per user", "svg": Markup(svg), "caption": caption}  # noqa: S704  svg.py escapes


def _points(outcome: Outcome, probes: Sequence[Probe]) -> list[tuple[float, float]]:
    gpus = None if not outcome.gpus else outcome.gpus / (outcome.copies or 1)
    return [
        (probe.tokens_per_s_per_user, probe.output_tokens_per_s / (gpus * probe.copies))
        for probe in probes
        if gpus and probe.fraction == 1.0 and probe.verdict != "overloaded"
        if probe.tokens_per_s_per_user is not None and probe.output_tokens_per_s is not None
    ]


def tornado(answer: Answer) -> Figure | None:
    """How much headroom is left when the plan is wrong about something."""
    best = answer.best
    if best is None or best.sustained is None or not answer.shaken:
        return None
    asked = answer.file.plan.rate
    base = best.sustained.by_seed[0] if best.sustained.by_seed else best.sustained.rate
    bars = [(one.name, one.rate / (asked or base) - 1.0) for one in answer.shaken]
    if asked is not None:
        more = f"traffic {TRAFFIC - 1:+.0%}"
        bars.append((more, base / (TRAFFIC * asked) - 1.0))
    zero = base / (asked or base) - 1.0
    bars.sort(key=lambda bar: -abs(bar[1] - zero))
    what = "headroom over the rate asked" if asked else "change of the rate sustained"
    fails = [name for name, value in bars if value < 0.0] if asked else []
    caption = (
        f"Each bar: {what} when only that is changed, from what it is now ({zero:+.0%}, the first replication); the "
        "search stops within 5 %. Steps slower or faster: all of them, by the calibration's mean error on shapes left "
        "out of its fit."
    )
    if asked:
        caption += f" Left of 0 % the SLO is missed: {', '.join(fails)}." if fails else " None of them breaks the SLO."
    svg = _bars(bars, zero, f"{what}, by what is changed")
    title = "If the plan is wrong"
    return {"title": title, "svg": Markup(svg), "caption": caption}  # noqa: S704  escaped in _bars


def _bars(bars: Sequence[tuple[str, float]], zero: float, summary: str) -> str:
    """Horizontal bars from ``zero`` to their values, both shares, one below the other."""
    values = [0.0, zero, *(value for _, value in bars)]
    low, high = min(values), max(values)
    wide, left, right, top, each = 560, 200, 60, 24, 30
    height = top + each * len(bars) + 24

    def at(value: float) -> float:
        return left + 40 + (value - low) / max(high - low, 1e-9) * (wide - left - 40 - right)

    out = [f'<svg viewBox="0 0 {wide} {height}" role="img" aria-label="{escape(summary)}">']
    for row, (name, value) in enumerate(bars):
        y = top + each * row
        start, stop = sorted((at(zero), at(value)))
        colour = "fill2" if value < zero else "fill1"
        out.append(f'<text class="legend" x="{left + 24}" y="{y + 16}" style="text-anchor:end">{escape(name)}</text>')
        out.append(
            f'<rect class="{colour}" x="{start:.1f}" y="{y + 3}" width="{max(stop - start, 1.0):.1f}" height="18"/>'
        )
        out.append(f'<text class="legend" x="{wide - 4}" y="{y + 16}" style="text-anchor:end">{value:+.0%}</text>')
    for value, name, y in ((0.0, "0 %", height - 6), (zero, "now", top - 8)):
        out.append(f'<path class="limit" d="M{at(value):.1f} {top - 4}V{height - 20}"/>')
        out.append(f'<text class="label" x="{at(value):.1f}" y="{y}">{name}</text>')
    return "".join([*out, "</svg>"])


def hours(answer: Answer) -> Figure | None:
    """What arrives by the hour, and what the replicas ready then sustain."""
    if not answer.hours:
        return None
    x = np.arange(len(answer.hours), dtype=np.float64) + 0.5
    offered = np.array([hour.offered for hour in answer.hours])
    carries = np.array([hour.carries for hour in answer.hours])
    svg = line_chart(
        [Series("arrives", x, offered, colour=1, area=True), Series("ready replicas sustain", x, carries, colour=2)],
        x_label="hour of the load",
        y_label="requests/s",
        summary="Requests per second that arrive and that the replicas ready then sustain, by the hour",
    )
    room = np.where(offered > 0, carries / np.maximum(offered, 1e-12) - 1.0, np.inf)
    worst, tight = int(np.argmin(room)), int(np.sum(room < 0))
    caption = (
        "The best design, first replication. What so many replicas sustain within the SLO was sought at a steady rate "
        f"and drawn between for those that are ready for part of an hour. Least headroom: {room[worst]:+.0%} in hour "
        f"{worst} of {len(room)}; {tight} hours have less than the load."
    )
    return {"title": "Headroom by the hour", "svg": Markup(svg), "caption": caption}  # noqa: S704  svg.py escapes


def attainment(answer: Answer) -> Figure | None:
    """Share of requests within every limit, by the hour of their arrival."""
    known = [(n + 0.5, hour.within_slo) for n, hour in enumerate(answer.hours) if hour.within_slo is not None]
    if not known:
        return None
    x, y = np.array(known, dtype=float).T
    svg = line_chart(
        [Series("within the SLO", x, 100.0 * y, colour=1)],
        x_label="hour of the load",
        y_label="percent within every limit",
        summary="Share of requests within every limit of the SLO, by the hour",
        y_max=100.0,
    )
    low = int(np.argmin(y))
    caption = (
        f"Requests within every limit, by the hour they arrive in. The worst is hour {x[low] - 0.5:.0f}: {y[low]:.1%}."
    )
    return {"title": "SLO by the hour", "svg": Markup(svg), "caption": caption}  # noqa: S704  svg.py escapes
