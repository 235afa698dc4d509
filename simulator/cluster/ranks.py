"""Replicas of several data-parallel ranks: built, looked at from outside, and what they cannot do yet."""

from __future__ import annotations

from simulator.cluster.cache_events import CacheEvents, RankCacheEvents
from simulator.cluster.plan import ClusterPlan, Group
from simulator.core.errors import ScenarioError
from simulator.cost.power import ClockedCost
from simulator.cost.step import OperatorCost
from simulator.replica.engine import Engine
from simulator.replica.pipeline import PipelineEngine
from simulator.replica.wave import WaveEngine
from simulator.routing.prefix_index import PrefixIndex
from simulator.scheduling import POLICIES


def cache_events(engine: Engine | PipelineEngine, replica: int, index: PrefixIndex | None) -> CacheEvents:
    """What an engine's prefix caches report."""
    if isinstance(engine, WaveEngine):
        return RankCacheEvents([rank.pool for rank in engine.ranks], replica, index)
    return CacheEvents(engine.state.pool, replica, index)


def check_ranks(cluster: ClusterPlan) -> None:
    """Raises ScenarioError where requests would have to leave or enter ranks in mid-flight, or clocks change."""
    for group in cluster.groups:
        args = group.args
        if POLICIES.get(args.policy).elastic:
            _check_instances(cluster, group)
        if args.data_parallel_size == 1 and not args.enable_eplb:
            continue
        where = "engine.data_parallel_size" if args.data_parallel_size > 1 else "engine.enable_eplb"
        if args.pipeline_parallel_size > 1:
            raise ScenarioError(
                f"group {group.name}: ranks that step together have no pipeline stages.",
                where=where,
                remedy="Set pipeline_parallel_size: 1.",
            )
        if isinstance(group.cost, ClockedCost):
            raise ScenarioError(
                f"group {group.name}: power caps and clocks are not known for ranks that share experts.",
                where=where,
                remedy="Leave hardware.power_cap_w and hardware.clock out.",
            )
        if group.tiers is not None:
            raise ScenarioError(
                f"group {group.name}: KV tiers behind ranks that step together are not modelled.",
                where=where,
                remedy="Leave the tiers out, or use tensor_parallel_size instead.",
            )
        for what in cluster.acting:
            raise ScenarioError(
                f"group {group.name}: {what} would move requests in and out of ranks that step together.",
                where=where,
                remedy=f"Leave {what} out, or use tensor_parallel_size instead.",
            )


def _check_instances(cluster: ClusterPlan, group: Group) -> None:
    """Elastic instances have prices of their own for every size of group, and nothing moves in or out of them."""
    found = cluster.acting
    found += ["shares"] if group.shares is not None else []
    found += ["KV tiers"] if group.tiers is not None else []
    found += ["adapters"] if group.lora is not None else []
    found += ["bounded KV"] if group.holding is not None else []
    found += ["hardware.power_cap_w and hardware.clock"] if not isinstance(group.cost, OperatorCost) else []
    if found:
        raise ScenarioError(
            f"group {group.name}: engine policy {group.args.policy!r} does not go with {found[0]} here.",
            where="engine.policy",
            remedy=f"Leave {found[0]} out, or use another policy.",
        )
