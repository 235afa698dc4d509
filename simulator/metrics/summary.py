"""One run in one nested dict: what ``summary.json``, the report, sweeps and capacity search all read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from simulator.core.errors import UserError
from simulator.metrics.analysis import Analysis, analyse
from simulator.metrics.energy import EnergyPlan, summarize_clocks, summarize_energy, summarize_scaling
from simulator.metrics.fleet import lifetimes, summarize_fleet
from simulator.metrics.little import littles_law
from simulator.metrics.load import waiting_over_time
from simulator.metrics.series import kv_usage
from simulator.metrics.slo import Slo
from simulator.metrics.stability import assess
from simulator.metrics.stats import Floats, Stats, describe, describe_counted, describe_over_time
from simulator.metrics.tiers import summarize_tiers
from simulator.metrics.token_times import Bools, num_replicas, pooled_gaps, span_seconds, tokens_of
from simulator.replica.records import SimulationRecords, Status
from traces.trace import Labels, Trace

Summary: TypeAlias = dict[str, Any]
SCHEMA = "windtunnel.summary/1"
MAX_CLASSES = 24  # per column; the rest are summed up as one, because each costs a pass over the tokens
CLASS_COLUMNS = ("tenant", "slo_class", "adapter", "model")


@dataclass(frozen=True, slots=True)
class _Run:
    """What every part of a summary looks at."""

    records: SimulationRecords
    found: Analysis
    slo: Slo | None
    window: tuple[float, float]

    @property
    def duration_s(self) -> float:
        return self.window[1] - self.window[0]

    @property
    def finished(self) -> Bools:
        return np.asarray(self.records.requests.status == Status.FINISHED)


def summarize(
    records: SimulationRecords,
    trace: Trace | None = None,
    slo: Slo | None = None,
    window: tuple[float, float] | None = None,
    *,
    usd_per_hour: float | None = None,
    energy: EnergyPlan | None = None,
    analysis: Analysis | None = None,
) -> Summary:
    """All metrics of a run, JSON-able, units in the key names, None where nothing was measured.

    window: ``(start_s, end_s)`` on the simulation clock; default first arrival to the end of the run. Latency
        distributions and SLO attainment are over requests that *arrive* in it (latencies: and finished, whenever);
        throughput, goodput, utilization and costs over what *happens* in it. The stability verdict and Little's law
        look at the whole run.
    usd_per_hour: price of the whole cluster, for USD per million output tokens.
    analysis: reuse ``analyse(records, slo)`` of the same records and SLO.

    Raises:
        UserError: the window is empty or reversed, or the price is negative.
    """
    found = analysis if analysis is not None else analyse(records, slo)
    span = summary_window(records, window)
    arrived = (records.requests.arrival >= span[0]) & (records.requests.arrival <= span[1])
    run = _Run(records, found, slo, span)
    law = littles_law(records)
    throughput = _throughput(records, found, span)
    summary: Summary = _plain(
        {
            "schema": SCHEMA,
            "window": {"start_s": span[0], "end_s": span[1], "duration_s": span[1] - span[0]},
            "stability": _stability(records, found),
            "requests": _counts(records, arrived),
            "throughput": throughput,
            "latency": latency_summary(records, found, arrived),
            "breakdown_mean_s": _breakdown_means(records, found, arrived),
            "slo": _slo_summary(run, arrived),
            "goodput_request_per_s": _goodput(run, np.ones(len(arrived), dtype=bool)),
            "engine": _engine(records, span),
            "cluster": summarize_fleet(records, span) if num_replicas(records) > 1 else None,
            "kv_tiers": summarize_tiers(records),
            "littles_law": {
                "l_running_requests": law.l_running,
                "lambda_w_requests": law.lambda_w,
                "relative_gap": law.relative_gap,
            },
            "cost": _cost(throughput, usd_per_hour, span),
            "scaling": summarize_scaling(records, span),
            **(summarize_energy(records, energy, span) if energy is not None else {"energy": None, "carbon": None}),
            "classes": _classes(run, trace, arrived),
        }
    )
    if (records.requests.status == Status.CACHED).any():
        summary["response_cache"] = _plain(_answered(records, found, arrived))
    if records.step_tokens is not None:
        summary["speculation"] = {"mean_acceptance_length_run": float(records.step_tokens.tokens.mean())}
    if energy is not None and records.clocks is not None:
        summary["clocks"] = _plain(summarize_clocks(records, energy, span))
    if records.rejections:  # the cluster has rules for admission, or a router's queue
        summary["rejections_run"] = dict(records.rejections)
    return summary


def _stability(records: SimulationRecords, found: Analysis) -> dict[str, Any]:
    """The verdict with its evidence; ``latency_is_steady``: the latencies do not depend on how long the run lasts."""
    stability = assess(records)
    first, last = _drift(records.requests.arrival, found.latency.ttft)
    return {
        "verdict": stability.verdict,
        "reason": stability.reason,
        "latency_is_steady": stability.verdict == "stable",
        "closed_loop_users": stability.closed_loop_users,
        "offered_request_per_s": stability.offered_request_per_s,
        "second_half_arrivals": stability.second_half_arrivals,
        "second_half_finished": stability.second_half_finished,
        "queue_growth_requests": stability.queue_growth,
        "waiting_when_arrivals_end_requests": stability.waiting_at_end,
        "longest_quarter_wait_s": stability.longest_quarter_wait_s,
        "mean_service_s": stability.mean_service_s,
        "mean_ttft_of_first_tenth_s": first,
        "mean_ttft_of_last_tenth_s": last,
    }


def _drift(arrival: Floats, ttft: Floats) -> tuple[float, float]:
    """Mean TTFT (s) of the first and of the last tenth of the requests that have one, by arrival; NaN without any."""
    known = np.flatnonzero(~np.isnan(ttft))
    if not len(known):
        return float("nan"), float("nan")
    ordered = ttft[known[np.argsort(arrival[known], kind="stable")]]
    tenth = -(-len(ordered) // 10)
    return float(ordered[:tenth].mean()), float(ordered[-tenth:].mean())


def summary_window(records: SimulationRecords, window: tuple[float, float] | None) -> tuple[float, float]:
    """What a summary is about: ``window``, or first arrival to the end of the run. Raises UserError: it is empty."""
    if window is None:
        arrival = records.requests.arrival
        start = float(arrival.min()) if len(arrival) else 0.0
        return min(start, records.end), records.end
    if not window[1] > window[0]:
        raise UserError(
            f"measurement window ({window[0]:g}, {window[1]:g}) s is empty",
            remedy="Shorten the warm-up and the cool-down: they leave nothing to measure.",
        )
    return float(window[0]), float(window[1])


def _counts(records: SimulationRecords, chosen: Bools) -> dict[str, int]:
    status = records.requests.status[chosen]
    named = {kind.name.lower(): int(np.sum(status == kind)) for kind in Status}
    if not (records.requests.status == Status.CACHED).any():
        del named["cached"]
    return {"arrived": len(status), **named}


def _answered(records: SimulationRecords, found: Analysis, chosen: Bools) -> dict[str, Any]:
    """Of the chosen requests that have been answered: how many by the response cache, and latencies (s) of those and
    of all. The distributions in ``latency`` are of those that engines served."""
    cached = chosen & (records.requests.status == Status.CACHED)
    served = cached | (chosen & (records.requests.status == Status.FINISHED))
    return {
        "hits": int(cached.sum()),
        "hit_ratio": float(cached.sum() / served.sum()) if served.any() else None,
        "hit_e2e_s": describe(found.latency.e2e[cached]),
        "all_ttft_s": describe(found.latency.ttft[served]),
        "all_e2e_s": describe(found.latency.e2e[served]),
    }


def _within(times: Floats, window: tuple[float, float]) -> Bools:
    with np.errstate(invalid="ignore"):
        return np.asarray((times >= window[0]) & (times <= window[1]))


def _throughput(records: SimulationRecords, found: Analysis, window: tuple[float, float]) -> dict[str, float | int]:
    requests = records.requests
    duration = window[1] - window[0]
    everyone = np.ones(len(requests.arrival), dtype=bool)
    times, made = tokens_of(found.ranges, found.clock, everyone)
    output = int(made[_within(times, window)].sum())
    prompt = int(requests.prompt_tokens[_within(requests.first_token, window)].sum())
    finished = int(np.sum(_within(requests.finish, window) & (requests.status == Status.FINISHED)))
    per_s = 1.0 / duration if duration > 0 else float("nan")
    return {
        "offered_request_per_s": _offered(requests.arrival, window),
        "request_per_s": finished * per_s,
        "input_tokens_per_s": prompt * per_s,
        "output_tokens_per_s": output * per_s,
        "total_tokens_per_s": (prompt + output) * per_s,
        "finished_requests": finished,
        "input_tokens": prompt,
        "output_tokens": output,
    }


def _offered(arrival: Floats, window: tuple[float, float]) -> float:
    """Arrivals per second of that part of the window in which requests still arrive; NaN when all come at once.

    A run that is left to drain has a long tail without arrivals, which says nothing about the load.
    """
    until = min(window[1], float(arrival.max())) if len(arrival) else window[0]
    if until <= window[0]:
        return float("nan")
    return int(np.sum((arrival > window[0]) & (arrival <= until))) / (until - window[0])


def latency_summary(records: SimulationRecords, found: Analysis, chosen: Bools) -> dict[str, Stats]:
    """Distributions (s) over the chosen requests that finished; ITL pools every gap of theirs."""
    finished = chosen & (records.requests.status == Status.FINISHED)
    latency = found.latency
    return {
        "ttft_s": describe(latency.ttft[finished]),
        "tpot_s": describe(latency.tpot[finished]),
        "itl_s": describe_counted(*pooled_gaps(found.ranges, found.clock, finished)),
        "e2e_s": describe(latency.e2e[finished]),
        "queue_time_s": describe(latency.queue[finished]),
        "normalized_latency_s_per_token": describe(latency.normalized[finished]),
    }


def _breakdown_means(records: SimulationRecords, found: Analysis, chosen: Bools) -> dict[str, float | None]:
    finished = chosen & (records.requests.status == Status.FINISHED)
    parts = found.breakdown
    named = {
        "queue": parts.queue,
        "prefill": parts.prefill,
        "decode": parts.decode,
        "decode_shared_with_prefill": parts.decode_shared,
        "preempted": parts.preempted,
    }
    return {name: float(part[finished].mean()) if finished.any() else None for name, part in named.items()}


def _slo_summary(run: _Run, chosen: Bools) -> dict[str, Any] | None:
    """Attainment over the chosen requests whose outcome is decided; goodput of those that finish in the window."""
    outcome = run.found.outcome
    if run.slo is None or outcome is None:
        return None
    judged = chosen & outcome.decided
    total = int(judged.sum())
    return {
        "name": run.slo.name,
        "limits_s": {name.removesuffix("_s"): limit for name, limit in run.slo.limits().items()},
        "percentile": run.slo.percentile,
        "judged_requests": total,
        "good_requests": int(np.sum(outcome.good & judged)),
        "attainment": float(np.sum(outcome.good & judged) / total) if total else None,
        "attainment_by_limit": {
            name.removesuffix("_s"): float(np.sum(mask & judged) / total) if total else None
            for name, mask in outcome.met.items()
        },
        "percentile_s": run.found.percentile_of_limits(run.slo, chosen & run.finished),
    }


def _goodput(run: _Run, members: Bools) -> float | None:
    """Good requests of ``members`` that finish in the window, per second of it."""
    outcome = run.found.outcome
    if outcome is None or run.duration_s <= 0:
        return None
    in_time = _within(run.records.requests.finish, run.window)
    return int(np.sum(outcome.good & members & in_time)) / run.duration_s


def _engine(records: SimulationRecords, window: tuple[float, float]) -> dict[str, Any]:
    steps, requests = records.steps, records.requests
    seconds = span_seconds(steps)
    inside = np.clip(np.minimum(steps.start + seconds, window[1]) - np.maximum(steps.start, window[0]), 0.0, None)
    if any(replica.started > 0 or np.isfinite(replica.stopped) for replica in records.replicas):
        available = float(lifetimes(records, *window).sum())
    else:
        available = (window[1] - window[0]) * num_replicas(records)
    scheduled = ~np.isnan(requests.scheduled)
    prompt = int(requests.prompt_tokens[scheduled].sum())
    started = _within(steps.start, window)
    return {
        "replicas": num_replicas(records),
        "utilization": min(float(inside.sum()) / available, 1.0) if available > 0 else None,
        "busy_s": float(inside.sum()),
        "prefill_step_time_share": _share(inside, steps.prefill_tokens > 0),
        "batch_size_requests": describe_over_time((steps.num_decodes + steps.num_prefills).astype(float), inside),
        "running_requests": describe_over_time(steps.num_running.astype(float), inside),
        "waiting_requests": waiting_over_time(records, window),
        "kv_usage": describe_over_time(kv_usage(records), inside),
        "num_steps": int(steps.num_steps[started].sum()),
        "preemptions": int(steps.preempted[started].sum()),
        "preemptions_run": int(requests.preemptions.sum()),
        "recomputed_tokens_run": records.tokens_recomputed,
        "prefix_hit_ratio_run": float(requests.cached_tokens[scheduled].clip(0).sum()) / prompt if prompt else None,
        "num_gpu_blocks": list(records.num_gpu_blocks),
        "block_size": records.block_size,
        "num_events": records.num_events,
    }


def _share(seconds: Floats, mask: Bools) -> float | None:
    total = float(seconds.sum())
    return float(seconds[mask].sum()) / total if total else None


def _cost(
    throughput: Mapping[str, float | int], usd_per_hour: float | None, window: tuple[float, float]
) -> dict[str, float | None] | None:
    if usd_per_hour is None:
        return None
    if usd_per_hour < 0:
        raise UserError(f"usd_per_hour = {usd_per_hour!r} is negative", remedy="Give the price of the whole cluster.")
    usd = usd_per_hour * (window[1] - window[0]) / 3600.0
    output, total = throughput["output_tokens"], throughput["input_tokens"] + throughput["output_tokens"]
    return {
        "usd_per_hour": usd_per_hour,
        "usd": usd,
        "usd_per_million_output_tokens": usd / output * 1e6 if output else None,
        "usd_per_million_total_tokens": usd / total * 1e6 if total else None,
    }


def _classes(run: _Run, trace: Trace | None, arrived: Bools) -> dict[str, dict[str, Any]]:
    """Counts, latencies and SLO outcome for every label of every labelled column of the trace."""
    out: dict[str, dict[str, Any]] = {}
    for column in CLASS_COLUMNS:
        labels: Labels | None = getattr(trace, column) if trace is not None else None
        if labels is None:
            continue
        out[column] = {
            name: _class_summary(run, members, arrived) for name, members in _members(labels) if members.any()
        }
    return out


def _members(labels: Labels) -> list[tuple[str, Bools]]:
    """Masks of the most frequent labels, in the order of ``names``, then of all other and of unlabelled requests."""
    counts = np.bincount(labels.codes[labels.codes >= 0], minlength=len(labels.names))
    kept = np.sort(np.argsort(-counts, kind="stable")[:MAX_CLASSES])
    named = [(labels.names[code], np.asarray(labels.codes == code)) for code in kept.tolist()]
    others = np.asarray((labels.codes >= 0) & ~np.isin(labels.codes, kept))
    return [*named, ("(all others)", others), ("(not given)", np.asarray(labels.codes == -1))]


def _class_summary(run: _Run, members: Bools, arrived: Bools) -> dict[str, Any]:
    chosen = arrived & members
    made = run.records.requests.output_tokens[chosen & run.finished].sum()
    return {
        "requests": _counts(run.records, chosen),
        "finished_output_tokens": int(made),
        "latency": latency_summary(run.records, run.found, chosen),
        "slo": _slo_summary(run, chosen),
        "goodput_request_per_s": _goodput(run, members),
    }


def _plain(value: Any) -> Any:
    """Built-in types only, NaN and infinities as None: what JSON can say."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
