"""The pictures of a plan's report, as inline SVG in the page's colours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
from markupsafe import Markup

from simulator.planning import answer as words
from simulator.planning import costs
from simulator.planning.capacity import t_half_width
from simulator.planning.outcome import Answer, Outcome
from simulator.planning.pictures import BEST, TRAFFIC
from simulator.planning.probe import Probe
from simulator.report.svg import Limit, Series, line_chart, number

Figure = dict[str, Any]
NEAR = 0.1  # of an axis: names of dots would overlap
PLACES = ("best", "2nd", "3rd", "4th", "5th")


def figures(answer: Answer) -> list[Figure]:
    """Those there is something to show in."""
    drawn = (
        goodput(answer), pareto(answer), against_slo(answer), bills_against_slo(answer), break_even(answer),
        tornado(answer), bills_tornado(answer), hours(answer), attainment(answer),
    )  # fmt: skip
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
    found = best.sustained
    level = np.interp(found.rate, series[0].x, series[0].y)
    series.append(Series("interval of the knee", np.array([found.low, found.high]), np.full(2, level), colour=5))
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
    plan = answer.file.plan
    if not answer.slo_runs or plan.find == "lowest-bill":
        return None
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


def bills_against_slo(answer: Answer) -> Figure | None:
    """Each design where its limits would have to be, at its bill, and the lowest bill from there on."""
    known = [(slack, bill, index) for index, slack, bill in answer.slo_runs if bill is not None and slack < math.inf]
    if not known or answer.file.plan.find != "lowest-bill":
        return None
    labels = {outcome.design.index: outcome.design.label for outcome in answer.outcomes}
    known.sort()
    last = max(2.0, 1.1 * known[-1][0])
    lowest = [min(bill for _, bill, _ in known[: at + 1]) for at in range(len(known))]
    x = np.append(np.repeat([slack for slack, _, _ in known], 2)[1:], last)
    svg = line_chart(
        [Series("lowest bill", x, np.repeat(lowest, 2), colour=1)],
        x_label="SLO limits, times those asked for",
        y_label="USD per hour",
        summary="The lowest bill as the limits of the SLO are multiplied, with the designs by their names",
        x_range=(0.0, last),
        y_max=1.15 * max(bill for _, bill, _ in known),
        x_limits=(Limit(1.0, "asked"),),
        dots=_named([(slack, bill, labels[index]) for slack, bill, index in known], last),
    )
    missing = len(answer.slo_runs) - len(known)
    caption = (
        "A design's bill does not follow the limits, but which designs are within them does. Each dot is a design: "
        "its bill, and the multiple of the limits that its percentiles need. The line is the lowest bill from there on."
    )
    caption += f" {missing} more are overloaded, or lose requests, whatever the limits." if missing else ""
    return {"title": "Cost against SLO", "svg": Markup(svg), "caption": caption}  # noqa: S704  svg.py escapes


def _named(dots: list[tuple[float, float, str]], wide: float) -> tuple[tuple[float, float, str], ...]:
    """Dots (x, y, name) so close that their names would cover each other share one name."""
    high = max(y for _, y, _ in dots)
    found: list[tuple[float, float, str]] = []
    for x, y, name in dots:
        close = [abs(a - x) < NEAR * wide and abs(b - y) < NEAR * high for a, b, said in found if said]
        if any(close):
            first = [at for at, (_, _, said) in enumerate(found) if said][close.index(True)]
            a, b, said = found[first]
            found[first] = (a, b, f"{said}, {name}")
        found.append((x, y, "" if any(close) else name))
    return tuple(found)


def break_even(answer: Answer) -> Figure | None:
    """USD per hour against requests per second: own copies, by way of renting, and the API."""
    best, price = answer.best, answer.file.plan.api_price
    if best is None or price is None or best.sustained is None or not answer.sizes:
        return None
    unit = costs.own_price(best)
    if unit is None:
        return None
    load = costs.load_of(answer, best)
    api = costs.api_usd(answer, load)
    found = costs.break_even(unit, answer.sizes, api)
    most = 1.25 * max(load.rate, min(found.for_good or found.first or 0.0, 4.0 * load.rate))
    x = np.linspace(0.0, most, 401)
    copies = np.array([costs.copies_for(answer.sizes, float(rate)) for rate in x], dtype=float)
    series = [Series("the API", x, 3600.0 * api * x, colour=4), Series("own GPUs", x, unit * copies, colour=1)]
    others = [(way, share) for way, share in costs.ways(best) if share != 1.0]
    series += [
        Series(way, x, unit * share * copies, colour=2 + at) for at, (way, share) in enumerate(others) if way != "spot"
    ]
    svg = line_chart(
        series,
        x_label="requests/s, all day",
        y_label="USD per hour",
        summary="What own GPUs and an API cost per hour, against the rate",
        x_range=(0.0, most),
        x_limits=(Limit(load.rate, "asked" if answer.file.plan.rate else "sustained"),),
    )
    sizes = ", ".join(f"{size.copies} sustain {number(size.rate)}" for size in answer.sizes)
    caption = (
        f"{words.against_api(answer)} Own GPUs come by whole copies of the best design ({sizes} requests/s; between "
        "and beyond by interpolation), rented around the clock: at a load with peaks, read the peak off for the GPUs "
        "and the mean for the API."
    )
    return {"title": "Break-even against an API", "svg": Markup(svg), "caption": caption}  # noqa: S704  svg.py escapes


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
    if best is None or best.sustained is None or not answer.shaken or best.bill is not None:
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
    shown = [(name, value, f"{value:+.0%}") for name, value in bars]
    svg = _bars(shown, zero, f"{what}, by what is changed", ends=(0.0, "0 %"))
    title = "If the plan is wrong"
    return {"title": title, "svg": Markup(svg), "caption": caption}  # noqa: S704  escaped in _bars


def bills_tornado(answer: Answer) -> Figure | None:
    """How much of the SLO's limits a design takes, and what it costs, when the plan is wrong about something."""
    best = answer.best
    if best is None or best.bill is None or not answer.shaken:
        return None
    zero = best.probes[0].slack
    known = [one.slack for one in answer.shaken if one.slack < math.inf]
    edge = 1.15 * max([1.0, zero, *known])
    rows = [
        (
            one.name,
            min(one.slack, edge),
            f"{one.slack:.0%}, ${one.usd_per_hour:,.2f}/h" if one.usd_per_hour and one.slack < math.inf else "misses",
        )
        for one in answer.shaken
    ]
    rows.sort(key=lambda row: -abs(row[1] - zero))
    fails = [f"{one.name} ({one.why})" for one in answer.shaken if one.why]
    caption = (
        f"Each bar: the share of the SLO's limits that is used when only that is changed, from what it is now "
        f"({zero:.0%}, ${best.bill.by_seed[0]:,.2f}/h; first replication), and the bill then. More or less traffic is "
        "more or fewer requests of the same kind at the same hours. Kernels slower or faster: all of them, by the "
        "calibration's mean error on shapes left out of its fit."
    )
    caption += f" Beyond 100 % the SLO is missed: {'; '.join(fails)}." if fails else " None of them breaks the SLO."
    svg = _bars(rows, zero, "share of the SLO's limits used, by what is changed", ends=(1.0, "SLO"), more_is_worse=True)
    return {"title": "If the plan is wrong", "svg": Markup(svg), "caption": caption}  # noqa: S704  escaped in _bars


def _bars(
    bars: Sequence[tuple[str, float, str]],
    zero: float,
    summary: str,
    *,
    ends: tuple[float, str],
    more_is_worse: bool = False,
) -> str:
    """Horizontal bars from ``zero`` to their values (name, value, what is said of it), one below the other. ends: where
    it stops being good, and what that is called."""
    limit, called = ends
    values = [limit, zero, *(value for _, value, _ in bars)]
    low, high = min(values), max(values)
    wide, left, top, each = 560, 180, 24, 30
    right = 24 + 7 * max(len(said) for _, _, said in bars)
    height = top + each * len(bars) + 24

    def at(value: float) -> float:
        return left + 20 + (value - low) / max(high - low, 1e-9) * (wide - left - 20 - right)

    out = [f'<svg viewBox="0 0 {wide} {height}" role="img" aria-label="{escape(summary)}">']
    for row, (name, value, said) in enumerate(bars):
        y = top + each * row
        start, stop = sorted((at(zero), at(value)))
        colour = "fill2" if value != zero and (value > zero) == more_is_worse else "fill1"
        out.append(f'<text class="legend" x="{left + 4}" y="{y + 16}" style="text-anchor:end">{escape(name)}</text>')
        out.append(
            f'<rect class="{colour}" x="{start:.1f}" y="{y + 3}" width="{max(stop - start, 1.0):.1f}" height="18"/>'
        )
        out.append(f'<text class="legend" x="{wide - 4}" y="{y + 16}" style="text-anchor:end">{escape(said)}</text>')
    for value, name, y in ((limit, called, height - 6), (zero, "now", top - 8)):
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
