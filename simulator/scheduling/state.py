"""What an engine policy sees and moves: the queues, the KV blocks and the decoding batch of one replica.

The batch is kept in aggregate. Requests that *decode* advance together, one token per token step, so the state holds
their number, the sum of their contexts, a heap of the token steps at which they end, and how many of them will need a
KV block at each offset within a block (``phase``, a rotating histogram). A step costs the same for 1 and 1,000 of them.
Where it matters to the price how unequal the contexts are, also the longest and the sum of squares: a request's length
less the token steps made so far never changes, so both are kept when one joins or leaves, and nothing is done per step.
"""

from __future__ import annotations

from collections import deque
from heapq import heapify, heappop, heappush
from itertools import count
from typing import TYPE_CHECKING, Protocol, Self

from simulator.kv.pool import BlockPool
from simulator.kv.prefix import NO_HIT, BlockTable, Hit, PrefixCache
from simulator.kv.tiers import TierStack
from simulator.native.attributes import mypyc_attr
from simulator.scheduling.args import EngineArgs
from simulator.scheduling.request import Request
from simulator.scheduling.step import Step

if TYPE_CHECKING:
    from simulator.scheduling.asides import Asides

LANE_STEPS = 1 << 27  # more token steps than one batch ever makes


class Queue(Protocol):
    """Waiting requests, next one at ``[0]``. A ``deque`` is one."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Request: ...
    def append(self, request: Request, /) -> None: ...
    def appendleft(self, request: Request, /) -> None: ...
    def popleft(self) -> Request: ...


@mypyc_attr(allow_interpreted_subclasses=True)
class EngineState:
    """Queues, blocks and batch of one replica. Policies call its methods; nothing else mutates it."""

    __slots__ = (
        "_crossings",
        "_ends",
        "_grows",
        "_listed",
        "_longest",
        "_need",
        "_squares",
        "_target",
        "_window_sum",
        "admissions",
        "args",
        "asides",
        "batch_version",
        "block_size",
        "caching",
        "computed_sum",
        "growing",
        "hittable",
        "keeps",
        "kept",
        "lane",
        "lanes",
        "last_decode_order",
        "now",
        "num_decodes",
        "phase",
        "pool",
        "prefilling",
        "refused",
        "releasing",
        "running",
        "swapped",
        "tiers",
        "token_steps",
        "tokens_padded",
        "tokens_recomputed",
        "uneven",
        "waiting",
        "window",
    )

    def __init__(self, args: EngineArgs, pool: BlockPool, *, window: int | None = None, grows: bool = True) -> None:
        """window: the model's sliding window in tokens. grows: decoding takes a block whenever one is full;
        False for policies that reserve a request's blocks at admission."""
        self.args = args
        self.pool = pool
        self.block_size = pool.block_size
        self.caching = isinstance(pool, PrefixCache)
        self.hittable = self.caching  # False where no request has a prefix to hit: evictions then matter to nobody
        self.waiting: Queue = deque()
        self.running: dict[Request, None] = {}  # in order of admission
        self.prefilling: dict[Request, None] = {}  # the running requests with prompt left to compute
        self.releasing: deque[tuple[float, Request]] = deque()  # (end of the last step, request), still in running
        self.refused: Request | None = None  # it waits for blocks
        self._need = self._listed = self._target = 0  # when it was looked at
        self.tiers: TierStack | None = None  # slower places for what the prefix cache forgets
        self.asides: Asides | None = None  # what those do beside the steps
        self.keeps = False  # whether requests that end here go on elsewhere
        self.kept: dict[Request, None] = {}  # those whose KV has not been read yet
        self.swapped: deque[Request] = deque()  # preempted, their KV in host memory; next one to return first
        self.num_decodes = 0
        self.computed_sum = 0  # tokens, over the decoding requests
        self.token_steps = 0
        self.batch_version = 0  # changes whenever the decoding batch does
        self.last_decode_order = -1  # upper bound on ``order`` of the decoding requests
        self.admissions = count()
        self.tokens_recomputed = 0
        self.tokens_padded = 0
        self._ends: list[tuple[int, int, Request]] = []
        self.phase = [0] * self.block_size
        self._grows = grows
        self.window = window
        self.growing = 0  # decoding requests shorter than the window
        self._window_sum = 0  # tokens computed, over those
        self._crossings: list[tuple[int, int, Request]] = []
        self.uneven = False  # whether to keep what ``spread`` tells; set before the first request joins
        self._longest: list[tuple[int, int, Request]] = []  # heap by -offset; entries of who has left are stale
        self._squares = 0  # sum of the squared offsets of the decoding requests
        self.now = 0.0  # s: when the step that is planned begins
        self.lane = 0
        self.lanes = [self]  # the batches that share these queues and blocks: one per pipeline stage

    def add_lane(self) -> EngineState:
        """Another decoding batch over the same queues and blocks, for a pipeline with several batches in flight."""
        lane = self._another()
        for shared in ("waiting", "running", "prefilling", "releasing", "admissions", "lanes"):
            setattr(lane, shared, getattr(self, shared))
        lane.uneven = self.uneven
        lane.lane = len(self.lanes)
        lane.token_steps = lane.lane * LANE_STEPS  # counts of different lanes stay apart in the records
        self.lanes.append(lane)
        return lane

    def _another(self) -> Self:
        """An empty state over the same blocks."""
        return type(self)(self.args, self.pool, window=self.window, grows=self._grows)

    # -- prompts -----------------------------------------------------------------------------------------------

    def hit(self, request: Request) -> Hit:
        """The cached prefix of a waiting request; at least its last token is left to compute, as in vLLM."""
        if request.table is None or not self.caching:
            return NO_HIT
        assert isinstance(self.pool, PrefixCache)
        limit = (request.target - 1) // self.block_size
        if self.tiers is None:
            return self.pool.lookup(request.table, limit)
        if self.asides is not None and (held := self.asides.hit(request)) is not None:
            return held
        hit = self.pool.lookup(request.table, limit)
        if hit.blocks < limit:
            hit.loaded = self.tiers.find(request.row, request.table.ids, hit.blocks, limit, self.block_size)
        return hit

    def refuse(self, request: Request, need: int) -> None:
        """A request whose whole hit others hold lacks free blocks: it needs ``need`` of them."""
        pool = self.pool
        if isinstance(pool, PrefixCache) and self.tiers is None:
            self.refused, self._need, self._target, self._listed = request, need, request.target, pool.listed

    def least_need(self, request: Request) -> int:
        """Free blocks that the refused request needs at least, without a look-up: what others hold of its prefix has
        grown by no more than what they have computed since."""
        pool = self.pool
        assert isinstance(pool, PrefixCache)
        return self._need - pool.listed + self._listed if request.target == self._target else 0

    def admit(self, request: Request, hit: Hit, step: Step) -> None:
        """Move the head of the queue into the running batch, holding the blocks of ``hit``."""
        if hit is not NO_HIT:
            assert isinstance(self.pool, PrefixCache) and request.table is not None
            self.pool.hold(request.table, hit)
        request.order = next(self.admissions)
        request.computed = request.cached_tokens = hit.reused * self.block_size
        if hit.loaded:
            self._load(request, hit)
        self.running[request] = None
        self.prefilling[request] = None
        step.admitted.append(request)

    def _load(self, request: Request, hit: Hit) -> None:
        """Take blocks for what comes from slower tiers."""
        assert self.tiers is not None and request.table is not None and isinstance(self.pool, PrefixCache)
        self.tiers.load(request.row, request.table.ids, hit.blocks, hit.loaded)
        self.pool.take(hit.loaded)
        self.pool.cache(request.table, hit.reused)

    def blocks_of(self, tokens: int) -> int:
        """Blocks that a request holds with so many tokens computed."""
        return -(-tokens // self.block_size)

    def blocks_for(self, request: Request, tokens: int) -> int:
        """Blocks still to take so that a prefilling request holds its first ``computed + tokens`` tokens."""
        size = self.block_size
        computed = request.computed
        return -(-(computed + tokens) // size) - -(-computed // size)

    def chunk(self, request: Request, tokens: int, step: Step) -> None:
        """Compute the next ``tokens`` prompt tokens of a running request in this step; takes the blocks."""
        computed = request.computed
        after = computed + tokens
        if self._grows:
            size = self.block_size
            self.pool.take(-(-after // size) - -(-computed // size))
        step.chunks.append((tokens, computed))
        step.requests.append(request)
        step.prefill_tokens += tokens
        request.computed = after
        if request.preemptions and computed < request.lost:
            self.tokens_recomputed += min(after, request.lost) - computed
        if request.table is not None and self.caching:
            assert isinstance(self.pool, PrefixCache)
            self.pool.cache(request.table, after // self.block_size)
        if after == request.target:
            del self.prefilling[request]
            step.completed.append(request)

    def reserve(self, request: Request, blocks: int) -> None:
        """Take all the blocks an admitted request will ever have, for policies that do not grow."""
        self.pool.take(blocks)
        request.reserved = blocks

    def pad(self, request: Request, steps: int) -> None:
        """Keep a request in the decoding batch for ``steps`` token steps after its last token."""
        request.padding = steps
        self.tokens_padded += steps

    # -- the decoding batch ------------------------------------------------------------------------------------

    def join(self, request: Request, left: int) -> None:
        """A request whose prompt is computed decodes from the next token step on, ``left`` tokens."""
        steps = self.token_steps
        computed = request.computed
        request.decoding = True
        request.lane = self.lane
        request.offset = computed - steps
        request.last_step = steps + left
        request.first_token_step = steps
        self.num_decodes += 1
        self.computed_sum += computed
        if self._grows:
            self.phase[(steps - computed) % self.block_size] += 1
        self.batch_version += 1
        if request.order > self.last_decode_order:
            self.last_decode_order = request.order
        heappush(self._ends, (steps + left, request.order, request))
        if self.uneven:
            offset = computed - steps
            self._squares += offset * offset
            heap = self._longest
            heappush(heap, (-offset, request.order, request))
            if len(heap) > 2 * self.num_decodes + 64:
                self._forget()
        if self.window is not None:
            request.crossing = -1
            if computed + 1 < self.window:
                self.growing += 1
                self._window_sum += computed
                request.crossing = self.window - 1 - request.offset
                heappush(self._crossings, (request.crossing, request.order, request))

    def leave(self, request: Request) -> None:
        """Take a request out of the decoding batch; its ``computed`` becomes its own again."""
        computed = request.offset + self.token_steps
        request.computed = computed
        request.decoding = False
        self.num_decodes -= 1
        self.computed_sum -= computed
        if self._grows:
            self.phase[-request.offset % self.block_size] -= 1
        self.batch_version += 1
        if self.uneven:
            self._squares -= request.offset * request.offset
        if self.window is not None and request.crossing >= 0:
            request.crossing = -1  # its entry in the heap is stale
            self.growing -= 1
            self._window_sum -= computed

    def computed_of(self, request: Request) -> int:
        """Tokens computed of a request that decodes in this batch."""
        return request.offset + self.token_steps

    def flush(self) -> None:
        """The simulation stops with requests in the batch: write down what is only written when one leaves."""

    def _forget(self) -> None:
        """Most entries of the heap are stale: keep who is here, once each."""
        here = {r: (offset, order, r) for offset, order, r in self._longest if self._decodes_at(r, offset)}
        self._longest[:] = here.values()
        heapify(self._longest)

    def _decodes_at(self, request: Request, offset: int) -> bool:
        return request.decoding and request.offset == -offset and request.lane == self.lane

    def spread(self) -> tuple[int, int]:
        """(longest, sum of squares) of the KV lengths after the next step, with ``uneven`` and a batch."""
        heap = self._longest
        offset, _, request = heap[0]
        while not request.decoding or request.offset != -offset or request.lane != self.lane:
            heappop(heap)
            offset, _, request = heap[0]
        steps = self.token_steps
        after = steps + 1
        # Sum of (offset + after)², the sum of offsets being computed_sum - num_decodes * steps.
        squares = self._squares + after * (2 * self.computed_sum + self.num_decodes * (1 - steps))
        return after - offset, squares

    @property
    def blocks_next(self) -> int:
        """Blocks that the next token step takes."""
        return self.phase[self.token_steps % self.block_size]

    def next_block(self, request: Request) -> int:
        """Blocks that a decoding request takes for its next token: 1 or 0."""
        return 0 if (request.offset + self.token_steps) % self.block_size else 1

    def blocks_over(self, steps: int) -> int:
        """Blocks that the next ``steps`` token steps take together."""
        if not self._grows:
            return 0
        size = self.block_size
        rounds, rest = divmod(steps, size)
        first = self.token_steps % size
        last = first + rest
        phase = self.phase
        need = sum(phase[first:last]) if last <= size else sum(phase[first:]) + sum(phase[: last - size])
        return rounds * self.num_decodes + need

    def evicts(self, steps: int) -> bool:
        """Whether the next ``steps`` token steps push content out of the prefix cache that somebody might hit."""
        return self.hittable and self.blocks_over(steps) > self.pool.free - self.pool.cached

    def evict_ahead(self) -> None:
        """Forget what the step in flight pushes out of the prefix cache; its blocks are taken when it is applied."""
        blocks = self.blocks_next
        self.pool.take(blocks)
        self.pool.give_back(blocks)

    def longest_run(self) -> int:
        """Token steps until a request ends, the blocks run out or a context reaches the window; at least 1.

        The first step's blocks are there: the policy has seen to it.
        """
        ends = self._ends
        last_step, _, request = ends[0]
        while not request.decoding or request.last_step != last_step:  # the entry of a preempted request is stale
            heappop(ends)
            last_step, _, request = ends[0]
        run = last_step - self.token_steps
        if self._crossings:
            run = min(run, self._next_crossing() - self.token_steps)
        free = self.pool.free
        if (run // self.block_size + 1) * self.num_decodes > free and self.blocks_over(run) > free:
            low = 1
            while low < run:
                middle = (low + run + 1) // 2
                if self.blocks_over(middle) <= free:
                    low = middle
                else:
                    run = middle - 1
        return run

    def _next_crossing(self) -> int:
        crossings = self._crossings
        while crossings:
            step, _, request = crossings[0]
            if request.crossing == step:
                return step
            heappop(crossings)
        return 1 << 60

    def advance(self, steps: int) -> bool:
        """Every decoding request makes one token in each of ``steps`` steps; takes their blocks.

        True when one of them may have made its last: ``ended`` tells which.
        """
        if self._grows:
            first = self.token_steps % self.block_size
            last = first + steps
            if steps == 1:
                blocks = self.phase[first]
            else:
                blocks = sum(self.phase[first:last]) if last <= self.block_size else self.blocks_over(steps)
            if blocks:
                self.pool.take(blocks)
        self.token_steps = done = self.token_steps + steps
        self.computed_sum += steps * self.num_decodes
        if self.growing:
            self._window_sum += steps * self.growing
            self._cross()
        return self._ends[0][0] <= done

    def _cross(self) -> None:
        while self._crossings and self._crossings[0][0] <= self.token_steps:
            step, _, request = heappop(self._crossings)
            if request.crossing == step:  # there may be two entries: it left and came back with the same offset
                request.crossing = -1
                self.growing -= 1
                self._window_sum -= request.offset + step
                self.batch_version += 1
                self.crossed(request)

    def crossed(self, request: Request) -> None:
        """The context of a decoding request has reached the window."""

    @property
    def windowed_sum(self) -> int:
        """Sum of the KV lengths after the next step, each clipped to the window; 0 without one."""
        if self.window is None:
            return 0
        return self._window_sum + self.growing + (self.num_decodes - self.growing) * self.window

    def ended(self) -> list[Request]:
        """Take the requests that have made their last token out of the decoding batch, in order of admission."""
        ends = self._ends
        steps = self.token_steps
        done: list[Request] = []
        while ends and ends[0][0] <= steps:
            last_step, _, request = heappop(ends)
            if request.decoding and request.last_step == last_step:
                self.leave(request)
                done.append(request)
        return done

    # -- leaving -----------------------------------------------------------------------------------------------

    def release(self, request: Request) -> None:
        """A finished request leaves: its blocks are free, full ones stay cached."""
        computed = request.computed
        size = self.block_size
        self.running.pop(request, None)
        pool = self.pool
        if isinstance(pool, PrefixCache):
            pool.release(request.table, -(-computed // size), computed // size, returns=False)
        else:
            pool.free += -(-computed // size) if self._grows else request.reserved
        request.computed = 0

    def preempt(self, request: Request, step: Step, scheduled: int = 0) -> None:
        """Preempt by recomputation: the blocks are freed and the request goes to the head of the queue.

        scheduled: tokens already given to it in this step (their blocks are taken); they are taken back.
        """
        if self.detach(request, step, scheduled):  # else its last token is on the way and it leaves when that arrives
            self.waiting.appendleft(request)

    def detach(self, request: Request, step: Step, scheduled: int = 0) -> bool:
        """Take a running request out and free its blocks; all it has computed is lost. False: it has ended."""
        ended = not request.decoding and request not in self.prefilling
        if request.decoding:
            self.lanes[request.lane].leave(request)
        else:
            self.prefilling.pop(request, None)
        computed = request.computed
        held = computed + scheduled
        size = self.block_size
        pool = self.pool
        if isinstance(pool, PrefixCache):
            if request.table is None:
                request.table = BlockTable(())
            if scheduled and held <= request.target:
                pool.cache(request.table, held // size)
            # With asynchronous scheduling the newest token is not known yet, and so is no hash that covers it.
            known = held - 1 if self.args.async_scheduling and held > request.target else held
            pool.release(request.table, -(-held // size), known // size, returns=not ended)
        else:
            pool.free += -(-held // size) if self._grows else request.reserved
        del self.running[request]
        request.lost = max(computed, request.lost) if request.preemptions else computed
        request.computed = 0
        request.preemptions += 1
        step.preempted.append(request)
        if not ended and computed >= request.target:
            request.target = computed + 1
        return not ended

    # -- between engines ---------------------------------------------------------------------------------------

    def keep(self, request: Request) -> None:
        """A request has ended here but goes on elsewhere: its blocks are held until its KV has been read.

        Not so if it was preempted with its last token on the way: its KV is lost.
        """
        if request in self.running:
            del self.running[request]
            self.kept[request] = None

    def let_go(self, request: Request) -> None:
        """The KV of a kept request has been read."""
        del self.kept[request]
        self.release(request)

    def land(self, request: Request) -> None:
        """A request joins the decoding batch with KV from elsewhere: ``computed`` tokens, whose blocks are taken."""
        self._arrive(request)
        self.join(request, request.prompt_tokens + request.output_tokens - 1 - request.computed)

    def resume(self, request: Request) -> None:
        """A request comes with KV of all its prompt but the last token, in blocks taken: that one is computed here."""
        self.restore(request)
        self.tokens_recomputed += 1

    def restore(self, request: Request) -> None:
        """A request comes with KV of the tokens it has ``computed``, in blocks taken: the rest is computed here."""
        self._arrive(request)
        self.prefilling[request] = None

    def _arrive(self, request: Request) -> None:
        request.order = next(self.admissions)
        self.running[request] = None
        if request.table is not None and self.caching:
            assert isinstance(self.pool, PrefixCache)
            self.pool.cache(request.table, request.computed // self.block_size)

    # -- swapping ----------------------------------------------------------------------------------------------

    def blocks_held(self, request: Request) -> int:
        """Blocks of the tokens a request has computed, wherever they are."""
        computed = request.offset + self.token_steps if request.decoding else request.computed
        return -(-computed // self.block_size)

    def swap_out(self, request: Request, step: Step) -> None:
        """Preempt a decoding request by moving its KV to host memory: its blocks are free, its tokens stay computed."""
        self.leave(request)
        blocks = self.blocks_held(request)
        pool = self.pool
        if isinstance(pool, PrefixCache):
            pool.release(request.table, blocks, 0, returns=False)
        else:
            pool.free += blocks
        del self.running[request]
        request.lost = max(request.computed, request.lost) if request.preemptions else request.computed
        request.preemptions += 1
        step.preempted.append(request)
        self.swapped.append(request)

    def discard(self, request: Request, step: Step) -> None:
        """The KV of a swapped request is thrown away: it waits and is computed again."""
        self.swapped.remove(request)
        request.target = request.computed + 1
        request.computed = 0
        self.waiting.appendleft(request)
        if request not in step.preempted:  # else what it made is yet to be written down
            request.preemptions += 1
            request.first_token_step, request.last_step = self.token_steps, self.token_steps + 1  # since then: nothing
            step.preempted.append(request)

    def swap_in(self) -> None:
        """The next swapped request takes blocks again and decodes from this step on."""
        request = self.swapped.popleft()
        self.pool.take(self.blocks_held(request))
        if request.table is not None and self.caching:
            assert isinstance(self.pool, PrefixCache)
            self.pool.cache(request.table, request.computed // self.block_size)
        self.running[request] = None
        self.join(request, request.prompt_tokens + request.output_tokens - 1 - request.computed)
