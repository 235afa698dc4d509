"""Eviction policies on runs of blocks: what block by block would do, in pieces that move together.

A *run* is a stretch of blocks that every prompt holds whole or not at all (``simulator.kv.accesses``). Its blocks are
numbered in the order in which they are used, from its last to its first, so that what a policy forgets first of a run
are its lowest numbers; between the numbers of two runs there is a gap. A run falls into *pieces*, known by their first
block, that are held or not and rank next to each other; only an eviction that needs part of a piece splits it, and
neighbours that come to rank next to each other again are joined. The results are those of the block-by-block policy,
block for block.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Any


@dataclass(frozen=True, slots=True)
class Layout:
    """All runs, (runs,) each.

    first: number of the block that is used first, the last of the run in its prompts. size: blocks. tail: position of
    that block in its prompts. parent: run before it; -1: none.
    """

    first: list[int]
    size: list[int]
    tail: list[int]
    parent: list[int]


class Runs(ABC):
    """A cache of ``capacity`` blocks that is used run by run."""

    held: Mapping[int, Any]
    """Pieces in the cache."""
    remembered: Mapping[int, Any] = {}
    """Pieces that are not, but whose ids the policy keeps."""

    def __init__(self, capacity: int, layout: Layout) -> None:
        self.capacity = capacity
        self.layout = layout
        self.length = dict(zip(layout.first, layout.size, strict=True))  # blocks of every piece, held or not
        self.last_waiting = 0  # number of a request, for policies that look ahead
        self.run = 0  # being used
        self.next_use = 0  # request that uses it next

    def found(self, run: int) -> tuple[int, int]:
        """Blocks of a run that are held, and how many of them from its beginning in the prompt on."""
        x, size = self.layout.first[run], self.layout.size[run]
        n = self.length[x]
        if n == size:
            return (size, size) if x in self.held else (0, 0)
        end, held, unbroken = x + size, 0, 0
        while x < end:
            n = self.length[x]
            if x in self.held:
                held += n
                unbroken += n
            else:
                unbroken = 0
            x += n
        return held, unbroken

    def use(self, run: int, next_use: int) -> None:
        """next_use: number of the request that uses the run next."""
        self.run, self.next_use = run, next_use
        x = self.layout.first[run]
        end = x + self.layout.size[run]
        while x < end:
            n = self.length[x]
            if x in self.held:
                self.hit(x, n)
            elif x in self.remembered:
                self.miss(x, n)
            else:
                n = self._join(x, n, end)
                self.miss(x, n)
            x += n

    def _join(self, x: int, n: int, end: int) -> int:
        """Make one piece of all that follow and are as unknown."""
        while (y := x + n) < end and y not in self.held and y not in self.remembered:
            n += self.length.pop(y)
        self.length[x] = n
        return n

    @abstractmethod
    def hit(self, x: int, n: int) -> None:
        """The ``n`` blocks of the piece at ``x``, which is held, are used."""

    @abstractmethod
    def miss(self, x: int, n: int) -> None:
        """The ``n`` blocks of the piece at ``x`` are used and come into the cache."""

    def split(self, x: int, n: int) -> None:
        """Make the first ``n`` blocks of a piece one of their own."""
        rest = self.length[x] - n
        if rest:
            self.length[x] = n
            self.length[x + n] = rest


class Ranked(Runs):
    """Forgets the blocks of lowest rank: that of the ``k``-th block of a piece is (level, order + k)."""

    def __init__(self, capacity: int, layout: Layout) -> None:
        super().__init__(capacity, layout)
        self.blocks = 0
        self.time = 0  # blocks ranked so far
        self.held: dict[int, tuple[float, float, int]] = {}  # level, order, uses
        self._heap: list[tuple[float, float, int]] = []  # entries of pieces that rank elsewhere now are stale
        self._last = -1  # the piece ranked last

    def put(self, x: int, n: int, level: float, uses: int = 1) -> None:
        """Rank a piece that is held after all that were used before it, within its level."""
        self.rank(x, n, level, self.time, uses)
        self.time += n

    def rank(self, x: int, n: int, level: float, order: float, uses: int) -> None:
        last = self._last
        if last in self.held and last + self.length[last] == x:
            before, n_before = self.held[last], self.length[last]
            if before == (self.shift(level, -n_before), order - n_before, uses):
                self.length[last] += self.length.pop(x)
                self.held.pop(x, None)
                return
        self.held[x] = (level, order, uses)
        heappush(self._heap, (level, order, x))
        self._last = x

    @staticmethod
    def shift(level: float, n: int) -> float:
        """Level of a block ``n`` further on in a piece."""
        del n
        return level

    def lowest(self) -> int:
        """Take the piece of lowest rank from the heap."""
        while True:
            level, order, x = heappop(self._heap)
            rank = self.held.get(x)
            if rank is not None and rank[0] == level and rank[1] == order:
                return x

    def evict(self, n: int) -> None:
        while n > 0:
            n -= self.forget(self.lowest(), n)

    def forget(self, x: int, n: int) -> int:
        """Forget at most ``n`` blocks of a piece that was taken from the heap; how many it was."""
        level, order, uses = self.held.pop(x)
        if n < self.length[x]:
            self.split(x, n)
            rest = (self.shift(level, n), order + n)
            self.held[x + n] = (*rest, uses)
            heappush(self._heap, (*rest, x + n))
            if self._last == x:
                self._last = x + n
        n = self.length[x]
        self.blocks -= n
        return n

    def insert(self, x: int, n: int, level: float) -> None:
        """Blocks come in one by one, each after one of lowest rank has gone if there is no room.

        The first of them finds none of its own kind in the cache; from then on those that came are forgotten like all
        others, and since they rank in the order in which they come, never before they came.
        """
        free = self.capacity - self.blocks
        over = n - free
        if over > 0 and not free:
            self.evict(1)
            over -= 1
        self.blocks += n
        self.put(x, n, level)
        self.evict(over)


class Queue:
    """Pieces in the order in which they came, in one of a cache's queues.

    home: of all pieces in a group of queues; which one each is in. tags: pieces of different tags are not joined.
    """

    def __init__(self, length: dict[int, int], home: dict[int, Queue], tags: dict[int, int] | None = None) -> None:
        self.blocks = 0
        self._length = length
        self._home = home
        self._tags = {} if tags is None else tags
        self._order: OrderedDict[int, None] = OrderedDict()

    def append(self, x: int, tag: int = 0) -> None:
        """The piece at ``x``, which is in no queue of the group, comes last."""
        self.blocks += self._length[x]
        if self._order:
            last = next(reversed(self._order))
            if last + self._length[last] == x and self._tags[last] == tag:
                self._length[last] += self._length.pop(x)
                return
        self._order[x] = None
        self._home[x] = self
        self._tags[x] = tag

    def front(self) -> int:
        """The first piece; -1: there is none."""
        return next(iter(self._order), -1)

    def remove(self, x: int) -> int:
        """Its tag."""
        del self._order[x], self._home[x]
        self.blocks -= self._length[x]
        return self._tags.pop(x)

    def take(self, n: int) -> int:
        """Remove at most ``n`` blocks of the first piece, and return them as one."""
        x = next(iter(self._order))
        if n < self._length[x]:
            rest = self._length[x] - n
            self._length[x], self._length[x + n] = n, rest
            self._order[x + n] = None
            self._order.move_to_end(x + n, last=False)
            self._home[x + n] = self
            self._tags[x + n] = self._tags[x]
        self.remove(x)
        return x

    def drop(self, n: int) -> None:
        """Remove the first ``n`` blocks."""
        while n > 0:
            n -= self._length[self.take(n)]

    def pour(self, n: int, into: Queue) -> None:
        """Move the first ``n`` blocks to the end of another queue."""
        while n > 0:
            x = self.take(n)
            n -= self._length[x]
            into.append(x)
