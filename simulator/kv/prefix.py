"""Prefix caching by block hash, block for block as vLLM V1 does it, at the price of runs instead of blocks.

What vLLM does (``v1/core/block_pool.py``, 0.33): a full block carries the hash of its whole prefix; the blocks of a
finished or preempted request go back in reverse order, those with a hash to the far end of the free queue (least
recently used is evicted first), those without to its near end. A block is not de-duplicated: two requests that
prefill the same prefix at once leave two instances, and a lookup takes the oldest.

Two facts make it cheap without changing any outcome. Blocks without a hash are interchangeable and always sit before
every cached block in the free queue, so they are a number. And blocks of one request enter and leave together, so they
are kept as a *run* of consecutive positions, cut only where another request's hit ends inside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import repeat

from simulator.kv.pool import BlockPool

Listener = Callable[[Sequence[int]], None]


class Run:
    """Instances of the blocks at positions ``[lo, hi)`` of one chain of block ids."""

    __slots__ = ("hi", "holders", "ids", "lo", "next", "previous")

    def __init__(self, ids: Sequence[int], lo: int, hi: int, holders: set[BlockTable]) -> None:
        self.ids = ids
        self.lo = lo
        self.hi = hi
        self.holders = holders  # empty: every block is free and the run stands in the eviction order
        self.previous: Run | None = None
        self.next: Run | None = None


class BlockTable:
    """The cached blocks one request holds, and the ids of its prompt blocks.

    ``ids[i]`` names engine blocks ``[i * unit, (i + 1) * unit)`` of the prompt, and of its answer where a later prompt
    holds that; blocks past them are the request's own
    (its last partial trace block and its output): nobody else can hit them, the request itself can after preemption.
    """

    __slots__ = ("ids", "own", "runs")

    def __init__(self, ids: Sequence[int]) -> None:
        self.ids = ids
        self.runs: list[Run] = []  # consecutive, from position 0
        self.own: list[Run] = []  # runs that hold positions past the ids, live while the request may come back


class Hit:
    """A looked-up prefix: runs with the positions to use, and how many of its blocks are free right now.

    ``loaded``: blocks after those that come from a slower tier; they are taken anew.
    """

    __slots__ = ("blocks", "free_blocks", "loaded", "parts")

    def __init__(self, parts: list[tuple[Run, int, int]], blocks: int, free_blocks: int) -> None:
        self.parts = parts  # (run, first position, end position), one after the other
        self.blocks = blocks
        self.free_blocks = free_blocks
        self.loaded = 0

    @property
    def reused(self) -> int:
        """Blocks that need not be computed."""
        return self.blocks + self.loaded


NO_HIT = Hit([], 0, 0)


class PrefixCache(BlockPool):
    """A block pool whose free blocks keep their content until they are needed."""

    __slots__ = ("_index", "_order", "_removed", "_stored", "unit")

    def __init__(self, num_blocks: int, block_size: int, unit: int = 1) -> None:
        """unit: engine blocks per id of ``BlockTable.ids``."""
        super().__init__(num_blocks, block_size)
        self.unit = unit
        self._index: dict[int, Run | list[Run]] = {}  # id -> instances, oldest first
        order = Run(
            (), 0, 0, set()
        )  # sentinel (its ids are not ANONYMOUS) of the eviction order: order.next is evicted first
        order.next = order.previous = order
        self._order = order
        self._stored: list[Listener] = []
        self._removed: list[Listener] = []

    def publish(self, stored: Listener, removed: Listener) -> None:
        """Tell of every block id that somebody can hit from now on, and of every one that nobody can any more.

        As vLLM's KV cache events do (``BlockStored``, ``BlockRemoved``). ``stored`` may name an id again.
        """
        self._stored.append(stored)
        self._removed.append(removed)

    def holds(self, block_id: int) -> bool:
        """Whether somebody could hit the block with this id."""
        return block_id in self._index

    # -- lookup ------------------------------------------------------------------------------------------------

    def lookup(self, table: BlockTable, max_blocks: int) -> Hit:
        """The longest cached prefix of ``table``'s request, at most ``max_blocks`` blocks. Changes nothing."""
        position = free = 0
        parts: list[tuple[Run, int, int]] = []
        keyed = min(len(table.ids) * self.unit, max_blocks)
        while position < keyed:
            run = self._instance(table.ids[position // self.unit], position)
            if run is None:
                return Hit(parts, position, free)
            end = self._extent(run, table.ids, position, keyed)
            parts.append((run, position, end))
            if not run.holders:
                free += end - position
            position = end
        while position < max_blocks:
            run = next((r for r in table.own if r.lo <= position < r.hi), None)
            if run is None:
                break
            end = min(run.hi, max_blocks)
            parts.append((run, position, end))
            if not run.holders:
                free += end - position
            position = end
        return Hit(parts, position, free)

    def _instance(self, block_id: int, position: int) -> Run | None:
        found = self._index.get(block_id)
        if found is None:
            return None
        if isinstance(found, Run):
            return found if found.lo <= position < found.hi else None
        return next((run for run in found if run.lo <= position < run.hi), None)

    def _extent(self, run: Run, ids: Sequence[int], position: int, limit: int) -> int:
        """How far ``run`` is the instance that a lookup of ``ids`` would choose, from ``position`` on."""
        unit = self.unit
        index = self._index
        limit = min(limit, run.hi)
        end = position + 1
        while end < limit:
            block_id = ids[end // unit]
            if index.get(block_id) is run:  # the only instance of the whole unit
                end += unit - end % unit
            elif self._instance(block_id, end) is run:
                end += 1
            else:
                return end
        return limit

    # -- admission ---------------------------------------------------------------------------------------------

    def hold(self, table: BlockTable, hit: Hit) -> None:
        """Make the blocks of ``hit`` the request's: they leave the eviction order."""
        for run, start, end in hit.parts:
            if start > run.lo:  # another instance served what comes before
                self._cut(run, start)
            part = run if end == run.hi else self._cut(run, end)
            if part is not run and run in table.own:
                table.own.append(part)
            if not part.holders:
                self._unlink(part)
                count = part.hi - part.lo
                self.cached -= count
                self.free -= count
            part.holders.add(table)
            table.runs.append(part)

    def _cut(self, run: Run, position: int) -> Run:
        """Split ``run`` before ``position``; returns the first part. Holders of the run hold both parts."""
        head = Run(run.ids, run.lo, position, set(run.holders))
        for holder in run.holders:
            holder.runs.insert(holder.runs.index(run), head)
        run.lo = position
        keyed = len(run.ids) * self.unit
        for i in range(head.lo // self.unit, -(-min(position, keyed) // self.unit)):
            self._reindex(run.ids[i], run, head, keep=(i + 1) * self.unit > position)
        if not head.holders:  # the tail of a run is evicted before its head
            self._link_after(head, run)
        return head

    def _reindex(self, block_id: int, run: Run, head: Run, *, keep: bool) -> None:
        found = self._index[block_id]
        instances = [found] if isinstance(found, Run) else found
        at = instances.index(run)
        instances[at : at + 1] = [head, run] if keep else [head]
        self._index[block_id] = instances if len(instances) > 1 else instances[0]

    # -- allocation and caching --------------------------------------------------------------------------------

    def take(self, count: int) -> None:
        free = self.free - count
        if free < 0:
            raise RuntimeError(f"{count} blocks asked for, {self.free} free: callers check before they take")
        self.free = free
        over = self.cached - free
        if over > 0:  # blocks without content are used first
            run = self._order.next
            if run is not None and run.ids is ANONYMOUS and run.hi - run.lo > over:
                run.hi -= over  # what ``evict`` would do, without the call: the usual case
                self.cached = free
            else:
                self.evict(over)

    def evict(self, count: int) -> None:
        """Forget the least recently used content."""
        self.cached -= count
        unit = self.unit
        while True:
            run = self._order.next
            assert run is not None
            lo, old = run.lo, run.hi
            taken = old - lo
            if taken > count:
                taken = count
            run.hi = hi = old - taken
            keyed = len(run.ids) * unit
            if hi < keyed:
                first = -(-hi // unit) if hi > lo else lo // unit
                end = -(-min(old, keyed) // unit)
                if first < end:  # not while some of a unit's blocks are left
                    self._forget(run, first, end)
            if hi == lo:
                self._unlink(run)
            count -= taken
            if not count:
                return

    def _forget(self, run: Run, first: int, end: int) -> None:
        """Nobody finds ids ``first`` to ``end - 1`` in this run any more; told from the last to the first."""
        index = self._index
        gone: list[int] = []
        for block_id in run.ids[first:end]:
            found = index[block_id]
            if found is run:
                del index[block_id]
                gone.append(block_id)
            else:
                assert isinstance(found, list)
                found.remove(run)
                if len(found) == 1:
                    index[block_id] = found[0]
        if gone and self._removed:
            gone.reverse()
            for tell in self._removed:
                tell(gone)

    def cache(self, table: BlockTable, full_blocks: int) -> None:
        """The request's first ``full_blocks`` blocks are full: from now on others can hit those with an id."""
        end = min(full_blocks, len(table.ids) * self.unit)
        runs = table.runs
        start = runs[-1].hi if runs else 0
        if end <= start:
            return
        last = runs[-1] if runs else None
        own = last is not None and last.ids is table.ids and len(last.holders) == 1
        begun = start % self.unit  # the id at ``start`` is listed already
        if last is not None and own and (not begun or self._index[table.ids[start // self.unit]] is last):
            last.hi = end  # grow the run of an earlier chunk
            first_id = -(-start // self.unit)
        else:
            last = Run(table.ids, start, end, {table})
            runs.append(last)
            first_id = start // self.unit
        new = table.ids[first_id : -(-end // self.unit)]
        for tell in self._stored:
            tell(new)
        if self._index.keys().isdisjoint(new):
            self._index.update(zip(new, repeat(last), strict=False))
            return
        for block_id in new:
            found = self._index.get(block_id)
            if found is None:
                self._index[block_id] = last
            elif isinstance(found, Run):
                self._index[block_id] = [found, last]
            else:
                found.append(last)

    # -- release -----------------------------------------------------------------------------------------------

    def release(self, table: BlockTable | None, blocks: int, full_blocks: int, *, returns: bool) -> None:
        """Give back a request's ``blocks``, the first ``full_blocks`` of which keep their content.

        returns: the request was preempted and may hit its own blocks again.
        """
        self.free += blocks
        if table is None:
            self.cached += full_blocks
            last = self._order.previous
            assert last is not None
            if last.ids is ANONYMOUS:
                last.hi += full_blocks
            elif full_blocks:
                self._link_after(Run(ANONYMOUS, 0, full_blocks, set()), last)
            return
        runs = table.runs
        held = runs[-1].hi if runs else 0
        if held < full_blocks and held < len(table.ids) * self.unit:  # its answer has ids: the next turn may hit it
            self.cache(table, full_blocks)
            held = runs[-1].hi
        if full_blocks > held:
            self.cached += full_blocks - held
            self._append_own(table, held, full_blocks, returns=returns)
        for run in reversed(runs):
            run.holders.discard(table)
            if run.holders:
                self.free -= run.hi - run.lo  # others still hold them
            else:
                self.cached += run.hi - run.lo
                self._link_after(run, self._order.previous)
        table.runs = []
        if not returns:
            table.own = []

    def _append_own(self, table: BlockTable, lo: int, hi: int, *, returns: bool) -> None:
        """Content past the ids goes to the end of the eviction order; it is one count when nobody can hit it."""
        last = self._order.previous
        assert last is not None
        if returns:
            own = Run(table.ids, lo, hi, set())
            table.own.append(own)
            self._link_after(own, last)
        elif last.ids is ANONYMOUS:
            last.hi += hi - lo
        else:
            self._link_after(Run(ANONYMOUS, 0, hi - lo, set()), last)

    # -- eviction order ----------------------------------------------------------------------------------------

    @staticmethod
    def _link_after(run: Run, before: Run | None) -> None:
        assert before is not None
        after = before.next
        assert after is not None
        run.previous, run.next = before, after
        before.next = after.previous = run

    @staticmethod
    def _unlink(run: Run) -> None:
        previous, after = run.previous, run.next
        assert previous is not None and after is not None
        previous.next, after.previous = after, previous
        run.previous = run.next = None


ANONYMOUS: Sequence[int] = []  # (by identity) the ids of blocks that nobody can hit again
