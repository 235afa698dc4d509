"""Greedy-dual size-frequency."""

from __future__ import annotations

from heapq import heappop, heappush

from simulator.kv.eviction.policy import EVICTIONS, Eviction
from simulator.kv.eviction.runs import Layout, Ranked


class GdsfRuns(Ranked):
    def __init__(self, capacity: int, layout: Layout) -> None:
        super().__init__(capacity, layout)
        self.clock = 0.0

    def hit(self, x: int, n: int) -> None:
        uses = self.held[x][2] + 1
        self.put(x, n, self.clock + uses, uses)

    def miss(self, x: int, n: int) -> None:
        while n > 0:
            part = min(n, self.capacity - self.blocks)
            if not part:  # the clock rises with the priority of what goes: equal ones at a time
                lowest = self.lowest()
                self.clock = self.held[lowest][0]
                part = self.forget(lowest, n)
            self.split(x, part)
            self.blocks += part
            self.put(x, part, self.clock + 1)
            x += part
            n -= part


@EVICTIONS.register("gdsf")
class Gdsf(Eviction):
    """Forgets the block of least priority: clock + uses x cost / size.

    Why it helps: what is used often stays; the clock, which rises to the priority of what is forgotten, lets old
    favourites age.
    Limits: frequency is counted only while a block is held. Blocks have one size here and cost what they are large, so
    this is least frequently used with aging; a block may go before those that build on it.
    Reference: Cherkasova, HPL-98-69R1 (1998).
    """

    runs = GdsfRuns

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._clock = 0.0
        self._uses: dict[int, int] = {}
        self._priority: dict[int, float] = {}
        self._heap: list[tuple[float, int, int]] = []  # entries with another priority are stale
        self._number = 0

    def __contains__(self, block: int) -> bool:
        return block in self._uses

    def __len__(self) -> int:
        return len(self._uses)

    def access(self, block: int, position: int, parent: int, next_use: int) -> bool:
        del position, parent, next_use
        uses = self._uses.get(block, 0)
        if not uses and len(self._uses) >= self.capacity:
            self._evict()
        self._uses[block] = uses + 1
        self._priority[block] = priority = self._clock + uses + 1
        self._number += 1
        heappush(self._heap, (priority, self._number, block))
        return uses > 0

    def _evict(self) -> None:
        while True:
            priority, _, block = heappop(self._heap)
            if self._priority.get(block) == priority:
                break
        self._clock = priority
        del self._uses[block], self._priority[block]
