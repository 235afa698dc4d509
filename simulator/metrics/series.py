"""Curves over time, as exact means over bins: how many requests wait or run, KV usage, events per second."""

from __future__ import annotations

import numpy as np

from simulator.metrics.stats import Floats, Ints, grouped
from simulator.metrics.token_times import Bools, num_replicas, span_seconds
from simulator.replica.records import SimulationRecords, Status


def mean_count(entered: Floats, left: Floats, edges: Floats) -> Floats:
    """Mean number inside over each bin (len(edges) - 1,), of things inside from ``entered`` to ``left`` (n,), s.

    Exact: the integral of the count up to t is the sum of (t - entered)+ minus the sum of (t - left)+.
    """
    area = _integral(np.sort(entered), edges) - _integral(np.sort(left), edges)
    return np.asarray(np.diff(area) / np.diff(edges))


def count_at(entered: Floats, left: Floats, times: Floats) -> Floats:
    """Number inside at each time (those that leave at that very instant are gone)."""
    came = np.searchsorted(np.sort(entered), times, side="right")
    gone = np.searchsorted(np.sort(left), times, side="right")
    return np.asarray(came - gone, dtype=np.float64)


def _integral(sorted_times: Floats, at: Floats) -> Floats:
    before = np.searchsorted(sorted_times, at, side="right")
    summed = np.concatenate([[0.0], np.cumsum(sorted_times)])
    return np.asarray(before * at - summed[before])


def admitted_mask(records: SimulationRecords) -> Bools:
    """Requests that entered the system by the end: not rejected, and not failed without a known end."""
    requests = records.requests
    gone = (requests.status == Status.FAILED) & np.isnan(requests.finish)
    return np.asarray((requests.status != Status.REJECTED) & ~gone & (requests.arrival <= records.end))


def waiting_interval(records: SimulationRecords) -> tuple[Floats, Floats]:
    """When each admitted request began and ended its first wait, s; still waiting: until the horizon."""
    requests = records.requests
    kept = admitted_mask(records)
    arrival = requests.arrival[kept]
    left = np.where(np.isnan(requests.scheduled), requests.finish, requests.scheduled)[kept]
    return arrival, np.where(np.isnan(left), np.maximum(records.end, arrival), left)


def running_interval(records: SimulationRecords) -> tuple[Floats, Floats]:
    """From first admission to the last token or the horizon, s, time preempted included."""
    requests = records.requests
    kept = admitted_mask(records) & ~np.isnan(requests.scheduled)
    scheduled = requests.scheduled[kept]
    finish = requests.finish[kept]
    return scheduled, np.where(np.isnan(finish), np.maximum(records.end, scheduled), finish)


def step_mean(records: SimulationRecords, values: Floats, edges: Floats, *, busy_only: bool = False) -> Floats:
    """Mean over bins of a per-span value (rows,), summed over replicas; 0 while a replica is idle.

    busy_only: divide by the time that replicas were busy instead, NaN in a bin without any: a mean over replicas.
    """
    steps = records.steps
    seconds = span_seconds(steps)
    area = np.zeros(len(edges))
    busy = np.zeros(len(edges))
    for mine in grouped(steps.replica, num_replicas(records)):
        rows = mine[seconds[mine] > 0]
        if not len(rows):
            continue
        rows = rows[np.argsort(steps.start[rows], kind="stable")]
        times = np.stack([steps.start[rows], steps.start[rows] + seconds[rows]], axis=1).ravel()
        times = np.maximum.accumulate(times)
        area += np.interp(edges, times, _accumulate(values[rows] * seconds[rows]))
        busy += np.interp(edges, times, _accumulate(seconds[rows]))
    if not busy_only:
        return np.asarray(np.diff(area) / np.diff(edges))
    out = np.full(len(edges) - 1, np.nan)
    np.divide(np.diff(area), np.diff(busy), out=out, where=np.diff(busy) > 0)
    return out


def _accumulate(pieces: Floats) -> Floats:
    """Running sum at the start and end of every piece, interleaved (2 n,)."""
    after = np.cumsum(pieces)
    return np.stack([after - pieces, after], axis=1).ravel()


def prompt_hosts(records: SimulationRecords) -> Ints:
    """Replica on which each request waited first, (requests,); -1: none."""
    return records.requests.replica if records.prefill_replica is None else records.prefill_replica


def left_waiting(records: SimulationRecords) -> Bools:
    """Spans (rows,) during which some request of the replica waited and was not admitted at their end either.

    ``num_waiting`` alone is what the plan left behind: who arrives during a long span of a full batch is not in it.
    """
    steps, requests = records.steps, records.requests
    end = steps.start + span_seconds(steps)
    end += 1e-9 * np.maximum(end, 1.0)  # an admission at the very end is no wait beyond the span
    out = np.asarray(steps.num_waiting > 0)
    kept = admitted_mask(records)
    leaves = np.where(np.isnan(requests.scheduled), np.inf, requests.scheduled)
    number = num_replicas(records)
    hosts = np.where(kept, prompt_hosts(records), -1)
    for rows, mine in zip(grouped(steps.replica, number), grouped(hosts, number), strict=True):
        out[rows] |= count_at(requests.arrival[mine], leaves[mine], end[rows]) > 0
    return out


def kv_usage(records: SimulationRecords) -> Floats:
    """Share of KV blocks owned by live requests after each span's blocks are taken (rows,), 0 to 1.

    As vLLM's ``kv_cache_usage``: of ``num_gpu_blocks - 1``, because the null block is never handed out.
    """
    blocks = np.asarray(records.num_gpu_blocks, dtype=np.float64) - 1.0
    total = blocks[records.steps.replica] if len(blocks) else np.ones(len(records.steps.replica))
    return np.asarray(1.0 - records.steps.free_blocks / np.maximum(total, 1.0))
