"""Pictures of residuals: predicted against measured, and the error by model, GPU and load."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from profiler.validate.residuals import Residual, slug

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#2563eb", "#d97706", "#059669", "#9333ea", "#dc2626", "#0891b2", "#65a30d", "#db2777")
KIND_TITLES = {
    "closed_loop": "closed loop, fixed concurrency",
    "requests": "per-request log",
    "phases": "prefill and decode phases",
    "steps": "engine steps",
    "rates": "fixed rate, warm prefix cache",
    "kernels": "kernels",
}
METRIC_TITLES = {
    "ttft": "TTFT", "tpot": "TPOT", "e2e": "E2E", "prefill": "prefill", "decode_per_token": "decode, per token",
    "period": "step time",
}  # fmt: skip
MAX_POINTS = 3000  # of one picture and series; more hide each other


def pictures(residuals: Sequence[Residual]) -> dict[str, bytes]:
    """PNG by file name: one over all kinds, one per kind."""
    shown = [r for r in residuals if r.metric in METRIC_TITLES or r.kind == "kernels"]
    kinds = list(dict.fromkeys(r.kind for r in shown))
    if not kinds:
        return {}
    drawn = {"predicted-measured.png": _png(overview(shown))}
    for kind in kinds:
        drawn[f"{kind}.png"] = _png(of_kind([r for r in shown if r.kind == kind], kind))
    return drawn


def overview_png(residuals: Sequence[Residual]) -> bytes:
    """The picture over all kinds alone."""
    return _png(overview([r for r in residuals if r.metric in METRIC_TITLES]))


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    return figure


def _png(figure: Figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def overview(residuals: Sequence[Residual]) -> Figure:
    """A panel per kind of measurement, a colour per metric."""
    kinds = list(dict.fromkeys(r.kind for r in residuals))
    columns = min(3, len(kinds))
    rows = -(-len(kinds) // columns)
    figure = _figure(4.3 * columns, 4.2 * rows + 0.4)
    axes = np.atleast_1d(np.array(figure.subplots(rows, columns, squeeze=False))).ravel()
    for ax, kind in zip(axes, kinds, strict=False):
        _scatter(ax, [r for r in residuals if r.kind == kind], lambda r: METRIC_TITLES.get(r.metric, r.metric))
        ax.set_title(KIND_TITLES.get(kind, kind), fontsize=11, loc="left")
    for ax in axes[len(kinds) :]:
        ax.set_visible(False)
    figure.suptitle("Predicted against measured (line: equal; band: ± 10 %)", fontsize=12, x=0.01, ha="left")
    return figure


def of_kind(residuals: Sequence[Residual], kind: str) -> Figure:
    """Per metric: predicted against measured by model, and the error over the load."""
    metrics = list(dict.fromkeys(r.metric for r in residuals))[:8]
    figure = _figure(11.5, 3.9 * len(metrics) + 0.4)
    axes = figure.subplots(len(metrics), 2, squeeze=False)
    for (left, right), metric in zip(axes, metrics, strict=True):
        own = [r for r in residuals if r.metric == metric]
        _scatter(left, own, _series)
        left.set_title(f"{METRIC_TITLES.get(metric, metric)}, {own[0].unit}", fontsize=11, loc="left")
        _errors(right, own)
    figure.suptitle(KIND_TITLES.get(kind, kind), fontsize=12, x=0.01, ha="left")
    return figure


def _series(r: Residual) -> str:
    return f"{slug(r.model)}, {r.gpu}"


def _groups(residuals: Sequence[Residual], name: Callable[[Residual], str]) -> list[tuple[str, list[Residual]]]:
    groups: dict[str, list[Residual]] = {}
    for r in residuals:
        groups.setdefault(name(r), []).append(r)
    return [(label, some[:: -(-len(some) // MAX_POINTS)]) for label, some in groups.items()]


def _scatter(ax: Axes, residuals: Sequence[Residual], name: Callable[[Residual], str]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for i, (label, some) in enumerate(_groups(residuals, name)):
        for apart in (False, True):
            part = [r for r in some if (r.part == "apart") is apart]
            if part:
                face = "none" if apart else COLOURS[i % len(COLOURS)]
                marks: dict[str, Any] = {"facecolors": face, "edgecolors": COLOURS[i % len(COLOURS)]}
                text = f"{label}, overloaded" if apart else label
                measured, predicted = [r.measured for r in part], [r.predicted for r in part]
                ax.scatter(measured, predicted, s=16, alpha=0.6, linewidths=0.8, label=text, **marks)
    values = [v for r in residuals for v in (r.measured, r.predicted) if v > 0]
    low, high = min(values) / 1.3, max(values) * 1.3
    ends = np.array([low, high])
    ax.fill_between(ends, ends * 0.9, ends * 1.1, color="#94a3b8", alpha=0.25, linewidth=0)
    ax.plot(ends, ends, color="#475569", linewidth=1)
    ax.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))
    if high / low < 40:  # less than two decades: label 1, 2 and 5 of each
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(NullFormatter())
    units = "/".join(dict.fromkeys(r.unit for r in residuals))
    ax.set_xlabel(f"measured, {units}")
    ax.set_ylabel(f"predicted, {units}")
    _finish(ax)


def _errors(ax: Axes, residuals: Sequence[Residual]) -> None:
    loads = {r.load for r in residuals}
    for i, (label, some) in enumerate(_groups(residuals, _series)):
        x, y = [r.load for r in some], [100 * r.error for r in some]
        ax.scatter(x, y, s=16, alpha=0.5, linewidths=0, color=COLOURS[i % len(COLOURS)], label=label)
    errors = np.array([100 * r.error for r in residuals if r.part != "apart"])
    reach = max(15.0, float(np.percentile(np.abs(errors), 98)) * 1.2) if len(errors) else 100.0
    ax.axhspan(-10, 10, color="#94a3b8", alpha=0.25, linewidth=0)
    ax.axhline(0, color="#475569", linewidth=1)
    ax.set_ylim(-reach, reach)
    if len(loads) > 2 and min(loads) > 0 and max(loads) / min(loads) > 8:
        ax.set_xscale("log")
        if len(loads) <= 8:
            ax.set_xticks(sorted(loads), [f"{load:g}" for load in sorted(loads)])
            ax.set_xticks([], minor=True)
    ax.set_xlabel(LOADS.get(residuals[0].kind, "load"))
    ax.set_ylabel("error, %")
    if len(errors):
        text = f"mean |error| {np.abs(errors).mean():.1f} %, median {np.median(np.abs(errors)):.1f} %"
        ax.set_title(text, fontsize=10, loc="left", color="#334155")
    _finish(ax, legend=False)


LOADS = {
    "closed_loop": "concurrent requests", "requests": "arrival, s", "phases": "tokens in the cache",
    "steps": "decodes in the step", "rates": "requests/s", "kernels": "measured, ms",
}  # fmt: skip


def _finish(ax: Axes, *, legend: bool = True) -> None:
    ax.grid(visible=True, color="#e2e8f0", linewidth=0.6)
    ax.set_axisbelow(True)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    if legend:
        ax.legend(fontsize=8, frameon=False, loc="upper left")
