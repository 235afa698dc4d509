"""Prefix caching by block hash, block for block as vLLM V1 does it, at the price of runs instead of blocks.

What vLLM does (``v1/core/block_pool.py``, 0.33): a full block carries the hash of its whole prefix; the blocks of a
finished or preempted request go back in reverse order, those with a hash to the far end of the free queue (least
recently used is evicted first), those without to its near end. A block is not de-duplicated: two requests that
prefill the same prefix at once leave two instances, and a lookup takes the oldest.

Four facts make it cheap without changing any outcome.

- Blocks without a hash are interchangeable and always sit before every cached block in the free queue, so they are a
  number. So are those with a hash that nobody will ask for again (a finished request's own), between the others.
- Blocks of one request enter and leave together, so they are kept as a *run* of consecutive positions, cut only where
  another request's hit ends inside it.
- An id names its block and everything before it, so one id that two prompts share says that all before it are shared:
  runs are listed by their first block alone, as the edges of a radix tree are, and how far a prompt follows a run is
  found by bisection. Requests release the end of a prompt before its start, so whoever finds a block finds all before
  it, and only instances of the same blocks need care: they are *twins*, cut so that all of them begin together.
- Who takes blocks need not know what that evicts. It is owed, and forgotten when a lookup comes upon blocks that nobody
  holds; at once where somebody listens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from simulator.kv.pool import BlockPool

Listener = Callable[[Sequence[int]], None]


class Run:
    """Instances of the blocks at positions ``[lo, hi)`` of one chain of block ids."""

    __slots__ = ("before", "head", "hi", "ids", "lo", "next", "previous", "refs", "twins")

    def __init__(self, ids: Sequence[int], lo: int, hi: int, refs: int) -> None:
        self.ids = ids  # OWN: nobody finds these blocks by an id
        self.lo = lo
        self.hi = hi
        self.refs = refs  # requests that hold it; 0: every block is free and the run stands in the eviction order
        self.head: Run | None = None  # what was cut off its front; who held the run before holds that too
        self.twins: list[Run] | None = None  # all instances of its first block, itself included, oldest first
        self.before = 0  # blocks that nobody can hit again, evicted just before it
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
        self.runs: list[Run] = []  # consecutive, from position 0; heads cut off later are found from their tails
        self.own: tuple[Run, ...] = ()  # runs that hold positions past the ids, live while the request may come back


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

    __slots__ = ("_most_owed", "_order", "_owed", "_removed", "_starts", "_stored", "listed", "unit")

    def __init__(self, num_blocks: int, block_size: int, unit: int = 1) -> None:
        """unit: engine blocks per id of ``BlockTable.ids``."""
        super().__init__(num_blocks, block_size)
        self.unit = unit
        self._starts: dict[int, Run] = {}  # first block of a run -> the run, or the oldest of twins
        order = Run((), 0, 0, 0)  # sentinel of the eviction order: order.next goes first
        order.next = order.previous = order
        self._order = order
        self.listed = 0  # blocks that became full so far, of those with an id
        self._owed = 0  # blocks at the near end of the eviction order that are taken already
        self._most_owed = num_blocks // 4  # a bound on what is kept for nobody
        self._stored: list[Listener] = []
        self._removed: list[Listener] = []

    def publish(self, stored: Listener, removed: Listener) -> None:
        """Tell of every block id that somebody can hit from now on, and of every one that nobody can any more.

        As vLLM's KV cache events do (``BlockStored``, ``BlockRemoved``). ``stored`` may name an id again.
        """
        self.settle()
        self._most_owed = 0
        self._stored.append(stored)
        self._removed.append(removed)

    # -- lookup ------------------------------------------------------------------------------------------------

    def lookup(self, table: BlockTable, max_blocks: int) -> Hit:
        """The longest cached prefix of ``table``'s request, at most ``max_blocks`` blocks. Changes nothing."""
        ids = table.ids
        unit = self.unit
        starts = self._starts
        keyed = len(ids) * unit
        if keyed > max_blocks:
            keyed = max_blocks
        position = free = 0
        parts: list[tuple[Run, int, int]] = []
        run: Run | None = None
        while position < keyed:
            before = run
            run = starts.get(ids[position // unit] * unit + position % unit)
            if run is None:
                if before is not None and before.twins is not None:
                    run = self._longer_twin(before.twins, ids, position)
                if run is None:
                    return Hit(parts, position, free)
            end = run.hi
            if end > keyed:
                end = keyed
            if run.ids is not ids:
                last = (end - 1) // unit
                if run.ids[last] != ids[last]:
                    end = self._fork(run, ids, last)
            if not run.refs:
                if self._owed:  # is it still there?
                    self.settle()
                    return self.lookup(table, max_blocks)
                free += end - position
            parts.append((run, position, end))
            position = end
        hit = Hit(parts, position, free)
        if table.own:
            self._find_own(table, max_blocks, hit)
        return hit

    def _find_own(self, table: BlockTable, max_blocks: int, hit: Hit) -> None:
        """Go on with the blocks that only this request can hit."""
        self.settle()
        while hit.blocks < max_blocks:
            position = hit.blocks
            run = next((r for r in table.own if r.lo <= position < r.hi), None)
            if run is None:
                return
            end = min(run.hi, max_blocks)
            hit.parts.append((run, position, end))
            if not run.refs:
                hit.free_blocks += end - position
            hit.blocks = end

    def _shared(self, run: Run, ids: Sequence[int], end: int) -> int:
        """How far, at most to ``end``, a prompt of ``ids`` follows ``run``, whose first block it shares."""
        if end > run.hi:
            end = run.hi
        last = (end - 1) // self.unit
        return end if run.ids[last] == ids[last] else self._fork(run, ids, last)

    def _fork(self, run: Run, ids: Sequence[int], high: int) -> int:
        """The first block where a prompt parts from ``run``; their first ids are equal, those at ``high`` are not."""
        theirs = run.ids
        low = run.lo // self.unit
        while high - low > 1:
            middle = (low + high) // 2
            if theirs[middle] == ids[middle]:
                low = middle
            else:
                high = middle
        return high * self.unit

    def _longer_twin(self, twins: list[Run], ids: Sequence[int], position: int) -> Run | None:
        """The oldest of them that goes on with the block at ``position``."""
        at = position // self.unit
        for run in twins:
            if run.hi > position and run.ids[at] == ids[at]:
                return run
        return None

    # -- admission ---------------------------------------------------------------------------------------------

    def hold(self, table: BlockTable, hit: Hit) -> None:
        """Make the blocks of ``hit`` the request's: they leave the eviction order. Call it before anything is taken."""
        runs = table.runs
        for run, start, end in hit.parts:
            if start > run.lo:  # another instance served what comes before
                self._cut(run, start)
            part = run if end == run.hi else self._cut(run, end)
            if part is not run and run.ids is OWN:
                table.own += (part,)
            if not part.refs:
                self._unlink(part)
                count = part.hi - part.lo
                self.cached -= count
                self.free -= count
            part.refs += 1
            runs.append(part)

    def _cut(self, run: Run, position: int) -> Run:
        """Split ``run``, and its twins, before ``position``; returns the first part."""
        twins = run.twins
        if twins is None:
            head = self._split(run, position)
            if len(run.ids):
                self._list([head])
                self._list([run])
            return head
        heads, tails = [], []
        for twin in twins:
            if twin.hi > position:
                tails.append(twin)
                heads.append(self._split(twin, position))
            else:
                heads.append(twin)
        self._list(heads)
        self._list(tails)
        found = run.head
        assert found is not None
        return found

    def _split(self, run: Run, position: int) -> Run:
        """Cut the front off a run. Who holds the run holds both parts."""
        head = Run(run.ids, run.lo, position, run.refs)
        head.head = run.head
        run.head = head
        run.lo = position
        if not run.refs:  # the tail of a run is evicted before its head
            after = run.next
            assert after is not None
            head.previous, head.next = run, after
            run.next = after.previous = head
        return head

    def _list(self, twins: list[Run]) -> None:
        """Let runs that begin with the same block be found, the first of them first."""
        first = twins[0]
        together = twins if len(twins) > 1 else None
        for run in twins:
            run.twins = together
        self._starts[self._name(first.ids, first.lo)] = first

    def _name(self, ids: Sequence[int], position: int) -> int:
        """Of the block at ``position`` and everything before it."""
        unit = self.unit
        return ids[position // unit] * unit + position % unit

    # -- allocation and caching --------------------------------------------------------------------------------

    def take(self, count: int) -> None:
        free = self.free - count
        if free < 0:
            raise RuntimeError(f"{count} blocks asked for, {self.free} free: callers check before they take")
        self.free = free
        over = self.cached - free
        if over > 0:  # blocks without content are used first
            self.cached = free
            self._owed += over
            if self._owed > self._most_owed:
                self.settle()

    def settle(self) -> None:
        """Forget the least recently used content, as much as is owed."""
        owed, self._owed = self._owed, 0
        order = self._order
        while owed > 0:
            run = order.next
            assert run is not None
            if run.before >= owed:
                run.before -= owed
                return
            owed -= run.before
            run.before = 0
            assert run is not order
            old = run.hi
            kept = old - run.lo - owed
            if kept > 0:
                owed = 0
                run.hi = run.lo + kept
                if len(run.ids) and self._removed:
                    self._tell_removed(run, old)
                return
            owed = -kept
            run.hi = run.lo
            after = run.next
            assert after is not None
            order.next, after.previous = after, order
            run.previous = run.next = None
            if len(run.ids):
                if self._removed:
                    self._tell_removed(run, old)
                if run.twins is None:
                    del self._starts[self._name(run.ids, run.lo)]
                else:
                    twins, run.twins = run.twins, None
                    twins.remove(run)
                    self._list(twins)

    def _tell_removed(self, run: Run, old: int) -> None:
        """``run`` ended at ``old``; what it has lost is gone, but for its twins. Told from the last to the first."""
        hi = run.hi
        if run.twins is not None:
            for twin in run.twins:
                if twin is not run and twin.hi > hi:
                    hi = twin.hi
        unit = self.unit
        first, end = -(-hi // unit), -(-old // unit)  # an id is there as long as its first block is
        if first < end:
            gone = run.ids[first:end][::-1]
            for tell in self._removed:
                tell(gone)

    def cache(self, table: BlockTable, full_blocks: int) -> None:
        """The request's first ``full_blocks`` blocks are full: from now on others can hit those with an id."""
        ids = table.ids
        runs = table.runs
        unit = self.unit
        last = runs[-1] if runs else None
        start = 0 if last is None else last.hi
        end = len(ids) * unit
        if end > full_blocks:
            end = full_blocks
        if end <= start:
            return
        self.listed += end - start
        if self._stored:
            new = ids[-(-start // unit) : -(-end // unit)]  # the id at ``start``, if begun, is known already
            for tell in self._stored:
                tell(new)
        name = ids[start // unit] * unit + start % unit
        if name in self._starts or (last is not None and last.twins is not None):
            self._cache_again(table, start, end)
        elif last is not None and last.refs == 1 and last.ids is ids:
            last.hi = end  # grow the run of an earlier chunk
        else:
            self._starts[name] = run = Run(ids, start, end, 1)
            runs.append(run)

    def _cache_again(self, table: BlockTable, start: int, end: int) -> None:
        """``cache`` from ``start`` to ``end`` where there may be instances of the same blocks."""
        self.settle()
        ids = table.ids
        runs = table.runs
        while start < end:
            last = runs[-1] if runs else None
            first = self._starts.get(self._name(ids, start))
            if first is None and last is not None and last.twins is not None:
                longer = self._longer_twin(last.twins, ids, start)
                if longer is not None:
                    self._cut(longer, start)
                    first = self._starts[self._name(ids, start)]
            if first is None:  # no other instance of the block at ``start``, so none of what follows
                run = Run(ids, start, end, 1)
                self._list([run])
                runs.append(run)
                return
            longest = max(first.twins or [first], key=_end)
            stop = self._shared(longest, ids, end)
            if stop < end and stop < longest.hi:  # the prompts part here
                self._cut(longest, stop)
                first = self._starts[self._name(ids, start)]
            run = Run(ids, start, stop, 1)
            self._list([*(first.twins or [first]), run])
            runs.append(run)
            start = stop

    # -- release -----------------------------------------------------------------------------------------------

    def release(self, table: BlockTable | None, blocks: int, full_blocks: int, *, returns: bool) -> None:
        """Give back a request's ``blocks``, the first ``full_blocks`` of which keep their content.

        returns: the request was preempted and may hit its own blocks again.
        """
        self.free += blocks
        order = self._order
        if table is None:
            self.cached += full_blocks
            order.before += full_blocks
            return
        runs = table.runs
        held = runs[-1].hi if runs else 0
        if held < full_blocks:
            if held < len(table.ids) * self.unit:  # its answer has ids: the next turn may hit it
                self.cache(table, full_blocks)
                held = runs[-1].hi
            past = full_blocks - held  # the ids
            self.cached += past
            if not returns:
                order.before += past
            elif past:
                own = Run(OWN, held, full_blocks, 0)
                table.own += (own,)
                self._append(own)
        while runs:
            run = runs.pop()
            begin = runs[-1].hi if runs else 0
            while True:
                run.refs -= 1
                if run.refs:
                    self.free -= run.hi - run.lo  # others still hold them
                else:
                    self.cached += run.hi - run.lo
                    self._append(run)
                if run.lo <= begin:
                    break
                head = run.head  # it was cut since it was held
                assert head is not None
                run = head
        if not returns:
            table.own = ()

    # -- eviction order ----------------------------------------------------------------------------------------

    def _append(self, run: Run) -> None:
        """All that is free already is evicted before it."""
        order = self._order
        last = order.previous
        assert last is not None
        run.previous, run.next = last, order
        last.next = order.previous = run
        run.before, order.before = order.before, 0

    @staticmethod
    def _unlink(run: Run) -> None:
        previous, after = run.previous, run.next
        assert previous is not None and after is not None
        previous.next, after.previous = after, previous
        after.before += run.before
        run.before = 0
        run.previous = run.next = None


def _end(run: Run) -> int:
    return run.hi


OWN: Sequence[int] = []  # (by identity) the ids of blocks past the ids: only the request that computed them hits them
