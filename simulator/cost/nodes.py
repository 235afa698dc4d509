"""Nodes that each hold some layers of a model, as a graph: what they can compute, what their links carry, the flow.

Requests take routes through the nodes, from the one that has the first layer to one that has the last. A node may be
entered at any of its layers and computes from there on, so node ``j`` can follow node ``i`` where ``j.first <= i.end <
j.end``. How many tokens per second the nodes sustain together is a maximum flow from the coordinator through the nodes
(capacity: tokens/s with the layers they hold) and links (bandwidth over the bytes of a token's activations) back to it:
Mei et al., Helix (ASPLOS 2025, arXiv:2406.01566), section 4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf

import numpy as np

from simulator.cost.step import OperatorCost

COORDINATOR = -1  # in the place of a node: where requests enter and tokens come out
TOKEN_BYTES = 4.0  # of a token's number, between the coordinator and the nodes
SCALE = 1000.0  # flows are found in whole thousandths of a token per second


@dataclass(frozen=True)
class Load:
    """A typical request, from which the nodes' capacities follow. kv_share: of a node's KV that requests fill.

    decodes: that a node computes at once; None: what its KV holds, times its share of the time of a way through all
    layers (Helix's estimate, from its published simulator).
    """

    prompt_tokens: int
    output_tokens: int
    kv_share: float = 0.9
    decodes: int | None = None

    @property
    def tokens(self) -> int:
        """That a node computes for one request."""
        return self.prompt_tokens + self.output_tokens

    @property
    def context(self) -> int:
        """Of a decode, half-way through the answer."""
        return self.prompt_tokens + self.output_tokens // 2


@dataclass(frozen=True, eq=False)
class Node:
    """Layers ``first`` to ``end - 1`` on GPUs of their own.

    kv_slots: tokens whose KV it holds, times its layers. cost: prices its layers. bandwidth: bytes/s that it sends
    within its region.
    """

    gpu: str
    num_gpus: int
    first: int
    end: int
    region: str
    kv_slots: int
    cost: OperatorCost
    bandwidth: float

    @property
    def num_layers(self) -> int:
        return self.end - self.first

    @property
    def kv_tokens(self) -> int:
        """Tokens of which it holds the KV of all its layers."""
        return self.kv_slots // self.num_layers


@dataclass(frozen=True)
class Wires:
    """latency_s: of a message within a region. Between regions every two nodes have a link of ``region_bandwidth``
    bytes/s in each direction, and messages take ``region_latency_s``. coordinator: its region."""

    latency_s: float
    region_bandwidth: float = inf
    region_latency_s: float = 0.0
    coordinator: str = ""


def layer_s(node: Node, load: Load) -> float:
    """Seconds of a lone decode per layer."""
    return node.cost.decode(1, load.context, 0, 0).first / node.num_layers


def way_s(nodes: Sequence[Node], load: Load, num_layers: int) -> float:
    """Seconds of a lone decode through all layers, if it met these nodes as often as they have layers."""
    held = sum(node.num_layers for node in nodes)
    return num_layers * sum(node.num_layers * layer_s(node, load) for node in nodes) / held


def tokens_per_s(node: Node, load: Load, way_seconds: float) -> float:
    """Prompt and output tokens per second that a node sustains with its layers:
    prompts one by one, decodes in batches, half-way through their answers. way_seconds: see ``way_s``."""
    n = load.decodes
    if n is None:
        share = node.num_layers * layer_s(node, load) / way_seconds
        n = max(round(load.kv_share * node.kv_tokens / load.tokens * min(share, 1.0)), 1)
    prompt_s = node.cost.mixed(0, 0, 0, [(load.prompt_tokens, 0)], 1)
    decode_s = node.cost.decode(n, n * load.context, 0, 0).first / n
    return load.tokens / (prompt_s + load.output_tokens * decode_s)


def follows(before: Node, after: Node) -> bool:
    """Whether a request can go from one node to another: its next layer is there."""
    return after.first <= before.end < after.end


def hops(nodes: Sequence[Node], num_layers: int) -> dict[int, tuple[int, ...]]:
    """Where a request can go from each node, and from the coordinator, on a way that comes to the last layer."""
    ends = {i for i, node in enumerate(nodes) if node.end == num_layers}
    found: dict[int, tuple[int, ...]] = {}
    for i in sorted(range(len(nodes)), key=lambda i: -nodes[i].end):
        if i in ends:
            found[i] = (COORDINATOR,)
            continue
        after = tuple(j for j in range(len(nodes)) if found.get(j) and follows(nodes[i], nodes[j]))
        found[i] = after
    found[COORDINATOR] = tuple(i for i, node in enumerate(nodes) if node.first == 0 and found[i])
    return found


@dataclass(frozen=True)
class Flow:
    """tokens_per_s: prompt and output tokens through all layers. edges: of them by (from, to)."""

    tokens_per_s: float
    edges: Mapping[tuple[int, int], float]


def max_flow(
    nodes: Sequence[Node], rates: Sequence[float], wires: Wires, activation_bytes: float, num_layers: int
) -> Flow:
    """The most tokens per second that come through. rates: capacity of each node, tokens/s.

    activation_bytes: that a token sends from one node to the next. Raises nothing: without a way it is 0.
    """
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import maximum_flow

    n = len(nodes)
    source, sink = 3 * n, 3 * n + 1  # node i: 3 i its entry, 3 i + 1 its exit, 3 i + 2 what it sends in its region
    most = int(min(sum(rates) * SCALE, 2**30))
    capacity: dict[tuple[int, int], int] = {}
    for i, node in enumerate(nodes):
        capacity[3 * i, 3 * i + 1] = int(min(rates[i] * SCALE, most))
        capacity[3 * i + 1, 3 * i + 2] = int(min(node.bandwidth / activation_bytes * SCALE, most))
    between = int(min(wires.region_bandwidth / activation_bytes * SCALE, most))
    ways: dict[tuple[int, int], tuple[int, int]] = {}  # edge of the flow -> hop
    for i, targets in hops(nodes, num_layers).items():
        for j in targets:
            if i == COORDINATOR:
                edge, room = (source, 3 * j), most
            elif j == COORDINATOR:
                edge, room = (3 * i + 1, sink), most
            elif nodes[i].region == nodes[j].region:
                edge, room = (3 * i + 2, 3 * j), most
            else:
                edge, room = (3 * i + 1, 3 * j), between
            capacity[edge], ways[edge] = room, (i, j)
    rows, columns = zip(*capacity, strict=True)
    shape = (3 * n + 2, 3 * n + 2)
    graph = csr_array((np.array(list(capacity.values()), dtype=np.int32), (rows, columns)), shape=shape)
    found = maximum_flow(graph, source, sink)
    carried = found.flow.tocoo()
    edges = {
        ways[int(a), int(b)]: float(value) / SCALE
        for a, b, value in zip(carried.row, carried.col, carried.data, strict=True)
        if value > 0 and (int(a), int(b)) in ways
    }
    return Flow(float(found.flow_value) / SCALE, dict(sorted(edges.items())))
