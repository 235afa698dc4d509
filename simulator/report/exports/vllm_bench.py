"""Results as ``vllm bench serve --save-result`` writes them (vLLM 0.33): same keys, same units (ms, s, tokens)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from simulator.metrics.analysis import Analysis, analyse
from simulator.metrics.summary import Summary
from simulator.metrics.token_times import gaps_by_request, tokens_of
from simulator.replica.records import SimulationRecords, Status

_NAMES = {"ttft": "ttft_s", "tpot": "tpot_s", "itl": "itl_s", "e2el": "e2e_s"}


def to_vllm_bench(
    summary: Summary,
    records: SimulationRecords,
    *,
    model_id: str,
    date: str = "",
    label: str | None = None,
    request_rate: float | None = None,
    burstiness: float = 1.0,
    max_concurrency: int | None = None,
    detailed: bool = False,
    analysis: Analysis | None = None,
) -> dict[str, Any]:
    """The JSON object of one benchmark run.

    date: ``YYYYmmdd-HHMMSS`` of the run, the caller's: results of equal runs are equal bytes without it.
    request_rate: requests/s offered; None: as measured; all at once, and a closed loop, are written ``"inf"``, vLLM's
        word for sending as soon as ``max_concurrency`` allows.
    detailed: add the per-request lists of ``--save-detailed``, ITL lists included (one number per token). Requests
        that did not finish are in the lists with zero tokens and an error text.
    The throughput counts tokens of requests cut off by the horizon too; vLLM has no such requests.
    """
    found = analysis if analysis is not None else analyse(records)
    users = summary["stability"]["closed_loop_users"]
    measured = summary["throughput"]["offered_request_per_s"] if users is None else None
    rate = measured if request_rate is None else request_rate
    result: dict[str, Any] = {
        "date": date,
        "endpoint_type": "windtunnel",
        "backend": "windtunnel",
        "label": label,
        "model_id": model_id,
        "tokenizer_id": model_id,
        "num_prompts": summary["requests"]["arrived"],
        "request_rate": "inf" if rate is None or math.isinf(rate) else rate,
        "burstiness": burstiness,
        "max_concurrency": users if max_concurrency is None else max_concurrency,
        **_traffic(summary, *_peaks(records, found)),
    }
    for theirs, ours in _NAMES.items():
        result.update(_distribution(theirs, summary["latency"][ours]))
    if detailed:
        result.update(_lists(records, found))
    return result


def _traffic(summary: Summary, most_tokens: float, most_requests: int) -> dict[str, Any]:
    traffic, counts = summary["throughput"], summary["requests"]
    return {
        "duration": summary["window"]["duration_s"],
        "completed": traffic["finished_requests"],
        "failed": counts["rejected"] + counts["failed"],
        "total_input_tokens": traffic["input_tokens"],
        "total_output_tokens": traffic["output_tokens"],
        "request_throughput": traffic["request_per_s"],
        "request_goodput": summary["goodput_request_per_s"],
        "output_throughput": traffic["output_tokens_per_s"],
        "total_token_throughput": traffic["total_tokens_per_s"],
        "max_output_tokens_per_s": most_tokens,
        "max_concurrent_requests": most_requests,
        "rtfx": 0.0,
    }


def _distribution(name: str, stats: dict[str, Any]) -> dict[str, float]:
    """Milliseconds; vLLM writes 0 where nothing was measured."""
    ms = {key: (value or 0.0) * 1e3 for key, value in stats.items() if key != "count"}
    spread = {f"{p}_{name}_ms": ms[p] for p in ("p50", "p90", "p95", "p99")}
    return {f"mean_{name}_ms": ms["mean"], f"median_{name}_ms": ms["p50"], f"std_{name}_ms": ms["std"], **spread}


def _peaks(records: SimulationRecords, found: Analysis) -> tuple[float, int]:
    """Busiest whole second: tokens made and requests active in it, seconds counted from the first arrival."""
    requests = records.requests
    finished = requests.status == Status.FINISHED
    if not finished.any():
        return 0.0, 0
    zero = requests.arrival[finished].min()
    times, made = tokens_of(found.ranges, found.clock, finished)
    # Only seconds in which something happens are held: a trace may be idle for years.
    seconds, at = np.unique(np.floor(times - zero), return_inverse=True)
    tokens = np.bincount(at, weights=made, minlength=len(seconds))
    begin, end = np.floor(requests.arrival[finished] - zero), np.floor(requests.finish[finished] - zero)
    started = np.searchsorted(np.sort(begin), np.sort(begin), side="right")
    ended = np.searchsorted(np.sort(end), np.sort(begin), side="left")
    return float(tokens.max()), int((started - ended).max())


def _lists(records: SimulationRecords, found: Analysis) -> dict[str, list[Any]]:
    requests, latency = records.requests, found.latency
    n = len(requests.arrival)
    finished = requests.status == Status.FINISHED
    gaps = gaps_by_request(found.ranges, found.clock, n)
    done = finished.tolist()
    queue = np.where(finished, latency.queue, 0.0).tolist()
    ttft = np.where(finished, latency.ttft, 0.0).tolist()
    return {
        "input_lens": requests.prompt_tokens.tolist(),
        "output_lens": np.where(finished, requests.output_tokens, 0).tolist(),
        "ttfts": ttft,
        "itls": [one if ok else [] for one, ok in zip(gaps, done, strict=True)],
        "latencies": np.where(finished, latency.e2e, 0.0).tolist(),
        "start_times": [time if time < math.inf else None for time in requests.arrival.tolist()],  # null: never sent
        "queue_times": [0.0] * n,  # waiting at the client; the server's queue is below
        "generated_texts": [""] * n,
        "errors": ["" if ok else Status(s).name.lower() for ok, s in zip(done, requests.status.tolist(), strict=True)],
        "server_queue_times": queue,
        "server_ttfts": ttft,
    }
