"""A grid of shares as inline SVG: one row per thing, one column per stretch of time."""

from __future__ import annotations

from html import escape

import numpy as np

from simulator.metrics.stats import Floats
from simulator.report.svg import WIDTH, number

_LEFT, _RIGHT, _TOP, _BOTTOM = 92, 14, 8, 44
LEVELS = 12


def heat_map(rows: list[str], shares: Floats, *, x_label: str, x_high: float, summary: str) -> str:
    """SVG text. shares: (rows, columns) from 0 (empty) to 1 (full); NaN is left blank: the thing was not there."""
    height = max(10, min(22, 340 // max(len(rows), 1)))
    bottom = _TOP + height * len(rows)
    cell = (WIDTH - _LEFT - _RIGHT) / shares.shape[1]
    out = [f'<svg viewBox="0 0 {WIDTH} {bottom + _BOTTOM}" role="img" aria-label="{escape(summary)}">']
    for i, name in enumerate(rows):
        y = _TOP + i * height
        out.append(f'<text class="ytick" x="{_LEFT - 6}" y="{y + height / 2 + 4:.1f}">{escape(name)}</text>')
        out += _cells(shares[i], y, height, cell)
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        x = _LEFT + share * (WIDTH - _LEFT - _RIGHT)
        out.append(f'<text class="xtick" x="{x:.1f}" y="{bottom + 16}">{number(share * x_high)}</text>')
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    out.append(f'<text class="label" x="{middle}" y="{bottom + 36}">{escape(x_label)}</text></svg>')
    return "".join(out)


def _cells(shares: Floats, y: float, height: float, cell: float) -> list[str]:
    """Neighbours of one shade are one rectangle."""
    level = np.where(np.isnan(shares), -1, np.rint(np.clip(shares, 0, 1) * LEVELS)).astype(int)
    starts = np.concatenate([[0], np.flatnonzero(np.diff(level)) + 1, [len(level)]])
    out = []
    for begin, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        if level[begin] < 0:
            continue
        opacity = 0.06 + 0.94 * level[begin] / LEVELS
        out.append(
            f'<rect class="fill1" fill-opacity="{opacity:.2f}" x="{_LEFT + begin * cell:.1f}" y="{y:.1f}" '
            f'width="{(end - begin) * cell:.1f}" height="{height - 2:.1f}"/>'
        )
    return out
