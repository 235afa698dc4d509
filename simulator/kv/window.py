"""A cache of blocks that knows who waits: what the next requests of the queue will use is forgotten last."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence

from simulator.kv.eviction.policy import Eviction


class Spared(Eviction):
    """Forgets the block whose last use is longest ago among those that nobody waits for; when somebody waits for
    every one, the block that was expected last.

    Why it helps: the queue says what is used next, which recency can only guess.
    Limits: sees no farther than the queue's window; an empty queue makes it ``lru``.
    Reference: scheduler-aware eviction of CachedAttention (Gao et al., USENIX ATC 2024, arXiv:2403.19708), section 3.3.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._idle: OrderedDict[int, None] = OrderedDict()  # held, nobody waits; least recently used first
        self._wanted: OrderedDict[int, None] = OrderedDict()  # held, somebody waits; expected last at the end
        self._waiting: Counter[int] = Counter()  # how many wait for a block, held or not

    def __contains__(self, block: int) -> bool:
        return block in self._idle or block in self._wanted

    def __len__(self) -> int:
        return len(self._idle) + len(self._wanted)

    def held(self, blocks: Sequence[int]) -> bytes:
        idle, wanted = self._idle, self._wanted
        return bytes([block in idle or block in wanted for block in blocks])

    def access(self, block: int, position: int, parent: int, next_use: int) -> bool:
        del position, parent, next_use
        if block in self._idle:
            self._idle.move_to_end(block)
            return True
        if block in self._wanted:
            return True
        if len(self) >= self.capacity:
            if self._idle:
                self._idle.popitem(last=False)
            else:
                self._wanted.popitem()
        (self._wanted if block in self._waiting else self._idle)[block] = None
        return False

    @property
    def room(self) -> int:
        """Blocks that may come without pushing out one that somebody waits for."""
        return self.capacity - len(self._wanted)

    def expect(self, blocks: Sequence[int]) -> None:
        """Somebody waits for these blocks, held or not; the last of their prompt first."""
        idle = self._idle
        self._waiting.update(blocks)
        for block in reversed(blocks):  # the end of a prompt goes before its beginning
            if block in idle:
                del idle[block]
                self._wanted[block] = None

    def served(self, blocks: Sequence[int]) -> None:
        """As many as ``expect`` was told wait no more."""
        waiting, wanted = self._waiting, self._wanted
        for block in blocks:
            left = waiting[block] - 1
            if left:
                waiting[block] = left
                continue
            del waiting[block]
            if block in wanted:
                del wanted[block]
                self._idle[block] = None
