"""What moves between replicas, built: sizes of KV caches, replicas on nodes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from simulator.cluster import migration
from simulator.cluster.plan import ClusterPlan, Group
from simulator.cluster.roles import check_roles
from simulator.cluster.transfers import KvBytes
from simulator.core.errors import ScenarioError
from simulator.cost.placement import Placed
from simulator.cost.shapes import kv_bytes_per_token_layer, state_bytes_layer
from simulator.hardware.gpu import Gpu
from simulator.hardware.topology import Slot, Topology
from simulator.model.architecture import Model
from simulator.scenario.load import at
from simulator.scenario.network import NetworkSpec


@dataclass(frozen=True)
class Engine:
    """What of a group's engine decides about its KV and where it stands."""

    model: Model
    gpu: Gpu
    placed: Placed


def kv_bytes(model: Model, placed: Placed, drafts: float = 0.0) -> KvBytes:
    """Size of a request's KV cache, all layers and every KV head once. drafts: of a draft model, bytes per token."""
    full = windowed = state = 0.0
    for layer in model.layers:
        size = kv_bytes_per_token_layer(layer.attention, 1, placed.kv_dtype)
        if layer.attention.sliding_window is None:
            full += size
        else:
            windowed += size
        state += state_bytes_layer(layer.attention, 1, placed.dtype_bytes)
    return KvBytes(full + drafts, windowed, model.sliding_window, state, model.num_layers)


def topology(
    network: NetworkSpec | None, groups: Sequence[Group], engines: Sequence[Engine], places: Sequence[int]
) -> Topology:
    """Every replica that there may be at once on its GPUs. places: of each group. Raises UserErrors whose ``where`` is
    ``cluster.network``."""
    spec = network or NetworkSpec()
    with at("cluster.network"):
        known = {group.name for group in groups}
        for name in spec.regions:
            if name not in known:
                remedy = f"Groups: {', '.join(sorted(known))}."
                raise ScenarioError(f"regions: there is no group {name!r}.", remedy=remedy)
        return Topology(list(_slots(groups, engines, places)), spec.fabric())


def _slots(groups: Sequence[Group], engines: Sequence[Engine], places: Sequence[int]) -> Iterator[Slot]:
    for group, engine, count in zip(groups, engines, places, strict=True):
        for _ in range(count):
            yield Slot(engine.gpu, group.name, engine.placed.tp * engine.placed.pcp, engine.placed.pp)


def check(plan: ClusterPlan) -> None:
    """Raises ScenarioError when requests could not change replicas the way the plan says."""
    if plan.disaggregation is not None:
        check_roles(plan, plan.disaggregation)
    if plan.migration is not None:
        migration.check(plan)


def check_same_kv(groups: Sequence[Group], engines: Sequence[Engine], where: str) -> None:
    """Raises ScenarioError when KV would move between replicas whose caches differ."""
    first: dict[str | None, tuple[Group, Engine]] = {}
    for group, engine in zip(groups, engines, strict=True):
        other, theirs = first.setdefault(group.model, (group, engine))
        if (theirs.model.name, theirs.placed.kv_dtype) != (engine.model.name, engine.placed.kv_dtype):
            raise ScenarioError(
                f"groups {other.name} ({theirs.model.name}, {theirs.placed.kv_dtype} KV) and {group.name} "
                f"({engine.model.name}, {engine.placed.kv_dtype} KV) cannot read each other's KV.",
                where=where,
                remedy="Give them the same model and kv_cache_dtype, or different labels under 'serves'.",
            )
