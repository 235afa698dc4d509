"""What a trace holds, in figures and in one picture."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from simulator.core.errors import TraceError
from traces.prefix import first_seen, infinite_cache_hits
from traces.trace import Floats, Trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True, slots=True)
class LengthSummary:
    """Tokens per request; percentiles by linear interpolation."""

    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: int
    total: int

    @classmethod
    def of(cls, tokens: NDArray[np.int64]) -> LengthSummary:
        p50, p90, p95, p99 = np.percentile(tokens, PERCENTILES).tolist()
        return cls(float(tokens.mean()), p50, p90, p95, p99, int(tokens.max()), int(tokens.sum()))


@dataclass(frozen=True, slots=True)
class Description:
    """Figures of a trace. NaN where a figure does not exist (the rate of one request); None where its column is absent.

    rate: (requests - 1) / duration. interarrival_cv: standard deviation of the gaps over their mean (Poisson: 1).
    peak_minute_rate: requests/s in the fullest minute, minutes counted from the first arrival. prefix_hit_ratio: share
    of all prompt tokens in leading blocks that an earlier request had: the ceiling of any prefix cache.
    """

    source: str
    requests: int
    duration_s: float
    rate: float
    interarrival_cv: float
    peak_minute_rate: float
    prompt_tokens: LengthSummary
    output_tokens: LengthSummary
    sessions: int | None
    turns_mean: float | None
    turns_max: int | None
    think_time_p50_s: float | None
    prefix_hit_ratio: float | None
    block_tokens: int | None
    chunk_hit_ratio: float | None
    labels: dict[str, int]  # label column -> distinct names
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, NaN as None."""
        return {key: _plain(value) for key, value in asdict(self).items()}

    def rows(self) -> list[tuple[str, str]]:
        """(what, value) pairs for a printed table."""
        found = [
            ("source", self.source),
            ("requests", f"{self.requests:,}"),
            ("duration", f"{_figure(self.duration_s)} s"),
            ("rate", f"{_figure(self.rate)} requests/s"),
            ("peak minute", f"{_figure(self.peak_minute_rate)} requests/s"),
            ("inter-arrival CV", _figure(self.interarrival_cv)),
            ("prompt tokens", _lengths_text(self.prompt_tokens)),
            ("output tokens", _lengths_text(self.output_tokens)),
        ]
        if self.sessions is not None:
            found.append(("sessions", f"{self.sessions:,} (turns: mean {self.turns_mean:.2f}, max {self.turns_max})"))
        if self.think_time_p50_s is not None:
            found.append(("think time", f"p50 {_figure(self.think_time_p50_s)} s"))
        if self.prefix_hit_ratio is not None:
            found.append(("ideal prefix hits", f"{self.prefix_hit_ratio:.1%} ({self.block_tokens}-token blocks)"))
        if self.chunk_hit_ratio is not None:
            found.append(("ideal chunk hits", f"{self.chunk_hit_ratio:.1%} (of all prompt tokens)"))
        found += [(name, f"{count:,} distinct") for name, count in self.labels.items()]
        return found + [("note", note) for note in self.notes]


def describe(trace: Trace) -> Description:
    """The figures of a trace. Raises TraceError when it is empty."""
    if len(trace) == 0:
        raise TraceError("the trace is empty: nothing to describe", where=trace.source)
    gaps = np.diff(trace.arrival)
    mean_gap = float(gaps.mean()) if len(gaps) else 0.0
    sessions, turns = _turns(trace)
    thinks = trace.think_time[~np.isnan(trace.think_time)] if trace.think_time is not None else np.zeros(0)
    names = ("tenant", "adapter", "model", "slo_class")
    return Description(
        source=trace.source,
        requests=len(trace),
        duration_s=trace.duration,
        rate=trace.rate,
        interarrival_cv=float(gaps.std()) / mean_gap if mean_gap > 0 else float("nan"),
        peak_minute_rate=peak_minute_rate(trace),
        prompt_tokens=LengthSummary.of(trace.prompt_tokens),
        output_tokens=LengthSummary.of(trace.output_tokens),
        sessions=sessions,
        turns_mean=float(turns.mean()) if turns is not None else None,
        turns_max=int(turns.max()) if turns is not None else None,
        think_time_p50_s=float(np.median(thinks)) if len(thinks) else None,
        prefix_hit_ratio=prefix_hit_ratio(trace),
        block_tokens=trace.prefix.block_tokens if trace.prefix is not None else None,
        chunk_hit_ratio=chunk_hit_ratio(trace),
        labels={n: len(np.unique(c.codes[c.codes >= 0])) for n in names if (c := getattr(trace, n)) is not None},
        notes=trace.notes,
    )


def prefix_hit_ratio(trace: Trace) -> float | None:
    """Prompt tokens in leading blocks some earlier request had, over all prompt tokens; None without block ids."""
    if trace.prefix is None:
        return None
    hits = infinite_cache_hits(trace.prefix).sum() * trace.prefix.block_tokens
    return float(hits / trace.prompt_tokens.sum())


def chunk_hit_ratio(trace: Trace) -> float | None:
    """Prompt tokens in chunks that came before, wherever they stood, over all prompt tokens; None without chunks."""
    chunks = trace.chunks
    if chunks is None:
        return None
    seen = first_seen(chunks.ids) < np.arange(len(chunks.ids))
    return float(chunks.tokens[seen].sum() / trace.prompt_tokens.sum())


def peak_minute_rate(trace: Trace) -> float:
    """Requests/s in the fullest minute; NaN for a trace shorter than one, whose mean rate says it all."""
    if trace.duration < 60:
        return float("nan")
    minute = ((trace.arrival - trace.arrival[0]) // 60).astype(np.int64)
    return float(np.unique(minute, return_counts=True)[1].max() / 60)


def _turns(trace: Trace) -> tuple[int | None, NDArray[np.int64] | None]:
    if trace.session is None:
        return None, None
    known, counts = np.unique(trace.session[trace.session >= 0], return_counts=True)
    return (len(known), counts.astype(np.int64)) if len(known) else (0, np.zeros(1, dtype=np.int64))


def plot(trace: Trace, path: str | Path) -> None:
    """Draw rate over time, lengths, gaps and prompt against output into one picture (PNG, SVG or PDF by its name)."""
    from matplotlib.figure import Figure

    described = describe(trace)
    figure = Figure(figsize=(11, 7.2), layout="constrained")
    axes = figure.subplots(2, 2)
    _plot_rate(axes[0, 0], trace)
    _plot_lengths(axes[0, 1], trace)
    _plot_gaps(axes[1, 0], trace, described.interarrival_cv)
    _plot_joint(axes[1, 1], trace)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_axisbelow(True)
        axis.grid(color="0.92")
    title = f"{described.requests:,} requests"
    if described.duration_s > 0:
        title += f", {described.rate:.3g} requests/s for {_duration(described.duration_s)}"
    if described.prefix_hit_ratio is not None:
        title += f", ideal prefix hits {described.prefix_hit_ratio:.0%}"
    source = described.source
    name = source if " " in source else Path(source).name  # a path, or words about a generator
    figure.suptitle(f"{name}\n{title}", fontsize=12)
    try:
        figure.savefig(path, dpi=130)
    except (OSError, ValueError) as error:
        raise TraceError(f"cannot write the picture: {error}", where=str(path)) from error


PROMPT, OUTPUT = "#1f6fb4", "#d9702b"


def _plot_rate(axis: Axes, trace: Trace) -> None:
    axis.set_title("Arrivals over time", loc="left", fontsize=10)
    if trace.duration == 0:
        axis.text(0.5, 0.5, "all requests arrive at once", transform=axis.transAxes, ha="center")
        return
    edges = np.linspace(trace.arrival[0], trace.arrival[-1], int(np.clip(len(trace) // 20, 10, 180)) + 1)
    rate = np.histogram(trace.arrival, edges)[0] / np.diff(edges)
    unit, name = next((u, n) for u, n in ((86_400, "days"), (3600, "hours"), (60, "minutes"), (1, "s"))
                      if trace.duration >= 3 * u or u == 1)  # fmt: skip
    axis.stairs(rate, (edges - edges[0]) / unit, fill=True, color=PROMPT, alpha=0.35)
    axis.stairs(rate, (edges - edges[0]) / unit, color=PROMPT, lw=1)
    axis.axhline(trace.rate, color="0.35", lw=1, ls="--", label=f"mean {trace.rate:.3g}/s")
    axis.set(xlabel=f"time ({name})", ylabel=f"requests/s ({_duration(edges[1] - edges[0])} bins)", ylim=(0, None))
    axis.legend(frameon=False, fontsize=9)


def _plot_lengths(axis: Axes, trace: Trace) -> None:
    axis.set_title("Lengths (share of requests up to)", loc="left", fontsize=10)
    for name, tokens, color in (("prompt", trace.prompt_tokens, PROMPT), ("output", trace.output_tokens, OUTPUT)):
        q = np.linspace(0, 1, 501)
        label = f"{name}: p50 {np.median(tokens):,.0f}, p99 {np.percentile(tokens, 99):,.0f}"
        axis.plot(np.quantile(tokens, q), q, color=color, lw=1.8, label=label)
    axis.set(xscale="log", xlabel="tokens", ylabel="share", ylim=(0, 1.3), yticks=np.linspace(0, 1, 6))
    axis.legend(frameon=False, fontsize=9, loc="upper left")  # in the room above 1


def _plot_gaps(axis: Axes, trace: Trace, cv: float) -> None:
    axis.set_title("Gaps between arrivals (share longer than)", loc="left", fontsize=10)
    gaps: Floats = np.sort(np.diff(trace.arrival))
    gaps = gaps[gaps > 0]
    if len(gaps) < 2:
        axis.text(0.5, 0.5, "too few distinct arrivals", transform=axis.transAxes, ha="center")
        return
    pick = np.unique(np.linspace(0, len(gaps) - 1, 2000).astype(int))
    axis.plot(gaps[pick], 1 - pick / len(gaps), color=PROMPT, lw=1.8, label=f"this trace, CV {cv:.2f}")
    x = np.geomspace(max(gaps[0], gaps[-1] * 1e-6), gaps[-1], 300)
    axis.plot(x, np.exp(-x * trace.rate), color="0.35", lw=1, ls="--", label="Poisson at the same rate")
    axis.set(xscale="log", yscale="log", xlabel="gap (s)", ylabel="share", ylim=(0.5 / len(gaps), 1.5))
    axis.legend(frameon=False, fontsize=9, loc="lower left")


def _plot_joint(axis: Axes, trace: Trace) -> None:
    from matplotlib.colors import LogNorm

    axis.set_title("Prompt and output of a request", loc="left", fontsize=10)
    bins = [np.geomspace(max(t.min(), 1) * 0.9, t.max() * 1.1, 61) for t in (trace.prompt_tokens, trace.output_tokens)]
    counts = np.histogram2d(trace.prompt_tokens, trace.output_tokens, bins)[0]
    shown = np.ma.masked_equal(counts.T, 0)
    norm = LogNorm(vmin=0.3, vmax=max(counts.max(), 1.0))  # from below one, so that single requests are visible
    mesh = axis.pcolormesh(bins[0], bins[1], shown, cmap="Blues", norm=norm)
    axis.set(xscale="log", yscale="log", xlabel="prompt tokens", ylabel="output tokens")
    axis.figure.colorbar(mesh, ax=axis, label="requests")


def _duration(seconds: float) -> str:
    for size, unit in ((86_400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


def _figure(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _lengths_text(s: LengthSummary) -> str:
    return f"mean {s.mean:,.0f}, p50 {s.p50:,.0f}, p90 {s.p90:,.0f}, p95 {s.p95:,.0f}, p99 {s.p99:,.0f}, max {s.max:,}"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and np.isnan(value) else value
