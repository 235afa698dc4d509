"""Prefix-aware greedy-dual size-frequency, the policy of RAGCache's knowledge tree."""

from __future__ import annotations

from heapq import heappop, heappush

from simulator.kv.eviction.policy import EVICTIONS, Eviction

DENSE = 64.0  # blocks of context at which attending to them costs as much as the rest of a block's computation


@EVICTIONS.register("pgdsf")
class Pgdsf(Eviction):
    """Forgets the leaf of least priority: clock + uses x cost to recompute / size.

    Why it helps: what is used often and dear to recompute (late blocks of long prompts) stays; the clock, which rises
    to the priority of what is forgotten, lets old favourites age; a block never goes before those that build on it.
    Limits: frequency is counted only while a block is held. Blocks have one size here; a block's cost is
    1 + position / 64, since what it attends to grows with its position.
    Reference: Jin et al., RAGCache (arXiv:2404.12457); GDSF: Cherkasova, HPL-98-69R1 (1998).
    """

    needs_places = True

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._clock = 0.0
        self._uses: dict[int, int] = {}
        self._priority: dict[int, float] = {}
        self._parent: dict[int, int] = {}
        self._children: dict[int, int] = {}
        self._heap: list[tuple[float, int]] = []  # leaves; entries with another priority are stale

    def __contains__(self, block: int) -> bool:
        return block in self._uses

    def __len__(self) -> int:
        return len(self._uses)

    def access(self, block: int, position: int, parent: int, next_use: int) -> bool:
        del next_use
        uses = self._uses.get(block, 0)
        if not uses:
            if len(self._uses) >= self.capacity:
                self._evict()
            self._parent[block] = parent
            self._children[parent] = self._children.get(parent, 0) + 1
        self._uses[block] = uses + 1
        self._priority[block] = priority = self._clock + (uses + 1) * (1.0 + position / DENSE)
        if not self._children.get(block):
            heappush(self._heap, (priority, block))
        return uses > 0

    def _evict(self) -> None:
        while True:
            priority, block = heappop(self._heap)
            if self._priority.get(block) == priority and not self._children.get(block):
                break
        self._clock = priority
        parent = self._parent.pop(block)
        del self._uses[block], self._priority[block]
        left = self._children[parent] - 1
        if left:
            self._children[parent] = left
        else:
            del self._children[parent]
            if parent in self._priority:
                heappush(self._heap, (self._priority[parent], parent))
