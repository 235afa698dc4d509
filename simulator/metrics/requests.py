"""Latency of every request: TTFT, TPOT, E2E, queue time, and where the time went.

========================  =======================================================================
TTFT                      first token - arrival
TPOT                      (E2E - TTFT) / (output_tokens - 1); NaN for a single output token
E2E                       finish - arrival
normalized latency        E2E / output_tokens
queue time                scheduled - arrival
========================  =======================================================================
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simulator.metrics.stats import Floats, grouped
from simulator.metrics.token_times import TokenRanges, num_replicas, span_seconds
from simulator.replica.records import RequestRecords, SimulationRecords


@dataclass(frozen=True, slots=True)
class Latencies:
    """Seconds, (n,) each, in trace order; NaN where it never happened."""

    ttft: Floats
    tpot: Floats
    e2e: Floats
    normalized: Floats  # s per output token
    queue: Floats


@dataclass(frozen=True, slots=True)
class Breakdown:
    """Where a request's E2E went, s, (n,) each: the five add up to E2E of a finished request.

    decode_shared: from token to token in steps that also carried prefill tokens, its own recompute apart.
    preempted: from the last token before a preemption to the next one (waiting again and recomputing).
    """

    queue: Floats
    prefill: Floats
    decode: Floats
    decode_shared: Floats
    preempted: Floats


def latencies(requests: RequestRecords) -> Latencies:
    """Definitions of the module's table, vectorised."""
    ttft = requests.first_token - requests.arrival
    e2e = requests.finish - requests.arrival
    gaps = requests.output_tokens - 1
    tpot = np.full(len(e2e), np.nan)
    np.divide(requests.finish - requests.first_token, gaps, out=tpot, where=gaps > 0)
    return Latencies(ttft, tpot, e2e, e2e / requests.output_tokens, requests.scheduled - requests.arrival)


def breakdown(records: SimulationRecords, ranges: TokenRanges) -> Breakdown:
    """Split E2E of every request; see ``Breakdown``. NaN where a phase never ended."""
    requests = records.requests
    n = len(requests.arrival)
    shared_time = prefill_time_between(records, ranges.replica, ranges.start, ranges.end_time)
    shared = np.bincount(ranges.request, weights=shared_time, minlength=n)
    preempted = np.bincount(ranges.request, weights=np.nan_to_num(ranges.stall), minlength=n)
    decoding = requests.finish - requests.first_token
    return Breakdown(
        queue=requests.scheduled - requests.arrival,
        prefill=requests.first_token - requests.scheduled,
        decode=np.maximum(decoding - shared - preempted, 0.0),
        decode_shared=np.where(np.isnan(decoding), np.nan, shared),
        preempted=np.where(np.isnan(decoding), np.nan, preempted),
    )


def prefill_time_between(records: SimulationRecords, replica: np.ndarray, start: Floats, end: Floats) -> Floats:
    """Seconds within [start, end] that the replica spent in steps with prefill tokens; all arrays (m,)."""
    steps = records.steps
    seconds = span_seconds(steps)
    out = np.zeros(len(start))
    number = num_replicas(records)
    for mine, asked in zip(grouped(steps.replica, number), grouped(replica, number), strict=True):
        rows = mine[steps.prefill_tokens[mine] > 0]
        if not len(rows) or not len(asked):
            continue
        rows = rows[np.argsort(steps.start[rows], kind="stable")]
        edges = np.stack([steps.start[rows], steps.start[rows] + seconds[rows]], axis=1).ravel()
        before = np.cumsum(seconds[rows]) - seconds[rows]
        spent = np.stack([before, before + seconds[rows]], axis=1).ravel()
        edges = np.maximum.accumulate(edges)  # rounding may put an end past the next start by one ulp
        out[asked] = np.interp(end[asked], edges, spent) - np.interp(start[asked], edges, spent)
    return out
