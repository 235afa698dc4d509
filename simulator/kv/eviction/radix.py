"""Whole leaves of a radix tree, least recently used first."""

from __future__ import annotations

from collections import OrderedDict

from simulator.kv.eviction.policy import EVICTIONS, Eviction
from simulator.kv.eviction.runs import Layout, Runs


class RadixRuns(Runs):
    """Blocks of one piece are always of one node."""

    def __init__(self, capacity: int, layout: Layout) -> None:
        super().__init__(capacity, layout)
        self.held: OrderedDict[int, int] = OrderedDict()  # piece -> run
        self._blocks = 0
        self._below: dict[int, int] = {}  # piece -> the one below it, where both are of one node
        self._child, self._is_new = -1, False  # piece used last, and whether it had been missing
        self._next_run = -1  # that stands before it in the prompt

    def use(self, run: int, next_use: int) -> None:
        if run != self._next_run:
            self._child = -1
        super().use(run, next_use)
        self._next_run = self.layout.parent[run]

    def hit(self, x: int, n: int) -> None:
        del n
        if self._below.get(x, self._child) != self._child:
            del self._below[x]
        self.held.move_to_end(x)
        self._child, self._is_new = x, False

    def miss(self, x: int, n: int) -> None:
        while n > 0:
            if self._blocks >= self.capacity:
                self._evict()
            part = min(n, self.capacity - self._blocks)
            self.split(x, part)
            self._blocks += part
            self.held[x] = self.run
            if self._is_new and self._child in self.held:
                self._below[x] = self._child
            self._child, self._is_new = x, True
            x += part
            n -= part

    def _evict(self) -> None:
        x, run = next(iter(self.held.items()))
        while True:
            end = x + self.length[x]
            self._blocks -= self.length[x]
            del self.held[x]
            self._below.pop(x, None)
            if end == self.layout.first[run] + self.layout.size[run]:
                run = self.layout.parent[run]
                end = self.layout.first[run] if run >= 0 else -1
            if self._below.get(end) != x:
                return
            x = end


@EVICTIONS.register("radix")
class Radix(Eviction):
    """Forgets the least recently used leaf of a radix tree, all of it: what SGLang does.

    A leaf is a stretch of blocks that came together and were used together ever since: a prompt that leaves the tree
    within a node, or ends there, splits it. Block by block, leaves alone are what LRU forgets as well, since a block is
    used whenever those that build on it are; what differs is that a leaf goes as a whole.
    Why it helps: few nodes to keep, one comparison per node.
    Limits: forgets more than it must, up to a whole conversation. SGLang's tree counts tokens (page_size 1): read a
    trace in blocks of one token, where its format allows that, to see its granularity. What a prompt hits may be
    forgotten, and comes back, while the rest of it comes; SGLang locks it (0.002 of WEKA's hit ratio at most).
    Reference: Zheng et al., SGLang (arXiv:2312.07104); ``srt/mem_cache/radix_cache.py`` (evict deletes whole leaves; a
    match that ends within a node splits it).
    """

    needs_places = True
    runs = RadixRuns

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._parent: OrderedDict[int, int] = OrderedDict()  # least recently used first
        self._below: dict[int, int] = {}  # block -> the one below it, where both are of one node
        self._child, self._before, self._is_new = -1, -1, False  # block used last, the one before it, was it missing

    def __contains__(self, block: int) -> bool:
        return block in self._parent

    def __len__(self) -> int:
        return len(self._parent)

    def access(self, block: int, position: int, parent: int, next_use: int) -> bool:
        del position, next_use
        child = self._child if self._before == block else -1
        hit = block in self._parent
        if hit:
            if self._below.get(block, child) != child:
                del self._below[block]
            self._parent.move_to_end(block)
        else:
            if len(self._parent) >= self.capacity:
                self._evict()
            self._parent[block] = parent
            if self._is_new and child in self._parent:
                self._below[block] = child
        self._child, self._before, self._is_new = block, parent, not hit
        return hit

    def _evict(self) -> None:
        block = next(iter(self._parent))
        while True:
            parent = self._parent.pop(block)
            self._below.pop(block, None)
            if self._below.get(parent) != block:
                return
            block = parent
