"""S3-FIFO: three first-in-first-out queues."""

from __future__ import annotations

from collections import OrderedDict

from simulator.kv.eviction.policy import EVICTIONS, Eviction
from simulator.kv.eviction.runs import Layout, Queue, Runs

SMALL = 0.1  # share of the cache that newcomers get
MOST_USES = 3  # counted


class S3FifoRuns(Runs):
    def __init__(self, capacity: int, layout: Layout) -> None:
        super().__init__(capacity, layout)
        self.held: dict[int, Queue] = {}
        self._uses: dict[int, int] = {}
        self._most_small = max(1, int(SMALL * capacity))
        self._memory = capacity - self._most_small  # ids
        self._small, self._main = (Queue(self.length, self.held, self._uses) for _ in range(2))
        self.remembered: dict[int, Queue] = {}
        self._gone = Queue(self.length, self.remembered)

    @property
    def _free(self) -> int:
        return self.capacity - self._small.blocks - self._main.blocks

    def hit(self, x: int, n: int) -> None:
        del n
        self._uses[x] = min(self._uses[x] + 1, MOST_USES)

    def miss(self, x: int, n: int) -> None:
        if x not in self.remembered:
            self._insert(x, n, self._small)
            return
        first, memory = self._gone.front() == x, self._memory
        self._gone.remove(x)
        while n > 0 and not self._free:  # the first victim may push an id out of memory: this block's, if it is first
            self._memory = memory - n + first
            self._evict(1, self._main)
            if not first or self._gone.blocks + n <= memory:
                break
            self._insert(x, 1, self._small)
            x += 1
            n -= 1
        self._memory = memory
        self._insert(x, n, self._main)

    def _insert(self, x: int, n: int, into: Queue) -> None:
        while n > 0:
            part = min(n, self._free) or self._evict(n, into)
            self.split(x, part)
            into.append(x)
            x += part
            n -= part

    def _evict(self, n: int, into: Queue) -> int:
        """Make room for new blocks, as many of ``n`` as one queue would give way to one by one."""
        done = 0
        while not done:
            if self._small.blocks >= self._most_small or not self._main.blocks:
                done = self._evict_small(n, into)
            else:
                done = self._evict_main(n, into)
        return done

    def _evict_small(self, n: int, into: Queue) -> int:
        while self._small.blocks:
            if self._uses[self._small.front()]:
                self._main.append(self._small.take(self.capacity))
                continue
            spare = self._small.blocks - self._most_small
            if into is self._main:
                n = min(n, max(spare, 0) + 1)
            elif spare < 0 and self._main.blocks:
                n = 1
            x = self._small.take(n)
            n = self.length[x]
            self._gone.append(x)
            self._gone.drop(self._gone.blocks - self._memory)
            return n
        return 0

    def _evict_main(self, n: int, into: Queue) -> int:
        if into is self._small:
            n = min(n, max(self._most_small - self._small.blocks, 1))
        while uses := self._uses[self._main.front()]:
            self._main.append(self._main.take(self.capacity), uses - 1)
        return self.length[self._main.take(n)]


@EVICTIONS.register("s3-fifo")
class S3Fifo(Eviction):
    """New blocks pass a small queue; only those used again there, or seen lately, get into the main one.

    Why it helps: most blocks are never used again, and leave quickly; a hit costs a counter.
    Limits: a block whose second use comes after the small queue and the memory of ids is lost.
    Reference: Yang et al., SOSP 2023, 10.1145/3600006.3613147.
    """

    runs = S3FifoRuns

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
