"""``validate``: every measurement found, compared in turn."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from profiler.validate.kinds import SUMMARIES, Measured, discover
from profiler.validate.residuals import Comparison, Metric
from profiler.validate.served import Options


def validate(
    paths: Sequence[Path], options: Options, progress: Callable[[Measured], None] | None = None
) -> list[Comparison]:
    """Compare everything at ``paths``. Raises UserError for bad or unknown input."""
    measured = [m for path in paths for m in discover(path)]
    found = []
    for one in measured:
        if progress is not None:
            progress(one)
        found.append(one.compare(one.path, options))
    return found


def metrics(comparisons: Sequence[Comparison]) -> list[Metric]:
    """Metrics of each kind over all its files, then (``name@file``) of each file where there are several."""
    found: list[Metric] = []
    for kind in dict.fromkeys(c.kind for c in comparisons):
        own = [c for c in comparisons if c.kind == kind]
        stated = {m.name: m for c in own for m in c.stated}
        for metric in SUMMARIES[kind]([r for c in own for r in c.residuals]):
            found.append(metric)
            claim = stated.pop(metric.name.replace(".mape.", ".held_out."), None)
            found += [claim] if claim else []
        found += stated.values()
        for comparison in own if len(own) > 1 else ():
            label = comparison.path.name.split(".")[0]
            found += [replace(m, name=f"{m.name}@{label}") for m in SUMMARIES[kind](comparison.residuals)]
    return [m for m in found if not math.isnan(m.value)]
