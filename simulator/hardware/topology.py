"""Where replicas stand: GPUs in nodes, nodes in regions, and the links between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from simulator.core.errors import HardwareError
from simulator.hardware.gpu import Gpu
from simulator.hardware.network import Channel

Placement = Literal["packed", "interleaved"]
# Share of the nominal rate that bulk RDMA of KV blocks gets: Mooncake's transfer engine moves 87 GB/s over four NICs of
# 200 Gb/s (Qin et al., FAST 2025, and the project's own figures).
EFFICIENCY = 0.87


@dataclass(frozen=True, slots=True)
class Wan:
    """The link between two regions, in each direction: bytes/s for all its transfers together, and latency one way."""

    bandwidth: float
    latency_s: float


@dataclass(frozen=True)
class Fabric:
    """What lies between GPUs. Bandwidths in bytes/s, one way, as the data sheets give them; None: no limit of its own.

    efficiency: share of them that transfers get. node_bandwidth: of all GPUs of a node to other nodes together.
    fabric_bandwidth: of the switches between the nodes of a region, all transfers together.
    latency_s: of one transfer between nodes; None: the GPU's.
    regions: region of each group, by name; groups left out are in region "". wans: by the names of two regions.
    """

    placement: Placement = "packed"
    efficiency: float = EFFICIENCY
    node_bandwidth: float | None = None
    fabric_bandwidth: float | None = None
    latency_s: float | None = None
    regions: Mapping[str, str] = field(default_factory=dict)
    wans: Mapping[frozenset[str], Wan] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Slot:
    """GPUs of one replica: ``tensor`` ranks in each of ``stages`` pipeline stages."""

    gpu: Gpu
    group: str = "replicas"
    tensor: int = 1
    stages: int = 1

    @property
    def num_gpus(self) -> int:
        return self.tensor * self.stages


@dataclass(frozen=True, slots=True)
class Place:
    """Where a replica stands: the node of each of its GPUs, stage by stage."""

    region: str
    nodes: tuple[int, ...]

    @property
    def one_node(self) -> bool:
        return len(set(self.nodes)) == 1


class Topology:
    """Replicas on nodes. ``channels`` are all links in both directions, ``route`` those between two replicas."""

    def __init__(self, slots: Sequence[Slot], fabric: Fabric | None = None) -> None:
        """Raises HardwareError when two regions have no link between them."""
        self.fabric = fabric = fabric or Fabric()
        self.slots = tuple(slots)
        self.places = _placed(self.slots, fabric)
        self.channels: list[Channel] = []
        self._index: dict[str, int] = {}
        self._routes: dict[tuple[int, int], tuple[dict[int, float], float]] = {}
        for name, bandwidth in self._links():
            self._index[name] = len(self.channels)
            self.channels.append(Channel(name, bandwidth * fabric.efficiency))
        regions = sorted({place.region for place in self.places})
        for a in regions:
            for b in regions:
                if a < b and frozenset((a, b)) not in fabric.wans:
                    raise HardwareError(
                        f"regions {a!r} and {b!r} have no link between them.",
                        remedy="Give its bandwidth and latency_s under cluster.network.links.",
                    )

    def route(self, source: int, target: int) -> tuple[dict[int, float], float]:
        """Channels from one replica to another with the share of the bytes that takes each, and the latency, s.

        Every GPU of a replica sends its part over its own NIC, or over its own NVLink where both stand in one node.
        """
        found = self._routes.get((source, target))
        if found is None:
            found = self._routes[source, target] = self._route(source, target)
        return found

    def _route(self, source: int, target: int) -> tuple[dict[int, float], float]:
        a, b = self.places[source], self.places[target]
        if a.one_node and a.nodes == b.nodes[:1] * len(a.nodes) and b.one_node:
            near = {f"replica {source} link out": 1.0, f"replica {target} link in": 1.0}
            return self._numbered(near), self.slots[source].gpu.link.latency_s
        names = {f"replica {source} nic out": 1.0}
        if self.fabric.node_bandwidth is not None:
            for place, way in ((a, "out"), (b, "in")):
                names |= {f"node {n} {way}": place.nodes.count(n) / len(place.nodes) for n in place.nodes}
        latency = self.fabric.latency_s
        latency = self.slots[source].gpu.network.latency_s if latency is None else latency
        if a.region != b.region:
            names[f"wan {a.region} to {b.region}"] = 1.0
            latency += self.fabric.wans[frozenset((a.region, b.region))].latency_s
        elif self.fabric.fabric_bandwidth is not None:
            names[f"fabric {a.region}".strip()] = 1.0
        names[f"replica {target} nic in"] = 1.0
        return self._numbered(names), latency

    def _numbered(self, names: Mapping[str, float]) -> dict[int, float]:
        return {self._index[name]: share for name, share in names.items()}

    def _links(self) -> list[tuple[str, float]]:
        fabric = self.fabric
        found: list[tuple[str, float]] = []
        for i, slot in enumerate(self.slots):
            for way in ("out", "in"):
                found.append((f"replica {i} link {way}", slot.num_gpus * slot.gpu.link.bandwidth))
                found.append((f"replica {i} nic {way}", slot.num_gpus * slot.gpu.network.bandwidth))
        if fabric.node_bandwidth is not None:
            for node in sorted({node for place in self.places for node in place.nodes}):
                found += [(f"node {node} {way}", fabric.node_bandwidth) for way in ("out", "in")]
        if fabric.fabric_bandwidth is not None:
            for region in sorted({place.region for place in self.places}):
                found.append((f"fabric {region}".strip(), fabric.fabric_bandwidth))
        for pair, wan in sorted(fabric.wans.items(), key=lambda item: sorted(item[0])):
            a, b = sorted(pair)
            # The rate of a leased line is what it carries: no share of it is lost again.
            found += [(f"wan {x} to {y}", wan.bandwidth / fabric.efficiency) for x, y in ((a, b), (b, a))]
        return found


def _placed(slots: Sequence[Slot], fabric: Fabric) -> tuple[Place, ...]:
    """First fit. Nodes hold GPUs of one kind and region; a replica that fits into a node stays inside one; else every
    stage does, if it fits; else it takes whole nodes.
    """
    free: dict[tuple[str, str], dict[int, int]] = {}  # (GPU, region) -> node -> free GPUs
    nodes = 0
    found: dict[int, Place] = {}
    for index in _order(slots, fabric.placement):
        slot = slots[index]
        per_node = slot.gpu.gpus_per_node
        region = fabric.regions.get(slot.group, "")
        mine = free.setdefault((slot.gpu.name, region), {})
        pieces = [slot.num_gpus] if slot.num_gpus <= per_node else [slot.tensor] * slot.stages
        if slot.tensor > per_node:
            pieces = [min(per_node, slot.num_gpus - start) for start in range(0, slot.num_gpus, per_node)]
        chosen: list[int] = []
        for piece in pieces:
            node = next((n for n, left in mine.items() if left >= piece), None)
            if node is None:
                node, nodes = nodes, nodes + 1
                mine[node] = per_node
            mine[node] -= piece
            chosen += [node] * piece
        found[index] = Place(region, tuple(chosen))
    return tuple(found[i] for i in range(len(slots)))


def _order(slots: Sequence[Slot], placement: Placement) -> list[int]:
    """packed: group after group. interleaved: groups take turns, so that those that belong together share nodes."""
    if placement == "packed":
        return list(range(len(slots)))
    members: dict[str, list[int]] = {}
    for index, slot in enumerate(slots):
        members.setdefault(slot.group, []).append(index)
    size = {group: len(indices) for group, indices in members.items()}
    # The k-th of n stands at (k + 1/2) / n of the way: 3 of one group and 5 of another mix evenly.
    at = {index: ((k + 0.5) / size[g], indices[0]) for g, indices in members.items() for k, index in enumerate(indices)}
    return sorted(at, key=lambda index: at[index])
