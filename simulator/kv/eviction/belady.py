"""The offline optimum."""

from __future__ import annotations

from heapq import heappop, heappush

from simulator.kv.eviction.policy import EVICTIONS, Eviction
from simulator.kv.eviction.runs import Ranked


class BeladyRuns(Ranked):
    def hit(self, x: int, n: int) -> None:
        tail = self.layout.tail[self.run] - (x - self.layout.first[self.run])
        self.rank(x, n, -self.next_use, -tail, 1)

    def miss(self, x: int, n: int) -> None:
        self.hit(x, n)
        self.blocks += n
        self.evict(self.blocks - self.capacity)


@EVICTIONS.register("belady")
class Belady(Eviction):
    """Forgets the block whose next use is farthest away, of one prompt's the last; one without a next use at once.

    Why it helps: no policy has more hits, so every other policy's distance from it is what knowing the future would be
    worth. It never keeps a block without those before it, which are used whenever it is: what is optimal for blocks is
    optimal for prefixes.
    Limits: needs the future.
    Reference: Belady, IBM Systems Journal 5 (1966), 10.1147/sj.52.0078 (MIN).
    """

    needs_future = True

    runs = BeladyRuns

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._next: dict[int, int] = {}
        self._heap: list[tuple[int, int, int]] = []  # (-next use, -position, block); stale where used since

    def __contains__(self, block: int) -> bool:
        return block in self._next

    def __len__(self) -> int:
        return len(self._next)

    def access(self, block: int, position: int, parent: int, next_use: int) -> bool:
        del parent
        hit = block in self._next
        self._next[block] = next_use
        heappush(self._heap, (-next_use, -position, block))
        if len(self._next) > self.capacity:
            self._evict()
        return hit

    def _evict(self) -> None:
        while True:
            farthest, _, block = heappop(self._heap)
            if self._next.get(block) == -farthest:
                del self._next[block]
                return
