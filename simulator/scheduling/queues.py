"""Waiting queues other than a plain ``deque``."""

from __future__ import annotations

from heapq import heappop, heappush

from simulator.scheduling.request import Request


class PriorityQueue:
    """vLLM's ``scheduling_policy: priority``: smaller priority first, then earlier arrival, then trace order."""

    __slots__ = ("_heap",)

    def __init__(self) -> None:
        self._heap: list[tuple[int, float, int, Request]] = []

    def __len__(self) -> int:
        return len(self._heap)

    def __getitem__(self, index: int) -> Request:
        return self._heap[index][3]

    def append(self, request: Request) -> None:
        heappush(self._heap, (request.priority, request.arrival, request.row, request))

    def appendleft(self, request: Request) -> None:
        self.append(request)  # a preempted request finds its place by itself

    def popleft(self) -> Request:
        return heappop(self._heap)[3]
