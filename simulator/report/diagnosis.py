"""What limits this design: the binding constraint, its evidence in the records, and what to try next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from simulator.metrics.series import kv_usage, left_waiting
from simulator.metrics.stats import Floats, grouped
from simulator.metrics.summary import Summary
from simulator.metrics.token_times import Bools, num_replicas, span_seconds
from simulator.replica.records import SimulationRecords

_QUEUE_MATTERS = 0.05  # share of busy time with requests left waiting
_CLEARLY = 0.3  # share of the waiting during which one limit must be full to be called the reason
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
    """Find the limit. While requests wait: what is full then. While none does, or none waits too long: the SLO limit
    that is missed, if any.

    In a closed loop the users are the load, so a queue is their number beyond what the engine runs at once.

    max_num_seqs, max_num_batched_tokens: the engine's limits; None: a plateau in the records stands in for the first,
    and the second is not looked at.
    """
    counts = summary["requests"]
    too_long = counts["rejected"] - sum(summary.get("rejections_run", {}).values())
    if too_long > 0 and 2 * too_long > counts["arrived"]:
        return _too_long(counts)
    seconds = _seconds_in_window(summary, records)
    busy = float(seconds.sum())
    waiting = left_waiting(records)
    queued = float(seconds[waiting].sum())
    if busy > 0 and queued > _QUEUE_MATTERS * busy and not _only_decodes_miss(summary):
        full = _what_is_full(records, max_num_seqs, max_num_batched_tokens)
        share = {name: float(seconds[waiting & mask].sum()) / queued for name, mask in full.items()}
        waited = f"Requests were left waiting during {queued / busy:.0%} of the engines' busy time."
        if max(share.values()) < _CLEARLY:
            return _no_single_limit(summary, waited, max_num_seqs)
        return _queueing(summary, share, waited, _plateau(records, max_num_seqs))
    return _not_queueing(summary, max_num_seqs)


def _only_decodes_miss(summary: Summary) -> bool:
    """Whoever waits is served in time all the same; what misses its limit is the pace after the first token."""
    missed = missed_limits(summary)
    return summary["stability"]["verdict"] == "stable" and bool(missed) and set(missed) <= {"tpot", "itl"}


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
    kv = np.asarray((usage + another > 1.0) | (usage >= _KV_FULL) | (steps.preempted > 0))
    plateau = _plateau(records, max_num_seqs)
    full = {"kv": kv, "seqs": (steps.num_running >= plateau) | (~kv & (_slots_held(records) >= plateau))}
    if max_num_batched_tokens is not None:
        full["budget"] = np.asarray(steps.prefill_tokens + steps.num_decodes >= 0.95 * max_num_batched_tokens)
    return full


def _slots_held(records: SimulationRecords) -> Floats:
    """Running requests of every span and those that ended with the one before it (rows,).

    With asynchronous scheduling a step is planned before the one ahead of it has ended, so whoever ends there still
    holds a slot in the plan: while requests wait, the batch of such an engine is seldom full to the last slot.
    """
    steps, requests = records.steps, records.requests
    held = steps.num_running.astype(float)
    number = num_replicas(records)
    for mine, asked in zip(grouped(steps.replica, number), grouped(requests.replica, number), strict=True):
        rows = mine[np.argsort(steps.start[mine], kind="stable")]
        finish = requests.finish[asked]
        start = steps.start[rows]
        ended = np.searchsorted(np.sort(finish[~np.isnan(finish)]), start + 1e-9 * np.maximum(start, 1.0), side="right")
        held[rows] += np.diff(ended, prepend=0)
    return held


def _queueing(summary: Summary, share: dict[str, float], waited: str, plateau: int) -> Diagnosis:
    name = max(share, key=lambda key: share[key])
    if name == "kv":
        return _kv_full(summary, waited, share[name])
    if name == "seqs":
        return _slots_full(summary, waited, share[name], plateau)
    return Diagnosis(
        "prefill compute (token budget)",
        (f"{waited} For {share[name]:.0%} of that time the steps used the whole max_num_batched_tokens budget.",),
        (
            _faster_prefill(summary),
            "Raise max_num_batched_tokens if ITL has room under its limit; let the prefix cache serve shared prompts.",
        ),
    )


def _users(summary: Summary) -> int | None:
    users: int | None = summary["stability"]["closed_loop_users"]
    return users


def _faster_prefill(summary: Summary) -> str:
    if _users(summary) is None:
        times = "" if summary["stability"]["verdict"] == "overloaded" else "at times "
        return f"Add replicas or faster GPUs: {times}prompts arrive faster than they can be computed."
    return "Use faster GPUs or fewer concurrent users per replica: they send prompts faster than these are computed."


def _no_single_limit(summary: Summary, waited: str, max_num_seqs: int | None) -> Diagnosis:
    users = _users(summary)
    if users is None:
        why = "arrivals come in bursts that outrun one step, or an admission rule of the policy held them back."
        return Diagnosis(
            "queueing behind engine steps",
            (waited, f"No single limit was full meanwhile: {why}"),
            ("Add a replica.", "Look at the curves over time for the bursts."),
        )
    if "ttft" in missed_limits(summary) and _mostly_the_start(summary):
        first = summary["stability"]["mean_ttft_of_first_tenth_s"]
        last = summary["stability"]["mean_ttft_of_last_tenth_s"]
        return Diagnosis(
            "the first wave of users",
            (
                (
                    f"All {users:,} users send at once when the run starts, as benchmark clients do: TTFT is "
                    f"{first:.3g} s on average for the first tenth of the requests and {last:.3g} s for the last, "
                    "which come one by one."
                ),
            ),
            (
                "Leave the start out with run.warmup_s, or give the run more requests per user.",
                "For arrivals as in production, give a rate instead of users.",
            ),
        )
    return _not_queueing(
        summary, max_num_seqs
    )  # a request that waits for the step in flight: that is the loop, not a queue


def _mostly_the_start(summary: Summary) -> bool:
    first = summary["stability"]["mean_ttft_of_first_tenth_s"]
    last = summary["stability"]["mean_ttft_of_last_tenth_s"]
    return first is not None and first > 2 * last


def _kv_full(summary: Summary, waited: str, share: float) -> Diagnosis:
    engine = summary["engine"]
    spread = "Or spread the requests over more replicas."
    fewer = "Or use fewer concurrent users: those beyond what the cache holds only wait."
    return Diagnosis(
        "KV cache capacity",
        (
            (
                f"{waited} For {share:.0%} of that time the KV cache was at least {_KV_FULL:.0%} full, had "
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
            spread if _users(summary) is None else fewer,
            "Where the policy reserves KV for the longest possible request (orca, static): lower max_model_len.",
        ),
    )


def _slots_full(summary: Summary, waited: str, share: float, plateau: int) -> Diagnosis:
    users, usage = _users(summary), _percent(summary["engine"]["kv_usage"]["max"])
    room = "memory would allow more." if _room(summary) else "the KV cache is nearly full as well."
    evidence = [
        f"{waited} For {share:.0%} of that time all {plateau:,} running slots of a replica were taken.",
        f"Peak KV usage {usage}: {room}",
    ]
    slots = plateau * int(summary["engine"]["replicas"])
    if users is not None and users > slots:
        evidence.append(f"{users:,} users share {slots:,} slots, so {users - slots:,} of them wait at any time.")
    return Diagnosis(
        "max_num_seqs (running slots)",
        tuple(evidence),
        (
            "Raise max_num_seqs if TPOT has room under its limit (a larger batch makes every step slower).",
            "Otherwise add replicas." if users is None else "Otherwise use fewer concurrent users per replica.",
        ),
    )


def _room(summary: Summary) -> bool:
    return (summary["engine"]["kv_usage"]["max"] or 0.0) < 0.9


def _not_queueing(summary: Summary, max_num_seqs: int | None) -> Diagnosis:
    missed, parts = missed_limits(summary), summary["breakdown_mean_s"]
    if "ttft" in missed:
        return Diagnosis(
            "prefill time",
            (f"Hardly anything waits, yet TTFT misses its limit: prefill takes {parts['prefill']:.3g} s on average.",),
            ("Use faster GPUs or a larger tensor_parallel_size, or let the prefix cache serve shared prompts.",),
        )
    return _slow_decodes(missed[0], parts) if missed else _nothing_binds(summary, max_num_seqs)


def _slow_decodes(missed: str, parts: dict[str, float]) -> Diagnosis:
    shared = parts["decode_shared_with_prefill"] / max(parts["decode"] + parts["decode_shared_with_prefill"], 1e-12)
    if shared > 0.3:
        return Diagnosis(
            "decodes share steps with prefills",
            (
                (
                    f"{missed.upper()} misses its limit, and {shared:.0%} of decode time is spent in steps "
                    "that also carry prefill tokens."
                ),
            ),
            ("Lower max_num_batched_tokens, or move prefill to its own pool.",),
        )
    return Diagnosis(
        "decode step time",
        (f"{missed.upper()} misses its limit although prefills hardly interfere: the decode steps are too long.",),
        ("Use a larger tensor_parallel_size, quantised weights or KV, or smaller batches on more replicas.",),
    )


def _nothing_binds(summary: Summary, max_num_seqs: int | None) -> Diagnosis:
    engine, users = summary["engine"], _users(summary)
    batch = engine["batch_size_requests"]["max"] or 0
    slots = f" of {max_num_seqs:,} slots" if max_num_seqs is not None else ""
    if users is None:
        more = "Offer more load, or try fewer or cheaper GPUs, to find where it begins to bind."
    else:
        more = f"Try more than {users:,} at once: throughput rises until something binds. Or fewer or cheaper GPUs."
    return Diagnosis(
        "nothing binds at this load",
        (
            (
                f"Requests hardly wait; the largest batch is {batch:,.0f}{slots}, and the KV cache is at "
                f"most {_percent(engine['kv_usage']['max'])} full."
            ),
        ),
        (more,),
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
