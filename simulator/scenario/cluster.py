"""The ``cluster`` fields: groups of equal replicas and the policies between them."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field

from simulator.scenario.admission import AdmissionSpec
from simulator.scenario.clocks import ClocksSpec
from simulator.scenario.engine import EngineSpec, HardwareSpec, ModelSpec
from simulator.scenario.front import ResponseCacheSpec
from simulator.scenario.lifecycle import ColdStartSpec, FaultSpec, GroupScalingSpec, KvReplicationSpec, ScalingSpec
from simulator.scenario.network import DisaggregationSpec, MigrationSpec, NetworkSpec
from simulator.scenario.spec import (
    Bool,
    Int,
    Name,
    NonNegative,
    Number,
    Positive,
    PositiveNumber,
    Seconds,
    Shorthand,
    Str,
    spec,
)
from simulator.scenario.synthetic import DistributionSpec

GroupName = Annotated[str, Field(strict=True, pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$", max_length=100)]


@spec
class RouterSpec:
    """Which replica a request goes to. Plain text is a router's name."""

    policy: Name = "round-robin"
    """Router: a registered name (`windtunnel policies`) or package.module:Class."""
    options: dict[str, Bool | Int | Number | Str] = field(default_factory=dict)
    """The router's own options; a wrong name or value is answered with the right ones."""
    metrics_interval_s: Seconds = 0.05
    """Engines report their queues, KV usage and cached blocks to the router so often; 0: at every request."""


@spec
class GroupSpec:
    """Equal replicas. Fields of `engine` that are not given are those of the scenario's."""

    name: GroupName
    """Name in tables and reports."""
    replicas: Positive = 1
    """How many; with `cluster.scaling`, how many are ready at the start."""
    min_replicas: NonNegative | None = None
    """Fewest that scaling leaves; null: those of `cluster.scaling`."""
    max_replicas: Positive | None = None
    """Most that scaling starts; null: those of `cluster.scaling`."""
    scaling: GroupScalingSpec | None = None
    """Autoscaler of this group alone; null: that of `cluster.scaling`."""
    role: Literal["both", "prefill", "decode"] = "both"
    """What of a request is computed here: its prompt, its output tokens after the first, or both."""
    model: Annotated[ModelSpec, Shorthand("name")] | None = None
    """Model served; null: the scenario's."""
    hardware: Annotated[HardwareSpec, Shorthand("gpu")] | None = None
    """Hardware of each replica; null: the scenario's."""
    engine: EngineSpec | None = None
    """Serving engine; null: the scenario's."""
    serves: Name | None = None
    """Label of the trace's `model` column that is served here; null: any."""
    shares: GroupName | None = None
    """Group on whose GPUs these replicas run too, one engine's step at a time; each engine has the memory that its
    `gpu_memory_utilization` says. null: on GPUs of their own."""
    lends: Bool = False
    """Replicas take KV blocks from each other when their own are used up (Infinite-LLM); attention over what is lent
    is computed where it lies."""
    weight: PositiveNumber | None = None
    """Work done per second relative to other groups, for routers that ask; null: from the price of a typical step."""


@spec
class ClusterSpec:
    """Replicas and the policies between them."""

    replicas: Positive = 1
    """Replicas of the scenario's own model, hardware and engine, where `groups` is empty."""
    groups: tuple[GroupSpec, ...] = ()
    """Groups of replicas that differ."""
    router: Annotated[RouterSpec, Shorthand("policy")] = field(default_factory=RouterSpec)
    """Which replica a request goes to. Plain text is a router's name."""
    disaggregation: DisaggregationSpec | None = None
    """How requests go from groups with role prefill to groups with role decode; null: the defaults, where there are
    such groups."""
    migration: MigrationSpec | None = None
    """Live migration of requests between replicas; null: none."""
    network: NetworkSpec | None = None
    """Nodes and the links between them; null: as the GPUs' catalogue entries say."""
    admission: AdmissionSpec | None = None
    """Who is let in; null: everybody, at once."""
    response_cache: ResponseCacheSpec | None = None
    """A cache of answers before the router; null: none."""
    retrieval_s: DistributionSpec | None = None
    """Retrieval of what prompts are augmented with, s, between arrival and router; it counts as queue time."""
    scaling: ScalingSpec | None = None
    """Autoscaling; null: the replicas of the start stay."""
    faults: tuple[FaultSpec, ...] = ()
    """Failures and reclaims of spot instances."""
    kv_replication: KvReplicationSpec | None = None
    """KV is copied to the host memory of other machines as it is computed; null: it is not."""
    clocks: ClocksSpec | None = None
    """Who changes the GPUs' clocks while the simulation runs; null: they stay as `hardware` says."""
    cold_start: ColdStartSpec | None = None
    """How long a replica takes to start, with scaling or faults; null: the defaults."""

    @property
    def disaggregated(self) -> DisaggregationSpec | None:
        """None: every request stays on one replica."""
        if self.disaggregation is None and any(group.role != "both" for group in self.groups):
            return DisaggregationSpec()
        return self.disaggregation

    def __post_init__(self) -> None:
        moves = self.disaggregated is not None or self.migration is not None
        if self.network is not None and not moves and self.network.only_for_transfers:
            unused = ", ".join(self.network.only_for_transfers)
            raise ValueError(f"no KV moves in this cluster, so 'network' cannot use {unused}.")
        if self.kv_replication is not None and not self.faults:
            raise ValueError("'kv_replication' needs 'faults': without them nothing is lost.")
        if self.cold_start is not None and self.scaling is None and not self.faults:
            raise ValueError("'cold_start' needs 'scaling' or 'faults': without them no replica starts.")
        own = (limit for g in self.groups for limit in (g.min_replicas, g.max_replicas, g.scaling))
        if self.scaling is None and any(limit is not None for limit in own):
            raise ValueError("'min_replicas', 'max_replicas' and 'scaling' of a group need 'scaling' of the cluster.")
        names = [group.name for group in self.groups]
        if len(set(names)) < len(names):
            raise ValueError(f"group names must differ: {', '.join(names)}.")
        if self.groups and self.replicas != 1:
            raise ValueError("give either 'replicas' or 'groups' with replicas of their own.")
