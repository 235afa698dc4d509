"""What each KV tier is worth: the same scenario without tiers, with the first, with the first two, and so on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from simulator.core.errors import ScenarioError
from simulator.metrics.summary import Summary
from simulator.scenario.config import Scenario
from simulator.scenario.engine import OF_TIERS, EngineSpec
from simulator.scenario.run import run, usd_per_hour
from simulator.scenario.trace import make_trace

HOURS_OF_MONTH = 730.0


@dataclass(frozen=True, slots=True)
class Worth:
    """One run. ``*_per_gb``: against the run before, per GB (1e9 bytes) of the last tier, all copies together."""

    tiers: str  # the last one that is there; none: the GPUs' own caches alone
    capacity_gb: float  # of the last one, all copies
    gpu_hit_share: float  # of all prompt tokens
    tier_hit_share: float  # the same, of all tiers together
    hit_shares: dict[str, float]  # the same, of each
    read_gb: float  # from all tiers
    written_gb: float
    mean_ttft_s: float
    p90_ttft_s: float
    busy_gpu_s: float  # GPUs of all replicas, seconds in steps
    ttft_saved_s: float  # mean per request, against the run without tiers
    ttft_saved_s_per_gb: float | None
    busy_gpu_s_saved_per_gb: float | None
    usd_saved_per_gb_month: float | None  # price of those GPU seconds, at the rate of the run; None: GPUs without price

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def tier_worth(scenario: Scenario, tell: Callable[[str], None] = lambda _: None) -> list[Worth]:
    """Run with none, one, two, ... of ``engine.kv_tiers``. Raises ScenarioError when there are none.

    tell: called with the name of each run before it starts.
    """
    tiers = scenario.engine.kv_tiers
    if not tiers:
        remedy = "Give it tiers (docs/kv-cache.md)."
        raise ScenarioError("the scenario has no tiers to value.", where="engine.kv_tiers", remedy=remedy)
    if any(group.engine is not None for group in scenario.cluster.groups):
        remedy = "Give all groups the scenario's engine."
        message = "groups with engines of their own have tiers of their own."
        raise ScenarioError(message, where="cluster.groups", remedy=remedy)
    trace = make_trace(scenario.workload, scenario.seed)
    found: list[Worth] = []
    for count in range(len(tiers) + 1):
        name = tiers[count - 1].name if count else "none"
        tell(name)
        result = run(_seen(replace(scenario, engine=_with(scenario.engine, count))), trace=trace)
        gpus = sum(group.num_gpus * group.replicas for group in result.groups)
        replicas = sum(group.replicas for group in result.groups)
        price = usd_per_hour(result.groups)
        monthly = None if price is None else price / gpus * HOURS_OF_MONTH / result.records.end  # USD per GPU second
        found.append(_worth(name, result.summary, gpus / replicas, monthly, found))
    return found


def _with(engine: EngineSpec, count: int) -> EngineSpec:
    """The engine with the first ``count`` of its tiers, and with what can be done with those."""
    if not count:
        return replace(engine, kv_tiers=(), **{name: getattr(EngineSpec, name) for name in OF_TIERS})
    looks = count > 1 or engine.kv_tiers[0].eviction == "lru"
    return replace(engine, kv_tiers=engine.kv_tiers[:count], kv_tier_prefetch=engine.kv_tier_prefetch if looks else 0)


def _seen(scenario: Scenario) -> Scenario:
    """A router that weighs replicas' own tiers is the same without the weight where there are none."""
    router = scenario.cluster.router
    if any(not tier.shared for tier in scenario.engine.kv_tiers) or "tier_weight" not in router.options:
        return scenario
    options = {name: value for name, value in router.options.items() if name != "tier_weight"}
    return replace(scenario, cluster=replace(scenario.cluster, router=replace(router, options=options)))


def _worth(name: str, summary: Summary, gpus_per_replica: float, monthly: float | None, before: list[Worth]) -> Worth:
    """monthly: USD that a GPU second of the run is worth in a month of such runs."""
    kept, latency = summary["kv_tiers"], summary["latency"]["ttft_s"]
    rows = kept["tiers"] if kept is not None else {}
    hits = summary["engine"]["prefix_hit_ratio_run"] or 0.0
    lower = sum(row["share"] for row in rows.values())
    capacity = rows[name]["capacity_bytes"] / 1e9 if rows else 0.0
    busy = summary["engine"]["busy_s"] * gpus_per_replica
    ttft = latency["mean"] if latency["mean"] is not None else float("nan")
    return Worth(
        tiers=name,
        capacity_gb=capacity,
        gpu_hit_share=hits - lower,
        tier_hit_share=lower,
        hit_shares={tier: row["share"] for tier, row in rows.items()},
        read_gb=sum(row["bytes_read"] for row in rows.values()) / 1e9,
        written_gb=sum(row["bytes_written"] for row in rows.values()) / 1e9,
        mean_ttft_s=ttft,
        p90_ttft_s=latency["p90"] if latency["p90"] is not None else float("nan"),
        busy_gpu_s=busy,
        ttft_saved_s=before[0].mean_ttft_s - ttft if before else 0.0,
        ttft_saved_s_per_gb=(before[-1].mean_ttft_s - ttft) / capacity if before else None,
        busy_gpu_s_saved_per_gb=(before[-1].busy_gpu_s - busy) / capacity if before else None,
        usd_saved_per_gb_month=(before[-1].busy_gpu_s - busy) / capacity * monthly if before and monthly else None,
    )
