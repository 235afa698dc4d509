"""Adaptive replacement cache."""

from __future__ import annotations

from collections import OrderedDict

from simulator.kv.eviction.policy import EVICTIONS, Eviction
from simulator.kv.eviction.runs import Layout, Queue, Runs


class ArcRuns(Runs):
    def __init__(self, capacity: int, layout: Layout) -> None:
        super().__init__(capacity, layout)
        self.held: dict[int, Queue] = {}
        self.remembered: dict[int, Queue] = {}
        self._border = 0.0
        self._once, self._again = Queue(self.length, self.held), Queue(self.length, self.held)
        self._once_gone, self._again_gone = (Queue(self.length, self.remembered) for _ in range(2))

    def hit(self, x: int, n: int) -> None:
        del n
        self.held[x].remove(x)
        self._again.append(x)

    def miss(self, x: int, n: int) -> None:
        if x in self.remembered:
            self._remembered(x, n)
            return
        while n > 0:
            part = self._insert(x, n)
            x += part
            n -= part

    def _remembered(self, x: int, n: int) -> None:
        """Blocks come back one by one, and the border moves with each; what they push out goes in one."""
        gone = self.remembered[x]
        in_again = gone is self._again_gone
        once, again = self._once.blocks, self._again.blocks
        once_gone, again_gone = self._once_gone.blocks, self._again_gone.blocks
        from_once = from_again = 0
        for _ in range(n):
            if in_again:
                self._border = max(0.0, self._border - max(1.0, once_gone / again_gone))
                again_gone -= 1
            else:
                self._border = min(self.capacity, self._border + max(1.0, again_gone / once_gone))
                once_gone -= 1
            if once + again >= self.capacity:
                if self._takes_once(once, again, in_again=in_again):
                    once, once_gone, from_once = once - 1, once_gone + 1, from_once + 1
                else:
                    again, again_gone, from_again = again - 1, again_gone + 1, from_again + 1
            again += 1
        gone.remove(x)
        self._again.append(x)
        self._once.pour(from_once, self._once_gone)
        self._again.pour(from_again, self._again_gone)

    def _takes_once(self, once: int, again: int, *, in_again: bool) -> bool:
        return bool(once) and (once > self._border or (in_again and once == int(self._border)) or not again)

    def _insert(self, x: int, n: int) -> int:
        """Blocks that were not seen lately, as many of ``n`` as room is made for in one way.

        One by one, each would come after its victim has gone; a queue that gains and loses can do all the one and then
        all the other.
        """
        most, once, again = self.capacity, self._once.blocks, self._again.blocks
        seen_once = once + self._once_gone.blocks
        total = seen_once + again + self._again_gone.blocks
        takes_once = self._takes_once(once, again, in_again=False)
        if seen_once < most:
            forgets = self._again_gone if total == 2 * most else None
            n = min(n, most - seen_once, self._again_gone.blocks if forgets else 2 * most - total)
        else:
            forgets = self._once_gone if once < most else self._once
            n = n if takes_once or forgets is self._once else min(n, forgets.blocks)
        victims = n if once + again >= most and forgets is not self._once else 0
        if not victims and forgets is not self._once:
            n = min(n, most - once - again, forgets.blocks if forgets else n)
        elif victims and not takes_once:
            n = victims = min(n, again, max(int(self._border) - once, 0) + 1)
        self.split(x, n)
        self._once.append(x)
        if victims and takes_once:
            self._once.pour(n, self._once_gone)
        elif victims:
            self._again.pour(n, self._again_gone)
        if forgets is not None:
            forgets.drop(n)
        return n


@EVICTIONS.register("arc")
class Arc(Eviction):
    """Splits the cache between blocks used once and blocks used again, and moves the border to where hits are missed.

    Why it helps: a sweep of new prompts cannot push out what is used again, and nothing has to be tuned.
    Limits: remembers as many forgotten ids as it holds blocks.
    Reference: Megiddo and Modha, FAST 2003.
    """

    runs = ArcRuns

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
