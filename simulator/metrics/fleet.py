"""A cluster's replicas, one row each: what they served, how busy they were, how even that was."""

from __future__ import annotations

from typing import Any

import numpy as np

from simulator.metrics.series import prompt_hosts
from simulator.metrics.stats import Floats, Ints
from simulator.metrics.token_times import num_replicas, span_seconds
from simulator.replica.records import SimulationRecords, Status


def replica_columns(records: SimulationRecords, window: tuple[float, float] | None = None) -> dict[str, Floats | Ints]:
    """Columns of (replicas,): busy_s, alive_s, utilization, requests, prompt_tokens, cached_tokens, output_tokens,
    mean running and waiting requests and KV usage while busy.

    window: times count within it; None: the whole run. Requests and tokens are those of the whole run; tokens that
    end a recompute after preemption are not among the output tokens.
    """
    n, steps, requests = num_replicas(records), records.steps, records.requests
    low, high = window if window is not None else (0.0, records.end)
    seconds = np.clip(np.minimum(steps.start + span_seconds(steps), high) - np.maximum(steps.start, low), 0.0, None)
    busy = np.bincount(steps.replica, weights=seconds, minlength=n)

    def mean(values: Floats) -> Floats:
        total = np.bincount(steps.replica, weights=values * seconds, minlength=n)
        return np.divide(total, busy, out=np.zeros(n), where=busy > 0)

    def count(rows: Ints, weights: Ints | None = None) -> Ints:
        return np.bincount(rows, weights=weights, minlength=n).astype(np.int64)

    served = requests.replica >= 0
    prompt_host = prompt_hosts(records)
    computed = prompt_host >= 0
    first = ~np.isnan(requests.first_token) & computed
    alive = lifetimes(records, low, high)
    usage = 1.0 - steps.free_blocks / (np.asarray(records.num_gpu_blocks)[steps.replica] - 1.0)
    return {
        "busy_s": busy,
        "alive_s": alive,
        "utilization": np.divide(busy, alive, out=np.zeros(n), where=alive > 0).clip(0.0, 1.0),
        "requests": count(requests.replica[served & (requests.status == Status.FINISHED)]),
        "prompt_tokens": count(prompt_host[computed], requests.prompt_tokens[computed]),
        "cached_tokens": count(prompt_host[computed], requests.cached_tokens[computed].clip(0)),
        "output_tokens": count(steps.replica, steps.num_decodes * steps.num_steps)
        + count(prompt_host[first])
        + _made_together(records, n),
        "running": mean(steps.num_running.astype(np.float64)),
        "waiting": mean(steps.num_waiting.astype(np.float64)),
        "kv_usage": mean(usage),
    }


def _made_together(records: SimulationRecords, n: int) -> Ints:
    """Tokens beyond one per request and step, (replicas,), on the replica where their request ended."""
    told = records.step_tokens
    if told is None:
        return np.zeros(n, dtype=np.int64)
    owner = np.repeat(np.arange(len(told.steps)), told.steps)
    extra = np.bincount(owner, weights=told.tokens.astype(np.float64) - 1.0, minlength=len(told.steps))
    here = records.requests.replica >= 0
    return np.bincount(records.requests.replica[here], weights=extra[here], minlength=n).astype(np.int64)


def lifetimes(records: SimulationRecords, low: float, high: float) -> Floats:
    """Seconds within [low, high] that each replica's GPUs were held, (replicas,)."""
    if not records.replicas:
        return np.full(num_replicas(records), high - low)
    started = np.array([replica.started for replica in records.replicas])
    stopped = np.array([replica.stopped for replica in records.replicas])
    return np.asarray(np.clip(np.minimum(stopped, high) - np.maximum(started, low), 0.0, None))


def summarize_fleet(records: SimulationRecords, window: tuple[float, float] | None = None) -> dict[str, Any]:
    """Rows per group of replicas, how even the load was, what moved between replicas, what happened to them."""
    columns = replica_columns(records, window)
    names = [replica.group for replica in records.replicas] or ["replicas"] * len(columns["busy_s"])
    groups = {name: _group(columns, np.array([own == name for own in names])) for name in dict.fromkeys(names)}
    return {
        "groups": groups,
        "imbalance": {
            key: _imbalance(columns[key], columns["alive_s"]) for key in ("busy_s", "requests", "output_tokens")
        },
        "transfers": _transfers(records),
        "link_bytes": dict(records.link_bytes),
        "events": [
            {"time_s": event.time, "kind": event.kind, "replica": event.replica, "text": event.text}
            for event in records.events
        ],
    }


def _group(columns: dict[str, Any], mine: Any) -> dict[str, Any]:
    busy, prompt = columns["busy_s"][mine], int(columns["prompt_tokens"][mine].sum())
    alive = float(columns["alive_s"][mine].sum())
    weights = busy if busy.sum() > 0 else np.ones(len(busy))
    return {
        "replicas": int(mine.sum()),
        "replica_hours": alive / 3600.0,
        "utilization": min(float(busy.sum()) / alive, 1.0) if alive > 0 else None,
        "requests_finished": int(columns["requests"][mine].sum()),
        "prompt_tokens": prompt,
        "output_tokens": int(columns["output_tokens"][mine].sum()),
        "prefix_hit_ratio": float(columns["cached_tokens"][mine].sum()) / prompt if prompt else None,
        "running_requests": float(np.average(columns["running"][mine], weights=weights)),
        "waiting_requests": float(np.average(columns["waiting"][mine], weights=weights)),
        "kv_usage": float(np.average(columns["kv_usage"][mine], weights=weights)),
    }


def _imbalance(values: Any, alive: Any) -> float | None:
    """Largest over mean: 1 is even. Where replicas came and went, per second that they were there."""
    if len(alive) and np.ptp(alive) > 0:
        total, seconds = float(values.sum()), float(alive.sum())
        rates = values[alive > 0] / alive[alive > 0]
        return float(rates.max()) * seconds / total if total > 0 else None
    mean = float(np.mean(values)) if len(values) else 0.0
    return float(np.max(values)) / mean if mean > 0 else None


def _transfers(records: SimulationRecords) -> dict[str, dict[str, float]]:
    """Per kind: how many, how much, how long."""
    moved = records.transfers
    if moved is None:
        return {}
    kinds = np.array(moved.kind, dtype=object)
    out: dict[str, dict[str, float]] = {}
    for kind in dict.fromkeys(moved.kind):
        mine = (kinds == kind) & np.isfinite(moved.end)
        seconds = (moved.end - moved.start)[mine]
        out[kind] = {
            "count": int(np.sum(kinds == kind)),
            "bytes": float(moved.num_bytes[kinds == kind].sum()),
            "mean_s": float(seconds.mean()) if len(seconds) else 0.0,
            "p99_s": float(np.percentile(seconds, 99)) if len(seconds) else 0.0,
        }
    return out
