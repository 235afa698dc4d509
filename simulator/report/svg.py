"""Line charts and stacked bars as inline SVG, coloured by the page's CSS so that they follow dark mode and print."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape

import numpy as np

from simulator.metrics.stats import Floats

WIDTH, HEIGHT = 560, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 30, 44


@dataclass(frozen=True, slots=True)
class Series:
    """One curve; NaN breaks it. ``colour`` is 1 to 5, the page's palette."""

    name: str
    x: Floats
    y: Floats
    colour: int = 1
    area: bool = False


@dataclass(frozen=True, slots=True)
class Limit:
    """A dashed line across the chart, such as an SLO."""

    value: float
    label: str


@dataclass(frozen=True, slots=True)
class _Axis:
    low: float
    high: float
    log: bool
    start: float  # pixels
    stop: float

    def at(self, value: Floats) -> Floats:
        if self.log:
            share = (np.log(np.maximum(value, 1e-300)) - math.log(self.low)) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return np.asarray(self.start + np.clip(share, -0.05, 1.05) * (self.stop - self.start))


def line_chart(
    series: list[Series],
    *,
    x_label: str,
    y_label: str,
    summary: str,
    x_log: bool = False,
    x_range: tuple[float, float] | None = None,
    y_max: float | None = None,
    x_limits: tuple[Limit, ...] = (),
    y_limits: tuple[Limit, ...] = (),
    dots: tuple[tuple[float, float, str], ...] = (),
) -> str:
    """SVG text. ``summary`` is read out to those who cannot see it. x_limits stand upright, y_limits lie.

    dots: points (x, y, label) marked on the first curve. A legend is drawn for more than one curve.
    """
    xs = np.concatenate([*(s.x for s in series), [m.value for m in x_limits], x_range or ()])
    ys = np.concatenate([*(s.y for s in series), [m.value for m in y_limits]])
    x_axis = _axis(xs, _LEFT, WIDTH - _RIGHT, log=x_log)
    y_axis = _y_axis(ys, y_max)
    parts = [_frame(summary), _grid(x_axis, y_axis, x_label, y_label)]
    parts += [_curve(s, x_axis, y_axis) for s in series]
    parts += [_upright(limit, x_axis) for limit in x_limits]
    parts += [_level(limit, y_axis) for limit in y_limits]
    parts += [_dot(dot, x_axis, y_axis) for dot in dots]
    if len(series) > 1:
        parts.append(_legend([(s.name, s.colour) for s in series]))
    parts.append("</svg>")
    return "".join(parts)


def stacked_bar(parts: list[tuple[str, float, int]], *, unit: str, summary: str) -> str:
    """One horizontal bar of ``(name, value, colour)`` pieces with a legend above."""
    total = sum(value for _, value, _ in parts)
    out = [_frame(summary, height=96), _legend([(name, colour) for name, _, colour in parts])]
    at = 4.0
    for name, value, colour in parts:
        width = (WIDTH - 8) * value / total if total > 0 else 0.0
        label = f"{name}: {number(value)} {unit}"
        out.append(
            f'<rect class="fill{colour}" x="{at:.1f}" y="40" width="{width:.1f}" height="30"><title>{escape(label)}'
            "</title></rect>"
        )
        if width > 62:
            out.append(f'<text class="onbar" x="{at + width / 2:.1f}" y="60">{number(value)} {unit}</text>')
        at += width
    return "".join([*out, "</svg>"])


def three_digits(value: float) -> str:
    """Three significant digits, zeros kept, so that columns line up: 16.0, 1.20, 0.0123, 1,234."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else "-"
    digits = max(0, 2 - math.floor(math.log10(abs(float(f"{value:.2e}")))))
    return f"{value:,.{min(digits, 6)}f}"


def number(value: float) -> str:
    """Three significant digits without trailing zeros: 0.0123, 1.2, 16, 1,234."""
    text = three_digits(value)
    return text.rstrip("0").rstrip(".") if "." in text else text


def _tick(value: float) -> str:
    """Short, so that it fits beside the axis: 15k, 1.5M."""
    for least, unit, letter in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if value >= least:
            return f"{value / unit:g}{letter}"
    return number(value)


def _frame(summary: str, *, height: int = HEIGHT) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(summary)}">'


def _axis(values: Floats, start: float, stop: float, *, log: bool) -> _Axis:
    values = values[np.isfinite(values)]
    if log:
        values = values[values > 0]
    low, high = (float(values.min()), float(values.max())) if len(values) else (1.0, 2.0)
    if log:
        low, high = low / 1.08, high * 1.08
        if high / low < 3:
            middle = math.sqrt(low * high)
            low, high = middle / 1.8, middle * 1.8
    elif high <= low:
        high = low + 1.0
    return _Axis(low, high, log, start, stop)


def _y_axis(values: Floats, y_max: float | None) -> _Axis:
    values = values[np.isfinite(values)]
    high = y_max if y_max is not None else (float(values.max()) * 1.08 if len(values) else 1.0)
    return _Axis(0.0, high if high > 0 else 1.0, False, HEIGHT - _BOTTOM, _TOP)


def _ticks(axis: _Axis) -> list[float]:
    if axis.log and axis.high / axis.low > 6:
        decades = range(math.floor(math.log10(axis.low)), math.ceil(math.log10(axis.high)) + 1)
        steps = (1, 2, 5) if math.log10(axis.high / axis.low) < 2.5 else (1,)
        return [m * 10.0**d for d in decades for m in steps if axis.low <= m * 10.0**d <= axis.high]
    raw = (axis.high - axis.low) / 5
    scale = 10.0 ** math.floor(math.log10(raw))
    step = next(m * scale for m in (1, 2, 2.5, 5, 10) if m * scale >= raw * 0.999)
    first = math.ceil(axis.low / step - 1e-9)
    return [k * step for k in range(first, math.floor(axis.high / step + 1e-9) + 1)]


def _grid(x_axis: _Axis, y_axis: _Axis, x_label: str, y_label: str) -> str:
    out: list[str] = []
    bottom = HEIGHT - _BOTTOM
    for value in _ticks(y_axis):
        y = float(y_axis.at(np.array(value)))
        out.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}"/>')
        out.append(f'<text class="ytick" x="{_LEFT - 6}" y="{y + 4:.1f}">{_tick(value)}</text>')
    for value in _ticks(x_axis):
        x = float(x_axis.at(np.array(value)))
        out.append(f'<path class="grid" d="M{x:.1f} {_TOP}V{bottom}"/>')
        out.append(f'<text class="xtick" x="{x:.1f}" y="{bottom + 16}">{_tick(value)}</text>')
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    out.append(f'<text class="label" x="{middle}" y="{HEIGHT - 8}">{escape(x_label)}</text>')
    turned = (_TOP + bottom) / 2
    out.append(
        f'<text class="label" transform="translate(13 {turned}) rotate(-90)">{escape(y_label)}</text>'
        f'<path class="axis" d="M{_LEFT} {bottom}H{WIDTH - _RIGHT}"/>'
    )
    return "".join(out)


def _curve(series: Series, x_axis: _Axis, y_axis: _Axis) -> str:
    kept = np.isfinite(series.x)
    x, y = x_axis.at(series.x[kept]), y_axis.at(series.y[kept])
    pieces: list[str] = []
    runs = np.split(np.arange(len(y)), np.flatnonzero(np.diff(np.isfinite(y))) + 1)
    for run in (r for r in runs if len(r) and np.isfinite(y[r[0]])):
        path = "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(x[run].tolist(), y[run].tolist(), strict=True))
        if series.area:
            floor = HEIGHT - _BOTTOM
            pieces.append(
                f'<path class="area{series.colour}" d="M{x[run[0]]:.1f} {floor}L{path}L{x[run[-1]]:.1f} {floor}Z"/>'
            )
        if len(run) == 1:
            pieces.append(f'<circle class="fill{series.colour}" cx="{x[run[0]]:.1f}" cy="{y[run[0]]:.1f}" r="3"/>')
        pieces.append(f'<path class="line{series.colour}" d="M{path}"/>')
    return "".join(pieces)


def _dot(dot: tuple[float, float, str], x_axis: _Axis, y_axis: _Axis) -> str:
    x, y = float(x_axis.at(np.array(dot[0]))), float(y_axis.at(np.array(dot[1])))
    near_edge = x > 0.72 * WIDTH  # then below, since the curve comes from the left
    place = f'text-anchor="middle" x="{x:.1f}" y="{y + 20:.1f}"' if near_edge else f'x="{x + 8:.1f}" y="{y + 14:.1f}"'
    return (
        f'<circle class="fill1" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/><text class="legend" {place}>{escape(dot[2])}</text>'
    )


def _upright(limit: Limit, axis: _Axis) -> str:
    x = float(axis.at(np.array(limit.value)))
    side, anchor = (-5, "end") if x > WIDTH / 2 else (5, "start")
    return (
        f'<path class="limit" d="M{x:.1f} {_TOP}V{HEIGHT - _BOTTOM}"/>'
        f'<text class="limittext" text-anchor="{anchor}" x="{x + side:.1f}" y="{HEIGHT - _BOTTOM - 8}">'
        f"{escape(limit.label)}</text>"
    )


def _level(limit: Limit, axis: _Axis) -> str:
    y = float(axis.at(np.array(limit.value)))
    return (
        f'<path class="limit" d="M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}"/>'
        f'<text class="limittext" text-anchor="end" x="{WIDTH - _RIGHT - 4}" y="{y - 5:.1f}">'
        f"{escape(limit.label)}</text>"
    )


def _legend(entries: list[tuple[str, int]]) -> str:
    out: list[str] = []
    x = float(_LEFT if len(entries) < 4 else 4)
    for name, colour in entries:
        out.append(f'<rect class="fill{colour}" x="{x:.0f}" y="8" width="11" height="11" rx="2"/>')
        out.append(f'<text class="legend" x="{x + 16:.0f}" y="18">{escape(name)}</text>')
        x += 34 + sum(3.8 if letter in "fijlrt " else 7.2 for letter in name)
    return "".join(out)
