"""S3-FIFO: three first-in-first-out queues."""

from __future__ import annotations

from collections import OrderedDict

from simulator.kv.eviction.policy import EVICTIONS, Eviction

SMALL = 0.1  # share of the cache that newcomers get
MOST_USES = 3  # counted


@EVICTIONS.register("s3-fifo")
class S3Fifo(Eviction):
    """New blocks pass a small queue; only those used again there, or seen lately, get into the main one.

    Why it helps: most blocks are never used again, and leave quickly; a hit costs a counter.
    Limits: a block whose second use comes after the small queue and the memory of ids is lost.
    Reference: Yang et al., SOSP 2023, 10.1145/3600006.3613147.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._most_small = max(1, int(SMALL * capacity))
        self._uses: dict[int, int] = {}
        self._small: OrderedDict[int, None] = OrderedDict()
        self._main: OrderedDict[int, None] = OrderedDict()
        self._gone: OrderedDict[int, None] = OrderedDict()  # ids alone, as many as the main queue may hold

    def __contains__(self, block: int) -> bool:
        return block in self._uses

    def __len__(self) -> int:
        return len(self._uses)

    def access(self, block: int, position: int, parent: int, next_use: int) -> bool:
        del position, parent, next_use
        uses = self._uses.get(block)
        if uses is not None:
            self._uses[block] = min(uses + 1, MOST_USES)
            return True
        while len(self._uses) >= self.capacity:
            if len(self._small) >= self._most_small or not self._main:
                self._evict_small()
            else:
                self._evict_main()
        if self._gone.pop(block, 0) is None:
            self._main[block] = None
        else:
            self._small[block] = None
        self._uses[block] = 0
        return False

    def _evict_small(self) -> None:
        while self._small:
            block, _ = self._small.popitem(last=False)
            if self._uses[block] > 0:
                self._main[block] = None
                self._uses[block] = 0
                continue
            del self._uses[block]
            self._gone[block] = None
            if len(self._gone) > self.capacity - self._most_small:
                self._gone.popitem(last=False)
            return

    def _evict_main(self) -> None:
        while self._main:
            block, _ = self._main.popitem(last=False)
            if self._uses[block] > 0:
                self._uses[block] -= 1
                self._main[block] = None
                continue
            del self._uses[block]
            return
