"""First in, first out."""

from __future__ import annotations

from collections import OrderedDict

from simulator.kv.eviction.policy import EVICTIONS, Eviction
from simulator.kv.eviction.runs import Ranked


class FifoRuns(Ranked):
    def hit(self, x: int, n: int) -> None:
        pass

    def miss(self, x: int, n: int) -> None:
        self.insert(x, n, 0)


@EVICTIONS.register("fifo")
class Fifo(Eviction):
    """Forgets the block that came first, however often it was used since.

    Why it helps: no bookkeeping on a hit.
    Limits: popular blocks go when their turn comes.
    Reference: Belady, Nelson, Shedler, CACM 12 (1969), 10.1145/363011.363155 (and its anomaly).
    """

    runs = FifoRuns

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._blocks: OrderedDict[int, None] = OrderedDict()

    def __contains__(self, block: int) -> bool:
        return block in self._blocks

    def __len__(self) -> int:
        return len(self._blocks)

    def access(self, block: int, position: int, parent: int, next_use: int) -> bool:
        del position, parent, next_use
        blocks = self._blocks
        if block in blocks:
            return True
        if len(blocks) >= self.capacity:
            blocks.popitem(last=False)
        blocks[block] = None
        return False
