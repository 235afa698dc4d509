"""What policies share that serve waiting requests in an order of their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from heapq import heapify, heappop, heappush

from simulator.scheduling.args import EngineArgs
from simulator.scheduling.request import Request
from simulator.scheduling.state import EngineState
from simulator.scheduling.vllm import Vllm

Rank = tuple[float, ...]  # smaller is served first


class RankedQueue:
    """Waiting requests by rank, then arrival, then trace order."""

    __slots__ = ("_heap", "_rank")

    def __init__(self, rank: Callable[[Request], Rank]) -> None:
        self._rank = rank
        self._heap: list[tuple[Rank, float, int, Request]] = []

    def __len__(self) -> int:
        return len(self._heap)

    def __getitem__(self, index: int) -> Request:
        return self._heap[index][3]

    def append(self, request: Request) -> None:
        heappush(self._heap, (self._rank(request), request.arrival, request.row, request))

    appendleft = append  # a preempted request finds its place by itself

    def popleft(self) -> Request:
        return heappop(self._heap)[3]

    def resort(self) -> None:
        """Ranks have changed."""
        self._heap = [(self._rank(request), arrival, row, request) for _, arrival, row, request in self._heap]
        heapify(self._heap)


class Ordered(Vllm):
    """vLLM's steps with the waiting queue in order of ``rank``; out of blocks, who comes last in it gives way.

    A rank must not change while its request waits. Preemption is by recomputation.
    """

    unused = frozenset({"scheduling_policy"})

    def __init__(self, args: EngineArgs) -> None:
        super().__init__(replace(args, options={}))  # the options are the derived policy's
        self.by_priority = True  # whoever is preempted may stand anywhere in the batch

    def rank(self, request: Request) -> Rank:
        raise NotImplementedError

    def prepare(self, state: EngineState) -> None:
        state.waiting = RankedQueue(self.rank)

    def _victim(self, state: EngineState) -> Request:
        return max(state.running, key=lambda request: (self.rank(request), request.arrival, request.row))
