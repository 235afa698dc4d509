"""Eviction that looks ahead into the waiting queue."""

from __future__ import annotations

from bisect import bisect_right
from heapq import heappop, heappush

from simulator.kv.eviction.policy import EVICTIONS, Eviction
from simulator.kv.eviction.runs import Layout, Ranked

UNWANTED = float("-inf")


class LookAheadRuns(Ranked):
    """Ranks by last use; a piece found lowest that somebody waits for ranks by next use, above, from then on."""

    def __init__(self, capacity: int, layout: Layout) -> None:
        super().__init__(capacity, layout)
        self._next: dict[int, int] = {}  # run -> request

    def use(self, run: int, next_use: int) -> None:
        self._next[run] = next_use
        super().use(run, next_use)

    def hit(self, x: int, n: int) -> None:
        self.put(x, n, UNWANTED)

    def miss(self, x: int, n: int) -> None:
        self.insert(x, n, UNWANTED)

    def lowest(self) -> int:
        while True:
            x = super().lowest()
            run = bisect_right(self.layout.first, x) - 1
            if self.held[x][0] != UNWANTED or self._next[run] > self.last_waiting:
                return x
            tail = self.layout.tail[run] - (x - self.layout.first[run])
            self.rank(x, self.length[x], -self._next[run], -tail, 1)


@EVICTIONS.register("look-ahead")
class LookAhead(Eviction):
    """Forgets the least recently used block that no waiting request wants; then the one wanted last.

    Why it helps: what is about to be hit stays: between LRU (nobody waits) and the offline optimum (all wait). With
    tiers it says as well what to fetch before it is needed.
    Limits: for hit-ratio curves, whose waiting queue is the trace's next requests, whatever the load; in an engine's
    tiers, ``prefetch`` spares what the real queue wants (``simulator/kv/window.py``). New blocks are always kept.
    Reference: Gao et al., CachedAttention (USENIX ATC 2024, arXiv:2403.19708), scheduler-aware eviction, whose window
    is as many waiting sessions as fit into the store.
    """

    needs_future = True
    runs = LookAheadRuns

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._time = 0
        self._rank: dict[int, tuple[float, int]] = {}
        self._use: dict[int, tuple[int, int]] = {}  # next use, position
        self._heap: list[tuple[float, int, int]] = []  # rank, block; entries of another rank are stale

    def __contains__(self, block: int) -> bool:
        return block in self._rank

    def __len__(self) -> int:
        return len(self._rank)

    def access(self, block: int, position: int, parent: int, next_use: int) -> bool:
        del parent
        hit = block in self._rank
        if not hit and len(self._rank) >= self.capacity:
            self._evict()
        self._time += 1
        self._use[block] = (next_use, position)
        self._put(block, UNWANTED, self._time)
        return hit

    def _put(self, block: int, level: float, order: int) -> None:
        self._rank[block] = (level, order)
        heappush(self._heap, (level, order, block))

    def _evict(self) -> None:
        while True:
            level, order, block = heappop(self._heap)
            if self._rank.get(block) != (level, order):
                continue
            next_use, position = self._use[block]
            if level != UNWANTED or next_use > self.last_waiting:
                del self._rank[block], self._use[block]
                return
            self._put(block, -next_use, -position)
