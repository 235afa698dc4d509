"""LRU-K, with K = 2."""

from __future__ import annotations

from collections import OrderedDict
from heapq import heappop, heappush

from simulator.kv.eviction.policy import EVICTIONS, Eviction
from simulator.kv.eviction.runs import Layout, Queue, Ranked

K = 2
NEVER = float("-inf")


class LruKRuns(Ranked):
    """Ranks by second-last use, then by last use."""

    def __init__(self, capacity: int, layout: Layout) -> None:
        super().__init__(capacity, layout)
        self._memory = capacity  # ids
        self.remembered: dict[int, Queue] = {}
        self._gone = Queue(self.length, self.remembered)  # tags: last use less number, the same all over a piece

    @staticmethod
    def shift(level: float, n: int) -> float:
        return level + n

    def hit(self, x: int, n: int) -> None:
        self.put(x, n, self.held[x][1])

    def miss(self, x: int, n: int) -> None:
        before = NEVER
        if x in self.remembered:
            full, first = self.blocks >= self.capacity, self._gone.front() == x
            pushed_out = full and first and self._gone.blocks >= self.capacity  # each by the victim of the one before
            last = self._gone.remove(x)
            if not pushed_out:
                before = last + x
                if full:  # the first victim comes while all ``n`` are remembered
                    self._memory -= n
                    self.evict(1)
                    self._memory += n
        self.insert(x, n, before)

    def forget(self, x: int, n: int) -> int:
        last = int(self.held[x][1])
        n = super().forget(x, n)
        self._gone.append(x, last - x)
        self._gone.drop(self._gone.blocks - self._memory)
        return n


@EVICTIONS.register("lru-k")
class LruK(Eviction):
    """Forgets the block whose second-last use is longest ago; first those used but once, the oldest first.

    Why it helps: one use is chance, two are a habit: sweeps of new prompts evict each other.
    Limits: a block must come twice while it is remembered (as many forgotten ids are, as blocks are held); O(log n).
    Reference: O'Neil, O'Neil, Weikum, SIGMOD 1993, 10.1145/170035.170081 (no correlated reference period).
    """

    runs = LruKRuns

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
