"""Adaptive replacement cache."""

from __future__ import annotations

from collections import OrderedDict

from simulator.kv.eviction.policy import EVICTIONS, Eviction


@EVICTIONS.register("arc")
class Arc(Eviction):
    """Splits the cache between blocks used once and blocks used again, and moves the border to where hits are missed.

    Why it helps: a sweep of new prompts cannot push out what is used again, and nothing has to be tuned.
    Limits: remembers as many forgotten ids as it holds blocks.
    Reference: Megiddo and Modha, FAST 2003.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._border = 0.0  # blocks that ``_once`` may hold
        self._once: OrderedDict[int, None] = OrderedDict()
        self._again: OrderedDict[int, None] = OrderedDict()
        self._once_gone: OrderedDict[int, None] = OrderedDict()  # ids alone
        self._again_gone: OrderedDict[int, None] = OrderedDict()

    def __contains__(self, block: int) -> bool:
        return block in self._once or block in self._again

    def __len__(self) -> int:
        return len(self._once) + len(self._again)

    def access(self, block: int, position: int, parent: int, next_use: int) -> bool:
        del position, parent, next_use
        if block in self._again:
            self._again.move_to_end(block)
            return True
        if block in self._once:
            del self._once[block]
            self._again[block] = None
            return True
        if block in self._once_gone:
            self._border = min(self.capacity, self._border + max(1.0, len(self._again_gone) / len(self._once_gone)))
            self._replace(in_again=False)
            del self._once_gone[block]
            self._again[block] = None
        elif block in self._again_gone:
            self._border = max(0.0, self._border - max(1.0, len(self._once_gone) / len(self._again_gone)))
            self._replace(in_again=True)
            del self._again_gone[block]
            self._again[block] = None
        else:
            self._make_room()
            self._once[block] = None
        return False

    def _make_room(self) -> None:
        """For a block that was not seen lately (case IV of the paper)."""
        once = len(self._once) + len(self._once_gone)
        if once == self.capacity:
            if len(self._once) < self.capacity:
                self._once_gone.popitem(last=False)
                self._replace(in_again=False)
            else:
                self._once.popitem(last=False)
        else:
            total = once + len(self._again) + len(self._again_gone)
            if total >= self.capacity:
                if total == 2 * self.capacity:
                    self._again_gone.popitem(last=False)
                self._replace(in_again=False)

    def _replace(self, *, in_again: bool) -> None:
        """in_again: the block asked for was forgotten from ``_again``."""
        if len(self) < self.capacity:
            return
        held = len(self._once)
        if held and (held > self._border or (in_again and held == int(self._border)) or not self._again):
            victim, _ = self._once.popitem(last=False)
            self._once_gone[victim] = None
        else:
            victim, _ = self._again.popitem(last=False)
            self._again_gone[victim] = None
