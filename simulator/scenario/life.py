"""Replicas that come and go, built from a scenario: limits, cold starts, autoscalers, faults, who sets clocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf

from simulator.cluster.elastic import FaultPlan, GroupLife, LifePlan, OptionValue, ScalingPlan
from simulator.cluster.plan import ClocksPlan
from simulator.core.errors import ScenarioError
from simulator.core.random import streams
from simulator.cost.memory import MemoryPlan
from simulator.cost.power import PowerProfile
from simulator.faults import FAULTS
from simulator.faults import Surroundings as FaultSurroundings
from simulator.hardware.gpu import Gpu
from simulator.scaling import CONTROLLERS, SCALERS, GroupFacts, Surroundings
from simulator.scenario.clocks import ClocksSpec
from simulator.scenario.cluster import ClusterSpec, GroupSpec
from simulator.scenario.lifecycle import ColdStartSpec
from simulator.scenario.load import at
from simulator.scheduling import EngineArgs


@dataclass(frozen=True)
class ColdStart:
    """Seconds of each part of a replica's start."""

    provision_s: float
    container_s: float
    weights_s: float
    engine_s: float
    total_s: float

    def parts(self) -> Mapping[str, float]:
        return {
            "provision": self.provision_s,
            "container": self.container_s,
            "weights": self.weights_s,
            "engine": self.engine_s,
        }


def cold_start(spec: ColdStartSpec, memory: MemoryPlan, card: Gpu) -> ColdStart:
    """Of a replica on one node.

    The plain loader fetches the weights to the node, then loads them; ServerlessLLM's (arXiv:2401.14351) streams them
    through remote store, SSD and host memory into the GPUs, each tier as fast as it is: the slowest one decides.
    """
    weights = memory.weight_bytes * memory.num_gpus
    tiers = {"remote": spec.remote_bytes_per_s, "ssd": spec.ssd_bytes_per_s, "dram": inf}
    below = list(tiers)[list(tiers).index(spec.weights_from) :]
    to_gpu = card.host_bandwidth * memory.num_gpus
    if spec.loader == "optimized":
        seconds = weights / min(to_gpu, *(tiers[name] for name in below))
    else:
        fetched = weights / spec.remote_bytes_per_s if spec.weights_from == "remote" else 0.0
        through = [spec.loader_bytes_per_s, to_gpu] + ([] if spec.weights_from == "dram" else [spec.ssd_bytes_per_s])
        seconds = fetched + weights / min(through)
    parts = (spec.provision_s, spec.container_s, seconds, spec.engine_s)
    return ColdStart(*parts, total_s=sum(parts) if spec.total_s is None else spec.total_s)


@dataclass(frozen=True)
class Kind:
    """What a group's replicas are made of, as far as starting one goes."""

    name: str
    replicas: int
    args: EngineArgs
    memory: MemoryPlan
    gpu: Gpu
    profile: PowerProfile


def build_life(spec: ClusterSpec, kinds: Sequence[Kind], seed: int) -> LifePlan | None:
    """None: the replicas of the start stay. Raises UserErrors whose ``where`` names the field."""
    if spec.scaling is None and not spec.faults:
        return None
    own = spec.groups or (GroupSpec(name=kinds[0].name, replicas=kinds[0].replicas),)
    start = spec.cold_start or ColdStartSpec()
    lives = tuple(_group_life(spec, group, kind, start) for group, kind in zip(own, kinds, strict=True))
    scaling = None
    if spec.scaling is not None:
        chosen = spec.scaling
        timeout = inf if chosen.drain_timeout_s is None else chosen.drain_timeout_s
        scaling = ScalingPlan(chosen.policy, chosen.options, chosen.interval_s, chosen.drain, timeout)
        facts = tuple(
            GroupFacts(
                kind.name,
                n.min_replicas,
                n.max_replicas,
                n.initial,
                n.cold_start_s,
                kind.args.max_num_seqs,
                kind.profile if spec.clocks is not None else None,
            )
            for kind, n in zip(kinds, lives, strict=True)
        )
        _try(chosen.policy, chosen.options, Surroundings(facts, chosen.interval_s), "cluster.scaling")
        for index, (group, fact) in enumerate(zip(own, facts, strict=True)):
            if group.scaling is not None:
                alone = Surroundings((fact,), chosen.interval_s)
                _try(group.scaling.policy, group.scaling.options, alone, f"cluster.groups.{index}.scaling")
    around = FaultSurroundings(tuple(kind.name for kind in kinds), streams(seed).stream)
    faults = []
    for index, fault in enumerate(spec.faults):
        with at(f"cluster.faults.{index}.policy"):
            source = FAULTS.get(fault.policy)
        with at(f"cluster.faults.{index}.options"):
            source(around, fault.options)
        faults.append(FaultPlan(fault.policy, fault.options, fault.detection_s, fault.recovery, fault.max_attempts))
    copies = None if spec.kv_replication is None else spec.kv_replication.interval_tokens
    return LifePlan(lives, scaling, tuple(faults), copies_every_tokens=copies)


def build_clocks(spec: ClocksSpec | None, names: Sequence[str], profile: PowerProfile) -> ClocksPlan | None:
    """names: of the groups; profile: of any. Raises UserErrors whose ``where`` names the field."""
    if spec is None:
        return None
    with at("cluster.clocks.policy"):
        policy = CONTROLLERS.get(spec.policy)
    facts = tuple(GroupFacts(name, 1, 1, 1, 0.0, profile.max_num_seqs, profile) for name in names)
    with at("cluster.clocks.options"):
        policy(Surroundings(facts, spec.interval_s), spec.options)  # it refuses options that it does not know
    return ClocksPlan(spec.policy, spec.options, spec.interval_s)


def _try(name: str, options: Mapping[str, OptionValue], around: Surroundings, where: str) -> None:
    """Refuse an unknown autoscaler, or options that it does not know."""
    with at(f"{where}.policy"):
        policy = SCALERS.get(name)
    with at(f"{where}.options"):
        policy(around, options)


def _group_life(spec: ClusterSpec, group: GroupSpec, kind: Kind, start: ColdStartSpec) -> GroupLife:
    least = most = kind.replicas
    if spec.scaling is not None:
        least = spec.scaling.min_replicas if group.min_replicas is None else group.min_replicas
        most = spec.scaling.max_replicas if group.max_replicas is None else group.max_replicas
        if not least <= kind.replicas <= most:
            raise ScenarioError(
                f"{kind.replicas} replicas at the start are not between {least} and {most}.",
                where="cluster.scaling",
                remedy="Change replicas, min_replicas or max_replicas.",
            )
    warm = None
    if start.nodes_keep != "nothing":
        warm = cold_start(replace(start, weights_from=start.nodes_keep, provision_s=0.0), kind.memory, kind.gpu).total_s
    return GroupLife(
        least,
        most,
        kind.replicas,
        cold_start(start, kind.memory, kind.gpu).total_s,
        warm,
        kind.gpu.network.bandwidth * kind.memory.num_gpus,
        None if group.scaling is None else (group.scaling.policy, group.scaling.options),
    )
