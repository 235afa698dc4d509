"""LRU-K, with K = 2."""

from __future__ import annotations

from collections import OrderedDict
from heapq import heappop, heappush

from simulator.kv.eviction.policy import EVICTIONS, Eviction

K = 2


@EVICTIONS.register("lru-k")
class LruK(Eviction):
    """Forgets the block whose second-last use is longest ago; first those used but once, the oldest first.

    Why it helps: one use is chance, two are a habit: sweeps of new prompts evict each other.
    Limits: a block must come twice while it is remembered (as many forgotten ids are, as blocks are held); O(log n).
    Reference: O'Neil, O'Neil, Weikum, SIGMOD 1993, 10.1145/170035.170081 (no correlated reference period).
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._time = 0
        self._last: dict[int, tuple[int, int]] = {}  # block -> (second-last use, last use); -1: there was none
        self._gone: OrderedDict[int, int] = OrderedDict()  # id -> last use, of blocks forgotten lately
        self._heap: list[tuple[tuple[int, int], int]] = []  # entries of blocks used since are stale

    def __contains__(self, block: int) -> bool:
        return block in self._last

    def __len__(self) -> int:
        return len(self._last)

    def access(self, block: int, position: int, parent: int, next_use: int) -> bool:
        del position, parent, next_use
        self._time += 1
        uses = self._last.get(block)
        if uses is None and len(self._last) >= self.capacity:
            self._evict()
        before = self._gone.pop(block, -1) if uses is None else uses[1]
        self._last[block] = now = (before, self._time)
        heappush(self._heap, (now, block))
        return uses is not None

    def _evict(self) -> None:
        while True:
            uses, block = heappop(self._heap)
            if self._last.get(block) == uses:
                del self._last[block]
                self._gone[block] = uses[1]
                if len(self._gone) > self.capacity:
                    self._gone.popitem(last=False)
                return
