"""Which nodes a request goes through, where each holds some layers of the model: chosen when it is admitted.

Every way keeps off nodes whose KV would fill up: Helix's mask (Mei et al., arXiv:2406.01566, section 5.2) counts what
requests are expected to need before they have it, so that none has to be preempted later. What differs is the order in
which the next nodes are tried.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple, Protocol

from simulator.cost.nodes import COORDINATOR, Node

NEXT_SHARE = 0.2  # of a new observation in Swarm's moving average


class Hop(NamedTuple):
    """A node of a route, the layer at which the request enters it, and the layers computed there."""

    node: int
    entry: int
    layers: int


class Station(Protocol):
    """What a route may know of a node."""

    queued_tokens: int

    def takes(self, tokens: int) -> bool:
        """Whether a request of so many tokens, once all are there, leaves its KV below the high-water mark."""
        ...


class Routes:
    """``find`` goes through the nodes depth first, the preferred next one first. Subclasses say which that is."""

    learns: ClassVar[bool] = False  # whether ``told`` wants to be called

    def __init__(self, nodes: Sequence[Node], hops: Mapping[int, Sequence[int]], num_layers: int) -> None:
        self._nodes, self._hops, self._num_layers = nodes, hops, num_layers
        self._stations: Sequence[Station] = ()

    def find(self, tokens: int, stations: Sequence[Station]) -> tuple[Hop, ...] | None:
        """A route for a request of so many tokens; None: some node of every way is full."""
        self._stations = stations
        route = self._onward(COORDINATOR, 0, tokens, set())
        if route is None:
            return None
        before = COORDINATOR
        for hop in route:
            self._took(before, hop.node)
            before = hop.node
        return tuple(route)

    def _onward(self, before: int, layer: int, tokens: int, dead: set[int]) -> list[Hop] | None:
        if layer == self._num_layers:
            return []
        for j in self._ranked(before):
            if j in dead or not self._stations[j].takes(tokens):
                continue
            end = self._nodes[j].end
            rest = self._onward(j, end, tokens, dead)
            if rest is not None:
                return [Hop(j, layer, end - layer), *rest]
            dead.add(j)
        return None

    def told(self, before: int, node: int, seconds: float) -> None:
        """A prompt was computed on a node so long after the one before had sent it."""

    def _ranked(self, before: int) -> Sequence[int]:
        raise NotImplementedError

    def _took(self, before: int, node: int) -> None:
        """A route was chosen that goes from one node to the other."""


class FlowRoutes(Routes):
    """Decides: every node hands on requests to the next ones in proportion to the flow over their links, interleaved.

    Why it helps: each node gets as much as it can compute in the placement's maximum flow, and bursts are spread.
    Limits: requests count alike, whatever their lengths; links without flow are never used.
    Reference: Mei et al., Helix, ASPLOS 2025 (arXiv:2406.01566), section 5.1. The weighted turns are smooth: who has
    waited most of its share is next.
    """

    def __init__(
        self, nodes: Sequence[Node], hops: Mapping[int, Sequence[int]], num_layers: int,
        weights: Mapping[tuple[int, int], float],
    ) -> None:  # fmt: skip
        used = {i: [j for j in after if weights.get((i, j), 0.0) > 0.0] for i, after in hops.items()}
        super().__init__(nodes, used, num_layers)
        self._weights = weights
        self._credit = {(i, j): 0.0 for i, after in used.items() for j in after}

    def _ranked(self, before: int) -> Sequence[int]:
        credit, weights = self._credit, self._weights
        return sorted(self._hops[before], key=lambda j: -credit[before, j] - weights[before, j])

    def _took(self, before: int, node: int) -> None:
        total = 0.0
        for j in self._hops[before]:
            total += self._weights[before, j]
            self._credit[before, j] += self._weights[before, j]
        self._credit[before, node] -= total


class QueueRoutes(Routes):
    """Decides: the next node is the one with the least work waiting, in seconds at its rate.

    Why it helps: it needs no plan and follows what happens.
    Limits: it looks one node ahead, and queues are as long as prompts on the way make them, not those to come.
    """

    def __init__(
        self, nodes: Sequence[Node], hops: Mapping[int, Sequence[int]], num_layers: int, rates: Sequence[float]
    ) -> None:
        super().__init__(nodes, hops, num_layers)
        self._rates = rates

    def _ranked(self, before: int) -> Sequence[int]:
        return sorted(self._hops[before], key=lambda j: self._stations[j].queued_tokens / self._rates[j])


class SwarmRoutes(Routes):
    """Decides: each node hands on requests in turns, as often as the next ones have been quick.

    Why it helps: it finds the fast ones without being told, and follows changes.
    Limits: it balances each stage by itself; what a stage cannot compute waits there all the same.
    Reference: interleaved weighted round robin over a moving average of response times, Ryabinin et al., SWARM
    Parallelism, ICML 2023 (arXiv:2301.11913), appendix C.
    """

    learns = True

    def __init__(self, nodes: Sequence[Node], hops: Mapping[int, Sequence[int]], num_layers: int) -> None:
        super().__init__(nodes, hops, num_layers)
        self._mean_s = {(i, j): 0.0 for i, after in hops.items() for j in after}  # 0: nothing is known
        self._turn = dict.fromkeys(self._mean_s, 0.0)

    def told(self, before: int, node: int, seconds: float) -> None:
        known = self._mean_s[before, node]
        self._mean_s[before, node] = NEXT_SHARE * seconds + (1.0 - NEXT_SHARE) * known if known else seconds

    def _ranked(self, before: int) -> Sequence[int]:
        return sorted(self._hops[before], key=lambda j: self._turn[before, j])

    def _took(self, before: int, node: int) -> None:
        own = [self._mean_s[before, j] for j in self._hops[before] if j != COORDINATOR]
        known = [s for s in own if s]
        mean = sum(known) / len(known) if known else 1.0
        self._turn[before, node] += (self._mean_s[before, node] or mean) / mean
