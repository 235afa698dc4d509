"""An engine on the clock: one event per span, replaced when an arrival cuts the span."""

from __future__ import annotations

from math import inf

from simpy.events import Event

from simulator.cluster.clock import PLAN, Clock
from simulator.replica.engine import Engine
from simulator.scheduling.request import Request


class Replica:
    """Wakes its engine when the engine asks for it."""

    __slots__ = ("_event", "clock", "engine")

    def __init__(self, clock: Clock, engine: Engine) -> None:
        self.clock = clock
        self.engine = engine
        self._event: Event | None = None

    def receive(self, request: Request, now: float) -> None:
        """A request has been routed here."""
        if self.engine.add(request, now):
            self._event = self.clock.at(self.engine.wake_time, PLAN, self._wake)

    def _wake(self, event: Event) -> None:
        if event is not self._event:
            return  # the span it was scheduled for was cut short
        engine = self.engine
        engine.wake(engine.wake_time)
        time = engine.wake_time
        if time < inf:
            self._event = self.clock.at(time, PLAN, self._wake)
