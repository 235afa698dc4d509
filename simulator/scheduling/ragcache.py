"""Cache-aware order of the waiting queue."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from itertools import islice
from typing import Annotated

from simulator.core.errors import PolicyError
from simulator.core.options import Range, read_options
from simulator.scheduling.args import EngineArgs
from simulator.scheduling.policy import POLICIES
from simulator.scheduling.request import Request
from simulator.scheduling.state import EngineState
from simulator.scheduling.step import DECODE, Step
from simulator.scheduling.vllm import Vllm


@dataclass(frozen=True, slots=True)
class RagCacheOptions:
    """window: requests looked at from the head of the queue, and how often one may be passed over."""

    window: Annotated[int, Range(1)] = 32


class CacheFirst:
    """Waiting requests in order of arrival, of which ``[0]`` is the one with the most cached for what it must compute.

    Who is next is found anew after ``look`` and whenever the queue changes, among the first ``window``; one that
    ``window`` others have passed goes first.
    """

    __slots__ = ("_next", "_passed", "_queue", "_state", "_window")

    def __init__(self, state: EngineState, window: int) -> None:
        self._state, self._window = state, window
        self._queue: deque[Request] = deque()
        self._passed: dict[Request, int] = {}
        self._next: int | None = None  # index in the queue of who is next

    def __len__(self) -> int:
        return len(self._queue)

    def __getitem__(self, index: int) -> Request:
        if index:
            return self._queue[index]
        if self._next is None:
            self._next = self._best()
        return self._queue[self._next]

    def append(self, request: Request) -> None:
        self._queue.append(request)
        self.look()

    def appendleft(self, request: Request) -> None:
        self._queue.appendleft(request)
        self.look()

    def popleft(self) -> Request:
        request = self[0]
        assert self._next is not None
        for passed in islice(self._queue, self._next):
            self._passed[passed] = self._passed.get(passed, 0) + 1
        del self._queue[self._next]
        self._passed.pop(request, None)
        self.look()
        return request

    def look(self) -> None:
        """What is cached may have changed."""
        self._next = None

    def _best(self) -> int:
        best, most = 0, -1.0
        for index, request in enumerate(islice(self._queue, self._window)):
            if self._passed.get(request, 0) >= self._window:
                return index
            cached = self._state.hit(request).reused * self._state.block_size
            worth = cached / (request.target - cached)
            if worth > most:
                best, most = index, worth
        return best


@POLICIES.register("ragcache")
class RagCache(Vllm):
    """vLLM's engine with RAGCache's cache-aware reordering.

    Decides: of the first ``window`` waiting requests, the one with the highest ratio of cached tokens (in GPU memory or
    in a tier) to tokens to compute is admitted next; one that has been passed over ``window`` times goes first. All
    else as in ``vllm``.
    Why it helps: requests for the same documents follow each other while those are cached, and short computations come
    before long ones.
    Limits: only a queue can be put in order; a request without a hit waits longer. While requests wait that may be
    admitted, every step is planned by itself.
    Reference: Jin et al., RAGCache (arXiv:2404.12457), section 5.2.
    """

    pipelines = False
    speculates = False
    unused = frozenset({"scheduling_policy"})

    def __init__(self, args: EngineArgs) -> None:
        super().__init__(replace(args, options={}))
        self.window = read_options(RagCacheOptions, args.policy, args.options).window
        if args.enable_prefix_caching is False:
            raise PolicyError(
                f"engine policy {args.policy!r} goes by what is cached, and nothing is.",
                remedy="Turn enable_prefix_caching on, or use policy vllm.",
            )

    def prepare(self, state: EngineState) -> None:
        self.queue = CacheFirst(state, self.window)
        state.waiting = self.queue

    def arrive(self, state: EngineState, request: Request) -> bool:
        self.queue.append(request)
        return len(state.running) - len(state.releasing) < self.max_num_seqs

    def schedule(self, state: EngineState) -> Step | None:
        self.queue.look()
        step = super().schedule(state)
        if step is DECODE and self.queue and len(state.running) < self.max_num_seqs:
            return Step(decodes=True)  # another request may be next after any step: tiers read and copy, caches forget
        return step
