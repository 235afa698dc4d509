"""The report's pictures. Every curve is cut down to a few hundred points, however long the run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simulator.metrics.analysis import Analysis
from simulator.metrics.load import closed_loop_users
from simulator.metrics.series import kv_usage, mean_count, running_interval, step_mean, waiting_interval
from simulator.metrics.slo import Slo
from simulator.metrics.stats import Floats, Ints, counted_percentiles
from simulator.metrics.summary import Summary
from simulator.metrics.token_times import Bools, num_replicas, pooled_gaps, tokens_of
from simulator.replica.records import SimulationRecords, Status
from simulator.report.svg import Limit, Series, line_chart, stacked_bar

_CDF_AT = np.concatenate([np.linspace(0, 99, 199), np.linspace(99.1, 100, 10)])
_BINS = 160
_FLAT = 5  # a curve this many times lower than the other is not readable beside it


@dataclass(frozen=True, slots=True)
class Figure:
    """``caption`` says what to look for."""

    title: str
    svg: str
    caption: str


def _clock(seconds: float) -> tuple[float, str]:
    """Divisor and unit for a time axis of that length."""
    if seconds < 0.5:
        return 1e-3, "ms"
    if seconds < 600:
        return 1.0, "s"
    return (60.0, "min") if seconds < 3 * 3600 else (3600.0, "h")


def distribution_figures(records: SimulationRecords, found: Analysis, chosen: Bools, slo: Slo | None) -> list[Figure]:
    """CDFs of TTFT, TPOT, ITL and E2E over the chosen requests that finished, with the SLO's limits."""
    finished = np.asarray(chosen & (records.requests.status == Status.FINISHED))
    limits = slo.limits() if slo is not None else {}
    plain = {"ttft_s": found.latency.ttft, "tpot_s": found.latency.tpot, "e2e_s": found.latency.e2e}
    samples: dict[str, tuple[Floats, Ints]] = {}
    for name, values in plain.items():
        kept = values[finished]
        kept = kept[~np.isnan(kept)]
        samples[name] = kept, np.ones(len(kept), dtype=np.int64)
    samples["itl_s"] = pooled_gaps(found.ranges, found.clock, finished)
    titles = {
        "ttft_s": ("Time to first token (TTFT)", "From arrival to the first output token."),
        "tpot_s": ("Time per output token (TPOT)", "Each request's mean pace after its first token."),
        "itl_s": ("Inter-token latency (ITL)", "Every gap between two tokens of a request: stalls show in the tail."),
        "e2e_s": ("End-to-end latency (E2E)", "From arrival to the last token."),
    }
    return [
        Figure(title, _cdf(*samples[name], title, limits.get(name)), caption)
        for name, (title, caption) in titles.items()
        if int(samples[name][1].sum())
    ]


def _cdf(values: Floats, counts: Ints, title: str, limit: float | None) -> str:
    x = counted_percentiles(np.maximum(values, 0.0), counts, _CDF_AT.tolist())
    total = int(counts.sum())
    scale, unit = (1e-3, "ms") if float(x[-1]) < 1 else (1.0, "s")
    shown = np.maximum(x / scale, max(float(x[-1]) / scale * 1e-5, 1e-9))
    said = "" if limit is None else f"SLO {limit:g} s" if limit >= 1 else f"SLO {limit * 1e3:g} ms"
    marks = () if limit is None else (Limit(limit / scale, said),)
    p50, p99 = counted_percentiles(values, counts, [50.0, 99.0]).tolist()
    return line_chart(
        [Series("share at or below", shown, _CDF_AT)],
        x_label=f"{unit}, logarithmic",
        y_label="% of samples",
        summary=f"Cumulative distribution of {title}: median {p50:.4g} s, p99 {p99:.4g} s, {total:,} samples.",
        x_log=True,
        y_max=102.0,
        x_limits=marks,
        dots=((max(p50 / scale, 1e-9), 50.0, "p50"), (max(p99 / scale, 1e-9), 99.0, "p99")),
    )


def time_figures(records: SimulationRecords, found: Analysis, slo: Slo | None) -> list[Figure]:
    """Queue and batch, KV occupancy, TTFT by arrival, token throughput, preemptions, over the whole run."""
    if records.end <= 0:
        return []
    time = TimeAxis.over(records.end)
    figures = [_queue(records, found, time)]
    if np.any(~np.isnan(found.latency.ttft)):
        figures.append(_ttft(records, found, slo, time))
    figures += [_kv(records, time), *_tokens(records, found, time)]
    if np.any(records.steps.preempted > 0):
        figures.append(_preemptions(records, time))
    return figures


@dataclass(frozen=True, slots=True)
class TimeAxis:
    """Bins of equal length over a run, and the unit that suits its axis."""

    edges: Floats  # s
    scale: float
    unit: str

    @classmethod
    def over(cls, end: float, bins: int = _BINS) -> TimeAxis:
        return cls(np.linspace(0.0, end, bins + 1), *_clock(end))

    @property
    def middle(self) -> Floats:
        return np.asarray((self.edges[1:] + self.edges[:-1]) / 2 / self.scale)

    @property
    def reach(self) -> tuple[float, float]:
        return 0.0, float(self.edges[-1]) / self.scale

    @property
    def label(self) -> str:
        return f"simulated time ({self.unit})"


def _queue(records: SimulationRecords, found: Analysis, time: TimeAxis) -> Figure:
    """Preempted requests apart: those that came back, from their last token to the next."""
    waiting = mean_count(*waiting_interval(records), time.edges)
    running = mean_count(*running_interval(records), time.edges)
    stalled = ~np.isnan(found.ranges.stall)
    back = found.ranges.start[stalled]
    preempted = mean_count(back - found.ranges.stall[stalled], back, time.edges)
    curves = [Series("running", time.middle, running - preempted, 1), Series("waiting", time.middle, waiting, 2)]
    if stalled.any():
        curves.append(Series("preempted", time.middle, preempted, 5))
    svg = line_chart(
        curves,
        x_label=time.label,
        y_label="requests",
        summary=f"Requests over time: at most {running.max():.3g} running and {waiting.max():.3g} waiting.",
        x_range=time.reach,
    )
    caption = "A waiting curve that climbs as long as requests arrive means the design cannot keep up."
    if closed_loop_users(records) is not None:
        caption = "A closed loop: users who are not running wait, so the two add up to the users while requests last."
    return Figure("Waiting and running", svg, caption)


def _kv(records: SimulationRecords, time: TimeAxis) -> Figure:
    usage = 100 * step_mean(records, kv_usage(records), time.edges) / max(num_replicas(records), 1)
    svg = line_chart(
        [Series("KV blocks in use", time.middle, usage, 3, area=True)],
        x_label=time.label,
        y_label="% of the cache",
        summary=f"KV cache occupancy over time, mean over replicas: peak {usage.max():.0f} %.",
        x_range=time.reach,
        y_max=min(100.0, max(10.0, 1.5 * float(usage.max()))),  # an empty cache is no flat line at the bottom
    )
    return Figure("KV cache occupancy", svg, "Blocks owned by live requests, mean over replicas; idle counts as empty.")


def _tokens(records: SimulationRecords, found: Analysis, time: TimeAxis) -> list[Figure]:
    """Output and input in one chart, or in two where the smaller would lie flat on the axis of the larger."""
    times, made = tokens_of(found.ranges, found.clock, np.ones(len(records.requests.arrival), dtype=bool))
    output = np.histogram(times, time.edges, weights=made)[0] / np.diff(time.edges)
    first = records.requests.first_token
    known = ~np.isnan(first)
    prompts = records.requests.prompt_tokens[known]
    prompt = np.histogram(first[known], time.edges, weights=prompts)[0] / np.diff(time.edges)
    out, into = Series("output", time.middle, output, 1), Series("input", time.middle, prompt, 4)
    counted = "Input counts a prompt, cached part included, when its first token is out."
    if max(output.max(), prompt.max()) < _FLAT * min(output.max(), prompt.max()):
        return [_throughput("Token throughput", [out, into], counted, time)]
    return [
        _throughput("Output tokens", [out], "Tokens made for all requests together.", time),
        _throughput("Input tokens", [into], counted, time),
    ]


def _throughput(title: str, curves: list[Series], caption: str, time: TimeAxis) -> Figure:
    peaks = " and ".join(f"{curve.name} peaks at {curve.y.max():,.0f} tokens/s" for curve in curves)
    svg = line_chart(
        curves, x_label=time.label, y_label="tokens/s", summary=f"{title} over time: {peaks}.", x_range=time.reach
    )
    return Figure(title, svg, caption)


def _ttft(records: SimulationRecords, found: Analysis, slo: Slo | None, time: TimeAxis) -> Figure:
    known = ~np.isnan(found.latency.ttft)
    ttft, arrival = found.latency.ttft[known], records.requests.arrival[known]
    axis = TimeAxis.over(records.end, _BINS // 2)
    bins = len(axis.edges) - 1
    which = np.clip(np.searchsorted(axis.edges, arrival, side="right") - 1, 0, bins - 1)
    count = np.bincount(which, minlength=bins)
    some = count > 0
    mean = np.bincount(which, weights=ttft, minlength=bins)[some] / count[some]
    worst = np.zeros(bins)
    np.maximum.at(worst, which, ttft)
    allowed = slo.ttft_s if slo is not None else None
    near = allowed is not None and allowed < 3 * worst.max()  # a far limit would press the curves flat
    limits = (Limit(allowed, f"SLO {allowed:g} s"),) if allowed is not None and near else ()
    above = f" The SLO's limit, {allowed:g} s, lies far above." if allowed is not None and not near else ""
    x = axis.middle[some]
    svg = line_chart(
        [Series("mean", x, mean, 1), Series("slowest", x, worst[some], 5)],
        x_label=f"arrival ({time.unit})",
        y_label="TTFT (s)",
        summary=f"TTFT by arrival time: on average {mean[0]:.3g} s at first, {mean[-1]:.3g} s at last.",
        x_range=time.reach,
        y_limits=limits,
    )
    caption = f"Flat: a steady state. Climbing: later requests wait ever longer.{above}"
    return Figure("TTFT by time of arrival", svg, caption)


def _preemptions(records: SimulationRecords, time: TimeAxis) -> Figure:
    axis = TimeAxis.over(records.end, _BINS // 2)
    count = np.histogram(records.steps.start, axis.edges, weights=records.steps.preempted)[0]
    svg = line_chart(
        [Series("preemptions", axis.middle, count, 2, area=True)],
        x_label=time.label,
        y_label=f"per {axis.edges[1]:.3g} s",
        summary=f"Preemptions over time: {int(count.sum()):,} in all.",
        x_range=time.reach,
    )
    return Figure("Preemptions", svg, "Each one throws away a request's KV cache, to be computed again.")


PARTS = (
    ("queue", "queue", 2),
    ("prefill", "prefill", 4),
    ("decode", "decode", 1),
    ("decode_shared_with_prefill", "decode with prefills", 3),
    ("preempted", "preempted", 5),
)


def breakdown_figure(summary: Summary) -> Figure | None:
    """Mean E2E split into its phases; None when nothing finished."""
    parts = summary["breakdown_mean_s"]
    if parts["queue"] is None:
        return None
    total = sum(parts[name] for name, _, _ in PARTS)
    scale, unit = (1e-3, "ms") if total < 1 else (1.0, "s")
    pieces = [(label, parts[name] / scale, colour) for name, label, colour in PARTS]
    said = ", ".join(f"{label} {value:.3g} {unit}" for label, value, _ in pieces)
    svg = stacked_bar(pieces, unit=unit, summary=f"Mean end-to-end latency: {said}.")
    return Figure("Mean request", svg, "Where the time of the average finished request went.")
