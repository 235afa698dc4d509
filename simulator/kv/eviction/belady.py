"""The offline optimum."""

from __future__ import annotations

from heapq import heappop, heappush

from simulator.kv.eviction.policy import EVICTIONS, Eviction


@EVICTIONS.register("belady")
class Belady(Eviction):
    """Forgets the block whose next use is farthest away; one that is never used again is not even kept.

    Why it helps: no policy has more block hits, so every other policy's distance from it is what knowing the future
    would be worth.
    Limits: needs the future; optimal for single blocks, and for prefixes up to the blocks it keeps without those
    before them.
    Reference: Belady, IBM Systems Journal 5 (1966), 10.1147/sj.52.0078 (MIN).
    """

    needs_future = True

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._next: dict[int, int] = {}
        self._heap: list[tuple[int, int]] = []  # (-next use, block); entries of blocks used since are stale

    def __contains__(self, block: int) -> bool:
        return block in self._next

    def __len__(self) -> int:
        return len(self._next)

    def access(self, block: int, position: int, parent: int, next_use: int) -> bool:
        del position, parent
        hit = block in self._next
        self._next[block] = next_use
        heappush(self._heap, (-next_use, block))
        if len(self._next) > self.capacity:
            self._evict()
        return hit

    def _evict(self) -> None:
        while True:
            farthest, block = heappop(self._heap)
            if self._next.get(block) == -farthest:
                del self._next[block]
                return
