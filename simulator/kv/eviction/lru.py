"""Least recently used."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from simulator.kv.eviction.policy import EVICTIONS, Eviction
from simulator.kv.eviction.runs import Ranked


class LruRuns(Ranked):
    def hit(self, x: int, n: int) -> None:
        self.put(x, n, 0)

    def miss(self, x: int, n: int) -> None:
        self.insert(x, n, 0)


@EVICTIONS.register("lru")
class Lru(Eviction):
    """Forgets the block whose last use is longest ago.

    Why it helps: what was used lately is used soon; O(1), and what vLLM and SGLang do.
    Limits: one long prompt that nobody repeats sweeps the cache.
    Reference: Mattson et al., IBM Systems Journal 9 (1970), 10.1147/sj.92.0078.
    """

    runs = LruRuns

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
            blocks.move_to_end(block)
            return True
        if len(blocks) >= self.capacity:
            blocks.popitem(last=False)
        blocks[block] = None
        return False

    def access_all(self, blocks: Iterable[int]) -> int:
        held, capacity, new = self._blocks, self.capacity, 0
        for block in blocks:
            if block in held:
                held.move_to_end(block)
                continue
            if len(held) >= capacity:
                held.popitem(last=False)
            held[block] = None
            new += 1
        return new

    def held(self, blocks: Sequence[int]) -> bytes:
        return bytes(map(self._blocks.__contains__, blocks))
