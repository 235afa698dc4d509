"""A node of a placement at work, and what comes to it: requests on their journeys, in pieces."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Sequence

from simulator.cost.nodes import Node
from simulator.cost.step import OperatorCost
from simulator.replica.routes import Hop
from simulator.scheduling.request import Request


class Journey:
    """An admitted request: where it goes, and how far it has come."""

    __slots__ = ("done", "epoch", "expected", "hops", "kv", "made", "order", "request", "times")

    def __init__(self, request: Request) -> None:
        self.request = request
        self.hops: tuple[Hop, ...] = ()
        self.kv: list[int] = []  # tokens on each hop
        self.expected = 0  # tokens, once all are there
        self.done = 0  # tokens that have been through the last layer
        self.made = 0  # output tokens
        self.times = array("d")  # of its second token and those after it, s
        self.epoch = 0  # work from before a preemption is void
        self.order = 0  # of admission


class Work:
    """Tokens of a request on their way: a chunk of its prompt, or the one that it decodes."""

    __slots__ = ("computed", "decodes", "entry", "epoch", "journey", "last", "layers", "new", "position", "sent")

    def __init__(self, journey: Journey, new: int, computed: int, *, last: bool) -> None:
        self.journey = journey
        self.epoch = journey.epoch
        self.new, self.computed = new, computed
        self.last = last  # a token comes of it
        self.decodes = False
        self.position = 0  # of the hops
        self.entry, self.layers = journey.hops[0][1:]  # of that hop
        self.sent = 0.0  # s

    @property
    def void(self) -> bool:
        return self.epoch != self.journey.epoch

    def go_to(self, position: int) -> int:
        """The hop it is on; returns its node."""
        self.position = position
        node, self.entry, self.layers = self.journey.hops[position]
        return node


class Station:
    """A node at work. KV is counted in tokens times layers."""

    __slots__ = ("_costs", "_limit", "batch", "busy_s", "expected", "here", "node", "queue", "queued_tokens", "used")

    def __init__(self, node: Node, kv_high_water: float) -> None:
        self.node = node
        self.queue: deque[Work] = deque()
        self.queued_tokens = 0
        self.batch: list[Work] = []  # under way
        self.here: dict[Journey, int] = {}  # requests with KV here, in order of admission, and their hop
        self.used = self.expected = 0
        self.busy_s = 0.0
        self._limit = kv_high_water * node.kv_slots
        self._costs: dict[tuple[int, int], OperatorCost] = {(node.first, node.end): node.cost}

    def takes(self, tokens: int) -> bool:
        """See ``routes.Station``. A node that nobody else needs takes whoever fits."""
        load = max(self.expected, self.used)
        return not load or load + tokens * self.node.num_layers <= self._limit

    def seconds(self, batch: Sequence[Work]) -> float:
        """Of a batch: layer after layer, with whoever has entered by then."""
        entries = sorted({work.entry for work in batch})
        if len(entries) == 1:
            return _seconds(self._cost(entries[0], self.node.end), batch)
        ends = [*entries[1:], self.node.end]
        return sum(
            _seconds(self._cost(entry, end), [work for work in batch if work.entry <= entry])
            for entry, end in zip(entries, ends, strict=True)
        )

    def _cost(self, first: int, end: int) -> OperatorCost:
        found = self._costs.get((first, end))
        if found is None:
            found = self._costs[first, end] = self.node.cost.with_layers(first, end)
        return found


def _seconds(cost: OperatorCost, batch: Sequence[Work]) -> float:
    """Of a batch through some layers."""
    decodes = context = sampled = longest = squares = 0
    chunks: list[tuple[int, int]] = []
    for work in batch:
        if work.decodes:
            tokens = work.computed + 1
            decodes += 1
            context += tokens
            longest = max(longest, tokens)
            squares += tokens * tokens
        else:
            chunks.append((work.new, work.computed))
            sampled += work.last
    return cost.mixed(decodes, context, 0, chunks, decodes + sampled, longest, squares)
