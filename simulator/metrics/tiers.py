"""What each KV tier was good for."""

from __future__ import annotations

from typing import Any

from simulator.replica.records import SimulationRecords

_SUMS = ("copies", "capacity_bytes", "hit_tokens", "bytes_read", "bytes_prefetched", "bytes_written", "busy_s")


def summarize_tiers(records: SimulationRecords) -> dict[str, Any] | None:
    """Prompt tokens hit in the GPUs' own caches and in each tier, bytes moved, time; None without tiers.

    ``share``: of all prompt tokens that were admitted. ``read_utilization``: of the time of all copies of the tier.
    """
    if not records.tiers:
        return None
    requests = records.requests
    admitted = requests.scheduled == requests.scheduled
    prompt = int(requests.prompt_tokens[admitted].sum())
    hit = float(requests.cached_tokens[admitted].clip(0).sum())
    tiers: dict[str, dict[str, float]] = {}
    for tier in records.tiers:
        row = tiers.setdefault(tier.name, dict.fromkeys(_SUMS, 0.0))
        row["copies"] += 1
        row["capacity_bytes"] += tier.capacity_bytes
        row["hit_tokens"] += tier.hit_tokens
        row["bytes_read"] += tier.bytes_read
        row["bytes_prefetched"] += tier.bytes_prefetched
        row["bytes_written"] += tier.bytes_written
        row["busy_s"] += tier.busy_s
    lower = sum(row["hit_tokens"] for row in tiers.values())
    for row in tiers.values():
        row["share"] = row["hit_tokens"] / prompt if prompt else 0.0
        row["read_utilization"] = row["busy_s"] / (row["copies"] * records.end) if records.end > 0 else 0.0
    here = max(hit - lower, 0.0)  # what a horizon finds on its way to a request is in ``lower`` alone
    return {
        "gpu": {"hit_tokens": here, "share": here / prompt if prompt else 0.0},
        "tiers": tiers,
        "load_s": records.tier_load_s,
        "aside_s": records.tier_aside_s,
    }
