"""What tiers do beside the steps: loads for which a request waits aside, and a look ahead along the queue."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from heapq import heappop, heappush
from itertools import chain
from math import inf

from simulator.kv.prefix import Hit, PrefixCache
from simulator.scheduling.request import Request
from simulator.scheduling.state import EngineState, Queue


class AsideQueue:
    """A waiting queue, before which come requests whose KV has been loaded; those being loaded are out of reach.

    As in vLLM, requests that hold blocks are admitted first (else those before them might wait for these blocks), and
    all three kinds count as waiting. True when somebody can be admitted.
    """

    __slots__ = ("_asides", "_waiting")

    def __init__(self, waiting: Queue, asides: Asides) -> None:
        self._waiting, self._asides = waiting, asides

    def __len__(self) -> int:
        return len(self._waiting) + len(self._asides.loaded) + len(self._asides.loading)

    def __bool__(self) -> bool:
        return len(self._waiting) > 0 or len(self._asides.loaded) > 0

    def __getitem__(self, index: int) -> Request:
        loaded = self._asides.loaded
        return loaded[index] if index < len(loaded) else self._waiting[index - len(loaded)]

    def __iter__(self) -> Iterator[Request]:
        loading = (request for _, _, request in self._asides.loading)
        return chain(self._asides.loaded, loading, (self._waiting[i] for i in range(len(self._waiting))))

    def append(self, request: Request) -> None:
        self._waiting.append(request)
        self._asides.queued(self._waiting)

    def appendleft(self, request: Request) -> None:
        self._waiting.appendleft(request)
        self._asides.queued(self._waiting, first=True)

    def popleft(self) -> Request:
        if self._asides.loaded:
            return self._asides.loaded.popleft()
        request = self._waiting.popleft()
        self._asides.unqueued(self._waiting, request)
        return request


class Asides:
    """Requests that wait aside for their KV, and the window at the head of the queue.

    Decides: a request at the head of the queue of whose prompt the tiers hold a part (worth loading) takes the blocks
    of that part and waits aside while it is read; steps go on, and so does the queue behind it. It must be possible to
    finish its prompt, beside those of everybody else begun. When all is there, it comes before the queue. The first
    ``window`` requests of the queue have their blocks brought up to the first tier.
    Why it helps: nobody else waits for a slow read.
    Limits: blocks are held while nothing is computed with them; what is looked up in the window is looked up once, as
    a request comes into it.
    Reference: WAITING_FOR_REMOTE_KVS of vLLM 0.33 (``v1/core/sched/scheduler.py``); CachedAttention's scheduler-aware
    fetching (Gao et al., USENIX ATC 2024, arXiv:2403.19708, section 3.3).
    """

    __slots__ = ("_number", "_seen", "_state", "loaded", "loading", "loads", "stuck", "window")

    def __init__(self, state: EngineState, *, loads: bool, window: int) -> None:
        """loads: requests wait aside, else in the step that admits them."""
        self._state = state
        self.loads = loads
        self.window = window
        self.loading: list[tuple[float, int, Request]] = []  # heap by when all is there, s
        self.loaded: deque[Request] = deque()
        self._seen: dict[Request, int] = {}  # of the queue's head, with the blocks that were expected; in order
        self._number = 0
        self.stuck = False  # the head of the queue could not be taken aside when the last step was planned
        state.asides = self
        state.waiting = AsideQueue(state.waiting, self)

    # -- loads -------------------------------------------------------------------------------------------------

    @property
    def next_load(self) -> float:
        """When the next request has got all its KV, s."""
        return self.loading[0][0] if self.loading else inf

    def load(self, request: Request, hit: Hit, spare: int) -> bool:
        """Take the head of the queue aside; False when blocks do not suffice, ``spare`` of which stay free."""
        state, pool, tiers = self._state, self._state.pool, self._state.tiers
        assert isinstance(pool, PrefixCache) and request.table is not None and tiers is not None
        need = state.blocks_of(request.target) - hit.blocks + hit.free_blocks + spare
        self.stuck = need > pool.free - self._promised()
        if self.stuck:
            return False
        state.waiting.popleft()
        ready = tiers.load_aside(request.row, request.table.ids, hit.blocks, hit.loaded)
        pool.hold(request.table, hit)
        pool.take(hit.loaded)
        request.computed = hit.reused * state.block_size
        self._number += 1
        heappush(self.loading, (ready, self._number, request))
        return True

    def _promised(self) -> int:
        """Free blocks that prompts begun will take: of running requests and of those aside."""
        state = self._state
        begun = chain(state.prefilling, self.loaded, (request for _, _, request in self.loading))
        return sum(state.blocks_for(request, request.target - request.computed) for request in begun)

    def land(self, now: float) -> bool:
        """Whose KV has come by ``now`` can be admitted, and others hit it. An engine's ``Action`` that never ends."""
        self.stuck = False
        pool = self._state.pool
        while self.loading and self.loading[0][0] <= now:
            _, _, request = heappop(self.loading)
            assert isinstance(pool, PrefixCache) and request.table is not None
            pool.cache(request.table, request.computed // self._state.block_size)
            self.loaded.append(request)
        return False

    def hit(self, request: Request) -> Hit | None:
        """What a request that has been aside holds."""
        if self.loaded and self.loaded[0] is request:
            return Hit([], request.computed // self._state.block_size, 0)
        return None

    def recall(self) -> list[Request]:
        """Everybody aside, their blocks freed: the engine fails."""
        state, pool = self._state, self._state.pool
        assert isinstance(pool, PrefixCache)
        gone = [*self.loaded, *(request for _, _, request in sorted(self.loading))]
        for request in gone:
            pool.release(request.table, request.computed // state.block_size, 0, returns=False)
            request.computed = 0
        self.loaded.clear()
        self.loading.clear()
        self.window = 0
        return gone

    # -- the window --------------------------------------------------------------------------------------------

    def queued(self, waiting: Queue, *, first: bool = False) -> None:
        """Somebody has joined the queue, at its head if ``first``."""
        if first and self.window:
            self._look(waiting[0])
        else:
            self._fill(waiting)

    def unqueued(self, waiting: Queue, request: Request) -> None:
        """The request has left the head of the queue."""
        limit = self._seen.pop(request, None)
        if limit is not None and request.table is not None:
            assert self._state.tiers is not None
            self._state.tiers.served(request.table.ids, limit)
        self._fill(waiting)

    def _fill(self, waiting: Queue) -> None:
        """Those within the window are looked at; who was pushed out of it by others who came first stays seen."""
        while (count := len(self._seen)) < min(self.window, len(waiting)):
            self._look(waiting[count])

    def _look(self, request: Request) -> None:
        state, pool = self._state, self._state.pool
        self._seen[request] = limit = (request.target - 1) // state.block_size
        if request.table is not None:
            assert isinstance(pool, PrefixCache) and state.tiers is not None
            state.tiers.expect(request.table.ids, pool.lookup(request.table, limit).blocks, limit)
