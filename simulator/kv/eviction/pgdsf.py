"""Prefix-aware greedy-dual size-frequency, the policy of RAGCache's knowledge tree."""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heappop, heappush

from simulator.kv.eviction.policy import EVICTIONS, Eviction
from simulator.kv.eviction.runs import Layout, Runs

DENSE = 64.0  # blocks of context at which attending to them costs as much as the rest of a block's computation


@dataclass(slots=True)
class Piece:
    """Held blocks whose priorities (times DENSE) fall by ``slope`` > 0 from one to the next, towards the root."""

    run: int
    uses: int
    priority: float
    slope: float


class PgdsfRuns(Runs):
    """Once its last block is of least priority, a piece goes block by block until it is gone."""

    def __init__(self, capacity: int, layout: Layout) -> None:
        super().__init__(capacity, layout)
        self.held: dict[int, Piece] = {}
        self._blocks = 0
        self._clock = 0.0  # times DENSE
        self._ends: set[int] = set()  # blocks that come after held pieces
        self._children = [0] * len(layout.first)  # of each run, those whose first blocks are held
        self._heap: list[tuple[float, int]] = []  # leaves; entries of another priority are stale
        self._last = -1  # piece used last

    def _weight(self, x: int) -> float:
        """Cost to compute the block, times DENSE."""
        return DENSE + self.layout.tail[self.run] - (x - self.layout.first[self.run])

    def _is_leaf(self, x: int, run: int) -> bool:
        return not self._children[run] if x == self.layout.first[run] else x not in self._ends

    def _push(self, x: int) -> None:
        piece = self.held.get(x)
        if piece is not None and self._is_leaf(x, piece.run):
            heappush(self._heap, (piece.priority, x))

    def _put(self, x: int, n: int, piece: Piece) -> None:
        last = self.held.get(self._last)
        self._ends.add(x + n)
        if last is not None and self._last + self.length[self._last] == x:
            follows = last.priority - last.slope * self.length[self._last] == piece.priority
            if follows and (last.slope, last.uses) == (piece.slope, piece.uses):
                self._ends.discard(x)
                self.length[self._last] += self.length.pop(x)
                self.held.pop(x, None)
                return
        self.held[x] = piece
        self._last = x
        self._push(x)

    def hit(self, x: int, n: int) -> None:
        uses = self.held[x].uses + 1
        self._put(x, n, Piece(self.run, uses, self._clock + uses * self._weight(x), uses))

    def miss(self, x: int, n: int) -> None:
        end = self.layout.first[self.run] + self.layout.size[self.run]
        while n > 0:
            part, slope = min(n, self.capacity - self._blocks), 1.0
            clock = self._clock
            if not part:
                clock, slope, part = self._evict(n)
                slope += 1.0
            self.split(x, part)
            self._blocks += part
            parent = self.layout.parent[self.run]
            if x + part == end and parent >= 0:
                self._children[parent] += 1
            self._put(x, part, Piece(self.run, 1, clock + self._weight(x), slope))
            x += part
            n -= part

    def _evict(self, n: int) -> tuple[float, float, int]:
        """At most ``n`` blocks of a piece: the clock after the first, by how much it falls with each, how many."""
        while True:
            priority, x = heappop(self._heap)
            piece = self.held.get(x)
            if piece is not None and piece.priority == priority and self._is_leaf(x, piece.run):
                break
        n = min(n, self.length[x])
        whole = n == self.length[x]
        self.split(x, n)
        del self.held[x]
        self._blocks -= n
        self._clock = priority - (n - 1) * piece.slope
        if not whole:
            self.held[x + n] = Piece(piece.run, piece.uses, priority - n * piece.slope, piece.slope)
            self._last = x + n if self._last == x else self._last
        else:
            self._ends.discard(x + n)
        if x + n == self.layout.first[piece.run] + self.layout.size[piece.run]:
            parent = self.layout.parent[piece.run]
            if parent >= 0:
                self._children[parent] -= 1
                self._push(self.layout.first[parent])
        else:
            self._push(x + n)
        return priority, piece.slope, n


@EVICTIONS.register("pgdsf")
class Pgdsf(Eviction):
    """Forgets the leaf of least priority: clock + uses x cost to recompute / size.

    Why it helps: what is used often and dear to recompute (late blocks of long prompts) stays; the clock, which rises
    to the priority of what is forgotten, lets old favourites age; a block never goes before those that build on it.
    Limits: frequency is counted only while a block is held. Blocks have one size here; a block's cost is
    1 + position / 64, since what it attends to grows with its position.
    Reference: Jin et al., RAGCache (arXiv:2404.12457); GDSF: Cherkasova, HPL-98-69R1 (1998).
    """

    needs_places = True
    runs = PgdsfRuns

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._clock = 0.0
        self._uses: dict[int, int] = {}
        self._priority: dict[int, float] = {}
        self._parent: dict[int, int] = {}
        self._children: dict[int, int] = {}
        self._heap: list[tuple[float, int]] = []  # leaves; entries with another priority are stale

    def __contains__(self, block: int) -> bool:
        return block in self._uses

    def __len__(self) -> int:
        return len(self._uses)

    def access(self, block: int, position: int, parent: int, next_use: int) -> bool:
        del next_use
        uses = self._uses.get(block, 0)
        if not uses:
            if len(self._uses) >= self.capacity:
                self._evict()
            self._parent[block] = parent
            self._children[parent] = self._children.get(parent, 0) + 1
        self._uses[block] = uses + 1
        self._priority[block] = priority = self._clock + (uses + 1) * (1.0 + position / DENSE)
        if not self._children.get(block):
            heappush(self._heap, (priority, block))
        return uses > 0

    def _evict(self) -> None:
        while True:
            priority, block = heappop(self._heap)
            if self._priority.get(block) == priority and not self._children.get(block):
                break
        self._clock = priority
        parent = self._parent.pop(block)
        del self._uses[block], self._priority[block]
        left = self._children[parent] - 1
        if left:
            self._children[parent] = left
        else:
            del self._children[parent]
            if parent in self._priority:
                heappush(self._heap, (self._priority[parent], parent))
