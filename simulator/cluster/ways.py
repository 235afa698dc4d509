"""How requests reach replicas that come and go, and who takes them from one to another meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from simulator.cluster.dispatcher import Dispatcher, Finished, Receiver
from simulator.cluster.life import Life
from simulator.scheduling.request import Request

Lost = list[tuple[Life, Request]]  # (where the routers count it, as it is to be computed again)
Move = Callable[[Life, float], bool]  # (replica that drains, time) -> done


class Ways(Protocol):
    """The routers, as a lifecycle sees them."""

    def told_on(self, slot: int) -> Finished:
        """To be called when a request ends in a place."""
        ...

    def opened(self, life: Life, now: float) -> None:
        """A replica is ready for requests."""
        ...

    def shut(self, life: Life) -> None:
        """It has failed or is cut, and routers do not know: what comes from now on is lost with it."""
        ...

    def buried(self, life: Life, now: float) -> Lost:
        """Routers know. Returns what had been sent there meanwhile."""
        ...

    def left(self, life: Life, request: Request) -> None:
        """A request is not there any more and has not ended."""
        ...

    def joined(self, life: Life, request: Request) -> None:
        """A request has come there from another replica, which it has left, with its KV."""
        ...

    def route(self, request: Request, now: float) -> None:
        """A request needs a replica."""
        ...

    def waiting(self, life: Life) -> int:
        """Requests that wait to enter its engine, those in the engine's own queue left out."""
        ...

    def flush(self, now: float) -> None:
        """Who waits for a replica may have one now."""
        ...


class Traveller(Protocol):
    """Whoever takes requests from one replica to another."""

    def strand(self, life: Life, end: float, lost: Lost) -> None:
        """Called between two steps of a replica that goes for good at ``end`` (s), with nobody left in its engine: add
        to ``lost`` who was on the way to it or held there for others, now or right after ``end``."""
        ...

    def holds(self, life: Life) -> bool:
        """Whether somebody is on the way to or from it, so that it is not empty."""
        ...


class Grave:
    """In the place of a replica that is not there: what is sent there is lost."""

    def __init__(self) -> None:
        self.received: list[Request] = []

    def receive(self, request: Request, now: float) -> None:
        del now
        self.received.append(request)


class Direct:
    """One router, replicas that serve whole requests."""

    def __init__(self, dispatcher: Dispatcher, places: int) -> None:
        self._dispatcher = dispatcher
        self.entrance: Callable[[Life], Receiver] = lambda life: life.replica
        self.told_on, self.route, self.flush = dispatcher.told_on, dispatcher.route, dispatcher.flush
        dispatcher.replicas = [Grave() for _ in range(places)]

    def opened(self, life: Life, now: float) -> None:
        del now
        self._dispatcher.replicas[life.slot] = self.entrance(life)

    def shut(self, life: Life) -> None:
        self._dispatcher.replicas[life.slot] = Grave()

    def buried(self, life: Life, now: float) -> Lost:
        del now
        grave = self._dispatcher.replicas[life.slot]
        return [(life, request) for request in grave.received] if isinstance(grave, Grave) else []

    def left(self, life: Life, request: Request) -> None:
        self._dispatcher.left(life.slot, request)

    def joined(self, life: Life, request: Request) -> None:
        self._dispatcher.joined(life.slot, request)

    def waiting(self, life: Life) -> int:
        del life
        return 0
