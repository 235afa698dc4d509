"""The ``engine.placement`` fields: layers of one model on nodes of unlike GPUs, and how requests go through them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from simulator.hardware.gpu import NETWORK_LATENCY_S
from simulator.scenario.spec import Name, Positive, PositiveBytes, Seconds, Str, spec

Layer = Annotated[int, Field(strict=True, ge=0)]


@spec
class NodeSpec:
    """Equal nodes that hold the same layers."""

    layers: tuple[Layer, Layer]
    """The first layer held, and the one after the last."""
    gpu: Name | None = None
    """Name in the catalogue (`windtunnel gpus`); null: the scenario's hardware."""
    count: Positive = 1
    """How many."""
    tensor_parallel_size: Positive = 1
    """GPUs of the node, which share each layer."""
    region: Str = ""
    """Where they stand."""


@spec
class PlacementSpec:
    """Nodes that each hold some layers. Requests take routes of their own through them (docs/parallelism.md)."""

    nodes: Annotated[tuple[NodeSpec, ...], Field(min_length=1)]
    """The nodes. One can be entered at any of its layers."""
    routing: Literal["flow", "swarm", "shortest-queue"] = "flow"
    """How routes are chosen: flow (in turns, weighted by the placement's maximum flow: Helix), swarm (in turns,
    weighted by how quick the next nodes have been) or shortest-queue."""
    bandwidth: PositiveBytes | None = None
    """Bytes per second that a node sends within its region; null: that of its GPUs' network."""
    latency_s: Seconds = NETWORK_LATENCY_S
    """Of a message within a region."""
    region_bandwidth: PositiveBytes | None = None
    """Bytes per second of the link between any two nodes of different regions, in each direction."""
    region_latency_s: Seconds | None = None
    """Of a message between regions."""
    region: Str = ""
    """Where the coordinator stands, from which requests come and to which tokens go."""
    kv_high_water: Annotated[float, Field(strict=True, gt=0, le=1, allow_inf_nan=False)] = 0.9
    """Share of a node's KV that requests are admitted for, by what they are expected to need."""
    expected_output_tokens: Positive = 256
    """Output tokens that a request is expected to make."""
    typical_prompt_tokens: Positive = 512
    """Prompt of a typical request, from which the nodes' capacities in the flow follow."""
    typical_decodes: Positive | None = None
    """Requests that a node typically decodes at once, for the same; null: those whose KV it holds, times its share of
    the time of a way through all layers."""

    def __post_init__(self) -> None:
        regions = {self.region, *(node.region for node in self.nodes)}
        known = self.region_bandwidth is not None, self.region_latency_s is not None
        if len(regions) > 1 and not all(known):
            raise ValueError("nodes in several regions need 'region_bandwidth' and 'region_latency_s'.")
        if len(regions) == 1 and any(known):
            raise ValueError("all nodes are in one region: leave 'region_bandwidth' and 'region_latency_s' out.")
        for node in self.nodes:
            if node.layers[0] >= node.layers[1]:
                raise ValueError(f"layers {list(node.layers)} are none: give the first one and the one after the last.")
