"""The ``cluster`` fields about what moves between replicas: the network, disaggregation, migration."""

from __future__ import annotations

from dataclasses import field, replace
from typing import Annotated, Literal

from pydantic import Field

from simulator.cluster.plan import DisaggregationPlan, MigrationPlan, MixedPlan, RouterPlan
from simulator.hardware.gpu import Gpu
from simulator.hardware.topology import EFFICIENCY, Fabric, Wan
from simulator.scenario.spec import (
    Bool,
    Bytes,
    Int,
    Name,
    NonNegative,
    Number,
    Positive,
    PositiveSeconds,
    Seconds,
    Shorthand,
    Str,
    spec,
)

Efficiency = Annotated[float, Field(strict=True, gt=0, le=1, allow_inf_nan=False)]


@spec
class WanSpec:
    """A link between two regions."""

    between: tuple[Name, Name]
    """The two regions."""
    bandwidth: Bytes
    """Bytes per second in each direction, of all transfers together."""
    latency_s: Seconds
    """One way."""


@spec
class NetworkSpec:
    """Nodes and the links between them. null: as the GPU's catalogue entry says."""

    bandwidth: Bytes | None = None
    """Bytes per second and GPU between nodes, one way; also what collectives of replicas that span nodes run at."""
    latency_s: Seconds | None = None
    """Of one message between nodes."""
    gpus_per_node: Positive | None = None
    """GPUs in a node. Replicas that fit into a node stay inside one."""
    node_bandwidth: Bytes | None = None
    """Bytes per second between a node and all others, one way; null: that of its GPUs together."""
    fabric_bandwidth: Bytes | None = None
    """Bytes per second of the switches of a region, all transfers together; null: no limit of their own."""
    efficiency: Efficiency = EFFICIENCY
    """Share of the links' bandwidth that transfers of KV get."""
    placement: Literal["packed", "interleaved"] = "packed"
    """Replicas on nodes: group after group, or groups in turn, so that prefill and decode share nodes."""
    regions: dict[Name, Name] = field(default_factory=dict)
    """Region of each group; groups left out are in a region of their own, all together."""
    links: tuple[WanSpec, ...] = ()
    """Between regions."""

    def card(self, gpu: Gpu) -> Gpu:
        """The GPU in these surroundings."""
        network = gpu.network
        if self.bandwidth is not None:
            network = replace(network, bandwidth=self.bandwidth)
        if self.latency_s is not None:
            network = replace(network, latency_s=self.latency_s)
        return replace(gpu, network=network, gpus_per_node=self.gpus_per_node or gpu.gpus_per_node)

    def fabric(self) -> Fabric:
        return Fabric(
            placement=self.placement,
            efficiency=self.efficiency,
            node_bandwidth=self.node_bandwidth,
            fabric_bandwidth=self.fabric_bandwidth,
            latency_s=self.latency_s,
            regions=self.regions,
            wans={frozenset(link.between): Wan(link.bandwidth, link.latency_s) for link in self.links},
        )

    @property
    def only_for_transfers(self) -> list[str]:
        """Fields that are set and mean nothing where no KV moves."""
        names = ("node_bandwidth", "fabric_bandwidth", "efficiency", "placement", "regions", "links")
        default = NetworkSpec()
        return [name for name in names if getattr(self, name) != getattr(default, name)]

    def __post_init__(self) -> None:
        for link in self.links:
            if len(set(link.between)) < 2:
                raise ValueError(f"a link between region {link.between[0]!r} and itself.")


@spec
class DecodeRouterSpec:
    """Which decode replica a request goes to. Plain text is a router's name."""

    policy: Name = "least-requests"
    """Router: a registered name (`windtunnel policies`) or package.module:Class."""
    options: dict[str, Bool | Int | Number | Str] = field(default_factory=dict)
    """The router's own options; a wrong name or value is answered with the right ones."""


@spec
class MixedSpec:
    """Replicas of one role help out with the other, as in Splitwise's mixed pool; roles are decided per request."""

    prompt_tokens: Positive | None = None
    """A prefill replica with so many prompt tokens to compute takes no more, while some decode replica has fewer: that
    one computes prompts too. null: decode replicas never do."""
    waiting_requests: Positive | None = None
    """When so many requests wait for KV blocks of every decode replica, prefill replicas decode what they compute.
    null: they never do."""

    def __post_init__(self) -> None:
        if self.prompt_tokens is None and self.waiting_requests is None:
            raise ValueError("set prompt_tokens or waiting_requests, or leave 'mixed' out.")


@spec
class DisaggregationSpec:
    """How requests go from groups with role prefill to groups with role decode."""

    decode_router: Annotated[DecodeRouterSpec, Shorthand("policy")] = field(default_factory=DecodeRouterSpec)
    """Which decode replica a request goes to. Plain text is a router's name."""
    transfer: Literal["pull", "push"] = "pull"
    """pull: the decode replica is chosen when the prompt is computed. push: when the request arrives, and its blocks
    are reserved as soon as its prompt is begun."""
    layerwise: Bool = False
    """Send the KV of each layer as soon as it is computed, beside the rest of the prompt; needs `transfer: push`."""
    first_token: Literal["prefill", "decode"] = "prefill"  # noqa: S105 - not that kind of token
    """Which side's token the client gets first; decode: after the transfer, the decode replica computes the last prompt
    token again, as vLLM's connectors do."""
    min_prompt_tokens: NonNegative = 0
    """Shorter prompts are computed on the replica that decodes them."""
    decode_prefix_hits: Bool = True
    """Blocks that the decode replica's prefix cache holds already are not sent."""
    mixed: MixedSpec | None = None
    """When replicas help out with the other role; null: never."""

    def plan(self) -> DisaggregationPlan:
        return DisaggregationPlan(
            decode_router=RouterPlan(self.decode_router.policy, self.decode_router.options),
            push=self.transfer == "push",
            layerwise=self.layerwise,
            first_token=self.first_token,
            min_prompt_tokens=self.min_prompt_tokens,
            decode_prefix_hits=self.decode_prefix_hits,
            mixed=None if self.mixed is None else MixedPlan(self.mixed.prompt_tokens, self.mixed.waiting_requests),
        )


@spec
class MigrationSpec:
    """Live migration as Llumnix does it: requests move while they decode, from replicas short of memory to free ones.

    Freeness: tokens that every running request of a replica could still make, less what the head of its queue needs.
    """

    interval_s: PositiveSeconds = 0.5
    """Replicas are paired so often."""
    out_below_tokens: Number = 64.0
    """Replicas with less freeness give requests away."""
    in_above_tokens: Number = 256.0
    """Replicas with more freeness take them."""
    last_stage_tokens: Positive = 16
    """So few tokens left to copy, and the request stops for the last copy."""
    max_stages: Positive = 8
    """Copies before it stops in any case."""

    def plan(self) -> MigrationPlan:
        return MigrationPlan(
            interval_s=self.interval_s,
            out_below_tokens=self.out_below_tokens,
            in_above_tokens=self.in_above_tokens,
            last_stage_tokens=self.last_stage_tokens,
            max_stages=self.max_stages,
        )
