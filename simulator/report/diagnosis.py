"""What limits this design: the binding constraint, its evidence in the records, and what to try next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from simulator.metrics.series import kv_usage, left_waiting
from simulator.metrics.stats import Floats
from simulator.metrics.summary import Summary
from simulator.metrics.token_times import Bools, span_seconds
from simulator.replica.records import SimulationRecords

_QUEUE_MATTERS = 0.05  # share of busy time with requests left waiting
_KV_FULL = 0.95


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """``constraint`` is a short name; the rest are whole sentences."""

    constraint: str
    evidence: tuple[str, ...]
    next_steps: tuple[str, ...]


def diagnose(
    summary: Summary,
    records: SimulationRecords,
    *,
    max_num_seqs: int | None = None,
    max_num_batched_tokens: int | None = None,
) -> Diagnosis:
    """Find the limit. While requests wait: what is full then. While none does: the SLO limit that is missed, if any.

    max_num_seqs, max_num_batched_tokens: the engine's limits; None: a plateau in the records stands in for the first,
    and the second is not looked at.
    """
    counts = summary["requests"]
    if counts["rejected"] and 2 * counts["rejected"] > counts["arrived"]:
        return _too_long(counts)
    seconds = _seconds_in_window(summary, records)
    busy = float(seconds.sum())
    waiting = left_waiting(records)
    queued = float(seconds[waiting].sum())
    if busy > 0 and queued > _QUEUE_MATTERS * busy:
        full = _what_is_full(records, max_num_seqs, max_num_batched_tokens)
        share = {name: float(seconds[waiting & mask].sum()) / queued for name, mask in full.items()}
        return _queueing(summary, share, queued / busy, _plateau(records, max_num_seqs))
    return _not_queueing(summary, max_num_seqs)


def _seconds_in_window(summary: Summary, records: SimulationRecords) -> Floats:
    steps, window = records.steps, summary["window"]
    end = np.minimum(steps.start + span_seconds(steps), window["end_s"])
    return np.asarray(np.clip(end - np.maximum(steps.start, window["start_s"]), 0.0, None))


def _plateau(records: SimulationRecords, max_num_seqs: int | None) -> int:
    if max_num_seqs is not None:
        return max_num_seqs
    return int(records.steps.num_running.max()) if len(records.steps.num_running) else 0


def _what_is_full(
    records: SimulationRecords, max_num_seqs: int | None, max_num_batched_tokens: int | None
) -> dict[str, Bools]:
    steps, usage = records.steps, kv_usage(records)
    another = usage / np.maximum(steps.num_running, 1)  # one more request like those that run
    full = {
        "kv": np.asarray((usage + another > 1.0) | (usage >= _KV_FULL) | (steps.preempted > 0)),
        "seqs": np.asarray(steps.num_running >= _plateau(records, max_num_seqs)),
    }
    if max_num_batched_tokens is not None:
        full["budget"] = np.asarray(steps.prefill_tokens + steps.num_decodes >= 0.95 * max_num_batched_tokens)
    return full


def _queueing(summary: Summary, share: dict[str, float], queued: float, plateau: int) -> Diagnosis:
    waited = f"Requests were left waiting during {queued:.0%} of the engines' busy time."
    name = max(share, key=lambda key: share[key])
    if share[name] < 0.3:
        return Diagnosis(
            "queueing behind engine steps",
            (
                waited,
                (
                    "No single limit was full meanwhile: arrivals come in bursts that outrun one step, or an admission "
                    "rule of the policy held them back."
                ),
            ),
            (
                "Add a replica.",
                "Look at the curves over time for the bursts.",
            ),
        )
    if name == "kv":
        engine = summary["engine"]
        return Diagnosis(
            "KV cache capacity",
            (
                (
                    f"{waited} For {share[name]:.0%} of that time the KV cache was at least {_KV_FULL:.0%} full, had "
                    "no room for another request of the mean size, or requests had to be preempted."
                ),
                (
                    f"Peak KV usage {_percent(engine['kv_usage']['max'])}; {engine['preemptions_run']:,} preemptions, "
                    f"{engine['recomputed_tokens_run']:,} tokens computed again."
                ),
            ),
            (
                (
                    "Free KV memory: an FP8 KV cache, a higher gpu_memory_utilization or tensor_parallel_size, or "
                    "a GPU with more memory."
                ),
                "Or spread the requests over more replicas.",
                "Where the policy reserves KV for the longest possible request (orca, static): lower max_model_len.",
            ),
        )
    if name == "seqs":
        return Diagnosis(
            "max_num_seqs (running slots)",
            (
                f"{waited} For {share[name]:.0%} of that time all {plateau:,} running slots were taken.",
                (
                    f"Peak KV usage {_percent(summary['engine']['kv_usage']['max'])}: "
                    f"{'memory would allow more.' if _room(summary) else 'the KV cache is nearly full as well.'}"
                ),
            ),
            (
                "Raise max_num_seqs if TPOT has room under its limit (a larger batch makes every step slower).",
                "Otherwise add replicas.",
            ),
        )
    return Diagnosis(
        "prefill compute (token budget)",
        (f"{waited} For {share[name]:.0%} of that time the steps used the whole max_num_batched_tokens budget.",),
        (
            "Add replicas or faster GPUs: prompts arrive faster than they can be computed.",
            "Raise max_num_batched_tokens if ITL has room under its limit; let the prefix cache serve shared prompts.",
        ),
    )


def _room(summary: Summary) -> bool:
    return (summary["engine"]["kv_usage"]["max"] or 0.0) < 0.9


def _not_queueing(summary: Summary, max_num_seqs: int | None) -> Diagnosis:
    missed = missed_limits(summary)
    engine, parts = summary["engine"], summary["breakdown_mean_s"]
    if "ttft" in missed:
        return Diagnosis(
            "prefill time",
            (f"Hardly anything waits, yet TTFT misses its limit: prefill takes {parts['prefill']:.3g} s on average.",),
            ("Use faster GPUs or a larger tensor_parallel_size, or let the prefix cache serve shared prompts.",),
        )
    if missed:
        shared = parts["decode_shared_with_prefill"] / max(parts["decode"] + parts["decode_shared_with_prefill"], 1e-12)
        if shared > 0.3:
            return Diagnosis(
                "decodes share steps with prefills",
                (
                    (
                        f"{missed[0].upper()} misses its limit, and {shared:.0%} of decode time is spent in steps "
                        "that also carry prefill tokens."
                    ),
                ),
                ("Lower max_num_batched_tokens, or move prefill to its own pool.",),
            )
        return Diagnosis(
            "decode step time",
            (f"{missed[0].upper()} misses its limit although nothing waits and prefills hardly interfere.",),
            ("Use a larger tensor_parallel_size, quantised weights or KV, or smaller batches on more replicas.",),
        )
    batch = engine["batch_size_requests"]["max"] or 0
    slots = f" of {max_num_seqs:,} slots" if max_num_seqs is not None else ""
    return Diagnosis(
        "nothing binds at this load",
        (
            (
                f"Requests hardly wait; at most {batch:,.0f} requests{slots} share a batch, and the KV cache is at "
                f"most {_percent(engine['kv_usage']['max'])} full."
            ),
        ),
        ("Offer more load, or try fewer or cheaper GPUs, to find where it begins to bind.",),
    )


def _too_long(counts: dict[str, int]) -> Diagnosis:
    return Diagnosis(
        "requests that can never fit",
        (
            (
                f"{counts['rejected']:,} of {counts['arrived']:,} requests were rejected: prompt and output exceed "
                "max_model_len or the whole KV cache."
            ),
        ),
        ("Raise max_model_len or the KV cache (more GPU memory, FP8 KV), or shorten the requests.",),
    )


def missed_limits(summary: Summary) -> list[str]:
    """SLO limits whose percentile is over the limit, in the order ttft, tpot, itl, e2e."""
    slo: dict[str, Any] | None = summary["slo"]
    if slo is None:
        return []
    found = slo["percentile_s"]
    return [name for name, limit in slo["limits_s"].items() if found[name] is not None and found[name] > limit]


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"
