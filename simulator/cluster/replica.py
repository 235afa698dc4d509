"""An engine on the clock."""

from __future__ import annotations

from array import array
from math import inf, nextafter

from simpy.events import Event

from simulator.cluster.clock import PLAN, Clock
from simulator.cluster.plan import Group
from simulator.replica.moves import AnyEngine
from simulator.replica.steps import Action
from simulator.scheduling.request import Request

INBOX = 128  # requests collected


class Replica:
    """Wakes its engine when the engine asks for it.

    A *watched* replica has one event per span, replaced when an arrival cuts the span: whoever waits for its finishes
    hears of them when they happen. Nobody can tell when the engine of an unwatched one computes, so it catches up when
    a request reaches it, without events; its records are the same.
    """

    __slots__ = ("_event", "_hosts", "_inbox", "clock", "engine", "group", "index", "place", "watched")

    def __init__(
        self,
        index: int,
        group: Group,
        clock: Clock,
        engine: AnyEngine,
        hosts: array[int],
        *,
        watched: bool,
        place: int,
    ) -> None:
        """index: of its life, in the records. place: what routers and the topology number. hosts: replica of each row
        of the trace, written here."""
        self._hosts = hosts
        self.index = index
        self.place = place
        self.group = group
        self.clock = clock
        self.engine = engine
        self.watched = watched
        self._event: Event | None = None
        self._inbox: list[tuple[Request, float]] = []

    def receive(self, request: Request, now: float) -> None:
        """A request has been routed here."""
        self._hosts[request.row] = self.index
        engine = self.engine
        if not self.watched:
            if engine.wake_time < now:
                engine.run_until(now)
            engine.add(request, now)
        elif engine.add(request, now):
            self._event = self.clock.at(engine.wake_time, PLAN, self._wake)

    def collect(self, request: Request, now: float) -> None:
        """As ``receive``, for a replica that nobody looks at until it is asked to ``catch_up``.

        Its engine then computes for a while at a stretch, which keeps its state in the processor's caches.
        """
        self._hosts[request.row] = self.index
        inbox = self._inbox
        inbox.append((request, now))
        if len(inbox) >= INBOX:
            self.catch_up()

    def catch_up(self) -> None:
        """Serve what has been collected."""
        engine = self.engine
        for request, now in self._inbox:
            if engine.wake_time < now:
                engine.run_until(now)
            engine.add(request, now)
        self._inbox.clear()

    def at_next_step(self, action: Action, now: float) -> None:
        """See ``Engine``. Watched replicas only."""
        if self.engine.at_next_step(action, now):
            self._event = self.clock.at(self.engine.wake_time, PLAN, self._wake)

    def _wake(self, event: Event) -> None:
        if event is not self._event:
            return  # the span it was scheduled for was cut short
        engine = self.engine
        engine.run_until(nextafter(engine.wake_time, inf))
        if engine.wake_time < inf:
            self._event = self.clock.at(engine.wake_time, PLAN, self._wake)
