"""Least frequently used."""

from __future__ import annotations

from collections import OrderedDict, defaultdict

from simulator.kv.eviction.policy import EVICTIONS, Eviction
from simulator.kv.eviction.runs import Ranked


class LfuRuns(Ranked):
    def hit(self, x: int, n: int) -> None:
        self.put(x, n, self.held[x][0] + 1)

    def miss(self, x: int, n: int) -> None:
        self.insert(x, n, 1)


@EVICTIONS.register("lfu")
class Lfu(Eviction):
    """Forgets the block used least often since it came; the least recently used of equals.

    Why it helps: system prompts and popular documents stay.
    Limits: yesterday's favourites stay as well; what is new has no chance against them.
    Reference: Shah, Mitra, Matani, "An O(1) algorithm for implementing the LFU cache eviction scheme" (2010).
    """

    runs = LfuRuns

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._uses: dict[int, int] = {}
        self._by_uses: defaultdict[int, OrderedDict[int, None]] = defaultdict(OrderedDict)
        self._fewest = 1

    def __contains__(self, block: int) -> bool:
        return block in self._uses

    def __len__(self) -> int:
        return len(self._uses)

    def access(self, block: int, position: int, parent: int, next_use: int) -> bool:
        del position, parent, next_use
        uses = self._uses.get(block, 0)
        if uses:
            self._move(block, uses)
            return True
        if len(self._uses) >= self.capacity:
            victim, _ = self._by_uses[self._fewest].popitem(last=False)
            del self._uses[victim]
        self._uses[block] = self._fewest = 1
        self._by_uses[1][block] = None
        return False

    def _move(self, block: int, uses: int) -> None:
        level = self._by_uses[uses]
        del level[block]
        if not level:
            del self._by_uses[uses]
            if self._fewest == uses:
                self._fewest = uses + 1
        self._uses[block] = uses + 1
        self._by_uses[uses + 1][block] = None
