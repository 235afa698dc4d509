"""Who has ended, without an event for it: engines catch up when a router is about to look."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from math import inf

from simulator.cluster.replica import Replica
from simulator.replica.steps import OnFinish
from simulator.scheduling.request import Request

Told = Callable[[int, Request, float], None]  # (replica, request, end)


class Ledger:
    """Tells which requests have ended on which replica, just before somebody wants to know.

    Between two requests nobody sees the replicas, so they need no events of their own: each says until when nobody can
    end on it (``Engine.quiet_until``), and is run up to now only when that time has come. What ends where is told in no
    particular order, but all that ended before ``now`` is told by ``look(now)``, and nothing else.
    """

    def __init__(self, told: Told) -> None:
        self._told = told
        self._due: list[tuple[float, int]] = []  # heap; entries that are not the replica's own any more are stale
        self._until: list[float] = []
        self._early: list[int] = []  # requests told before the engine reported them, per replica
        self._replicas: Sequence[Replica] = ()

    def watch(self, replicas: Sequence[Replica]) -> None:
        """All replicas, once they are built."""
        self._replicas = replicas
        self._until = [inf] * len(replicas)

    def on_finish(self, index: int) -> OnFinish:
        """What the engine of replica ``index`` calls when it lets a request go, which may be long after it ended."""
        early, told = self._early, self._told
        while len(early) <= index:
            early.append(0)

        def finished(request: Request, time: float) -> None:
            if early[index]:
                early[index] -= 1
            else:
                told(index, request, time)

        return finished

    def look(self, now: float) -> None:
        """Everybody who ended before ``now`` is told."""
        due = self._due
        while due and due[0][0] < now:
            until, index = heappop(due)
            if until != self._until[index]:
                continue
            engine = self._replicas[index].engine
            if engine.wake_time < now:
                engine.run_until(now)
            until = engine.quiet_until()
            releasing, early = engine.state.releasing, self._early
            if releasing:
                told = early[index]
                while told < len(releasing) and releasing[told][0] < now:
                    self._told(index, releasing[told][1], releasing[told][0])
                    told += 1
                early[index] = told
                if told < len(releasing) and releasing[told][0] < until:
                    until = releasing[told][0]
            self._until[index] = until
            if until < inf:
                heappush(due, (until, index))

    def changed(self, index: int) -> None:
        """A request has reached replica ``index``: somebody may end earlier than it said."""
        until = self._replicas[index].engine.quiet_until()
        if until < self._until[index]:
            self._until[index] = until
            heappush(self._due, (until, index))
