"""Results in the shape of NVIDIA AIPerf's ``profile_export_aiperf.json`` (schema 1.1).

One block per metric: ``unit`` and ``avg``, and for per-request metrics min, max, p1..p99, sample std, count and sum.
AIPerf's ``inter_token_latency`` is per request, (latency - TTFT) / (tokens - 1): our TPOT. Its ``inter_chunk_latency``
pools the gaps between chunks: our ITL.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from simulator.metrics.analysis import Analysis, analyse
from simulator.metrics.stats import Floats, Ints, counted_percentiles
from simulator.metrics.summary import Summary
from simulator.metrics.token_times import Bools, pooled_gaps
from simulator.replica.records import SimulationRecords, Status

SCHEMA_VERSION = "1.1"
_PERCENTILES = (1, 5, 10, 25, 50, 75, 90, 95, 99)
Block = dict[str, Any]


def to_aiperf(
    summary: Summary,
    records: SimulationRecords,
    *,
    config: Mapping[str, Any] | None = None,
    analysis: Analysis | None = None,
) -> dict[str, Any]:
    """The JSON object of one run; ``config`` goes to ``input_config``. Distributions cover the summary's window."""
    found = analysis if analysis is not None else analyse(records)
    requests, window = records.requests, summary["window"]
    inside = (requests.arrival >= window["start_s"]) & (requests.arrival <= window["end_s"])
    finished = np.asarray(inside & (requests.status == Status.FINISHED))
    traffic, counts = summary["throughput"], summary["requests"]
    out: dict[str, Any] = {"schema_version": SCHEMA_VERSION}
    out.update(_distributions(records, found, finished))
    out.update(
        {
            "request_throughput": _scalar("requests/sec", traffic["request_per_s"]),
            "output_token_throughput": _scalar("tokens/sec", traffic["output_tokens_per_s"]),
            "total_token_throughput": _scalar("tokens/sec", traffic["total_tokens_per_s"]),
            "request_count": _scalar("requests", float(finished.sum())),
            "error_request_count": _scalar("requests", float(counts["rejected"] + counts["failed"])),
            "benchmark_duration": _scalar("sec", window["duration_s"]),
            "total_isl": _scalar("tokens", float(requests.prompt_tokens[finished].sum())),
            "total_osl": _scalar("tokens", float(requests.output_tokens[finished].sum())),
            "total_output_tokens": _scalar("tokens", float(requests.output_tokens[finished].sum())),
        }
    )
    if summary["slo"] is not None:
        out["goodput"] = _scalar("requests/sec", summary["goodput_request_per_s"])
        out["good_request_count"] = _scalar("requests", float(summary["slo"]["good_requests"]))
    out = {name: block for name, block in out.items() if block is not None}
    out["was_cancelled"] = False
    out["error_summary"] = _errors(counts)
    out["input_config"] = dict(config or {})
    return out


def _distributions(records: SimulationRecords, found: Analysis, finished: Bools) -> dict[str, Block | None]:
    requests, latency = records.requests, found.latency
    tpot = latency.tpot[finished]
    tpot = tpot[tpot > 0]
    gaps, counts = pooled_gaps(found.ranges, found.clock, finished)
    return {
        "request_latency": _block("ms", latency.e2e[finished] * 1e3),
        "time_to_first_token": _block("ms", latency.ttft[finished] * 1e3),
        "inter_token_latency": _block("ms", tpot * 1e3),
        "inter_chunk_latency": _block("ms", gaps * 1e3, counts),
        "output_token_throughput_per_user": _block("tokens/sec/user", 1.0 / tpot),
        "output_sequence_length": _block("tokens", requests.output_tokens[finished].astype(np.float64)),
        "output_token_count": _block("tokens", requests.output_tokens[finished].astype(np.float64)),
        "input_sequence_length": _block("tokens", requests.prompt_tokens[finished].astype(np.float64)),
    }


def _block(unit: str, values: Floats, counts: Ints | None = None) -> Block | None:
    """Statistics of a sample, each value ``counts`` times; None of an empty one (AIPerf leaves the metric out)."""
    weights = np.ones(len(values), dtype=np.int64) if counts is None else counts
    total = int(weights.sum())
    if not total:
        return None
    summed = float(values @ weights)
    mean = summed / total
    spread = float(((values - mean) ** 2) @ weights)
    quantiles = counted_percentiles(values, weights, _PERCENTILES)
    block: Block = {"unit": unit, "avg": mean, "min": float(values.min()), "max": float(values.max())}
    block.update({f"p{p}": value for p, value in zip(_PERCENTILES, quantiles.tolist(), strict=True)})
    return block | {"std": (spread / (total - 1)) ** 0.5 if total > 1 else 0.0, "count": total, "sum": summed}


def _scalar(unit: str, value: float | None) -> Block | None:
    return None if value is None else {"unit": unit, "avg": value}


def _errors(counts: Mapping[str, int]) -> list[dict[str, Any]]:
    kinds = {"rejected": "request can never be served", "failed": "request failed"}
    return [
        {"error_details": {"type": kind, "message": text}, "count": counts[kind]}
        for kind, text in kinds.items()
        if counts[kind]
    ]
