"""Which prompt tokens an engine computes when: for KV that leaves while its prompt is being computed."""

from __future__ import annotations

from collections.abc import Callable

from simulator.cluster.clock import PLAN
from simulator.cluster.handover import Chunk
from simulator.cluster.replica import Replica
from simulator.replica.engine import Observer
from simulator.scheduling import EngineState
from simulator.scheduling.request import Request
from simulator.scheduling.step import Step


class Chunks:
    """Watches an engine's steps: tells of each chunk when its step's time is known."""

    def __init__(
        self,
        replica: Replica,
        tell: Callable[[Request, Chunk, float], None],
        preempted: Callable[[Request, float], None],
        another: Observer | None,
    ) -> None:
        """preempted: told of prompts that were begun and wait again. another: who watches too."""
        self._replica = replica
        self._tell = tell
        self._preempted = preempted
        self._begun: dict[Request, int] = {}  # prompts being computed -> how often they had been preempted
        self._another = another
        self._planned: list[tuple[Request, int, int]] = []  # (request, first token, end) of the step planned last
        self._begin = 0.0

    def settled(self, now: float, state: EngineState) -> None:
        self._flush(now)
        if self._begun:
            self._replica.clock.at(now, PLAN, lambda _: self._flush(now))
        if self._another is not None:
            self._another.settled(now, state)

    def planned(self, now: float, begin: float, step: Step, state: EngineState) -> None:
        self._flush(now)
        if self._another is not None:
            self._another.planned(now, begin, step, state)
        if step.chunks:
            self._begin = begin
            pairs = zip(step.requests, step.chunks, strict=True)
            self._planned = [(request, computed, computed + new) for request, (new, computed) in pairs]
            self._replica.clock.at(now, PLAN, lambda _: self._flush(now))

    def _flush(self, now: float) -> None:
        """The step planned last has been priced by now."""
        planned, self._planned = self._planned, []
        for request, first, last in planned:
            self._tell(request, Chunk(first, last, self._begin, self._replica.engine.busy_until), now)
            self._begun.setdefault(request, request.preemptions)
        prefilling = self._replica.engine.state.prefilling
        for request, before in list(self._begun.items()):
            if request.preemptions != before:
                del self._begun[request]
                self._preempted(request, now)
            elif request not in prefilling:
                del self._begun[request]
