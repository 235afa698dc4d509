"""Between arrivals and replicas: lets in, asks the router, keeps the counters routers read and the router's queue."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from simpy.events import Event

from simulator.cluster.admission import QUEUE, TIMEOUT, Admission, Door, Gate, Waiting
from simulator.cluster.candidates import Candidates, Ints
from simulator.cluster.clock import ARRIVAL, Clock
from simulator.cluster.ledger import Ledger
from simulator.cluster.replica import Replica
from simulator.replica.recorder import Columns
from simulator.replica.records import Status
from simulator.routing import Fleet, Needs, Router
from simulator.scheduling.request import Request

Finished = Callable[[Request, float], None]
Receive = Callable[[Request, float], None]


class Receiver(Protocol):
    """Where a request can be sent: a replica, or what stands in its place."""

    def receive(self, request: Request, now: float) -> None: ...


@dataclass(frozen=True, slots=True)
class Through:
    """In the place of a replica that requests reach by another way."""

    receive: Receive


class Dispatcher:
    """Hands each request to the replica its router chooses, or keeps it at the door, or turns it away.

    ``deliver`` is for arrivals; ``route`` for requests that are inside already and need another replica; ``left`` for
    those that leave one without having ended; ``flush`` when a replica has opened. Whoever changes ``replicas`` or
    calls these in the middle of a simulation asks for ``watched`` replicas.
    """

    def __init__(
        self,
        clock: Clock,
        columns: Columns,
        router: Router,
        fleet: Fleet,
        candidates: Candidates,
        pass_on: Finished | None,
        *,
        gate: Gate | None = None,
        watched: bool = False,
        also: Needs = Needs.NOTHING,
    ) -> None:
        """pass_on: told when a request has ended. watched: its finishes must be told when they happen.
        also: what others who share the fleet need to be counted here too.
        """
        plan = Admission() if gate is None else gate.plan
        self._clock, self._columns = clock, columns
        self._router, self._fleet, self._candidates = router, fleet, candidates
        self._pass_on, self._gate, self._plan = pass_on, gate, plan
        self._holds = plan.holds
        needs = router.needs | also | (Needs.IN_FLIGHT if plan.max_in_flight is not None else Needs.NOTHING)
        if plan.reject_predicted_miss:
            needs |= Needs.METRICS | Needs.QUEUED_TOKENS
        self.needs = needs
        self._scrapes = bool(needs & (Needs.METRICS | Needs.CACHES | Needs.QUEUED_TOKENS))
        self._queued = bool(needs & Needs.QUEUED_TOKENS)
        self._tells = bool(needs & Needs.ENDINGS)
        self._hears = bool(needs & Needs.FINISHES)
        self._counts = bool(needs & Needs.IN_FLIGHT) or self._tells or self._hears
        self.watched = watched or pass_on is not None or self._holds
        self._ledger = Ledger(self._ended) if self._counts and not self.watched else None
        self.replicas: list[Receiver] = []  # by place, as routers number them
        self._collectors: list[Finished] = []  # their ``collect``, where nobody looks at them meanwhile
        self.queue_timeout_s = plan.queue_timeout_s  # s at the door, None: for ever
        self.door = Door(None if gate is None else gate.rank)
        self.turned_away: Finished | None = None  # told of those who have waited too long or in vain
        self._drains = False  # an event that looks at the door is scheduled
        self.rejected: Counter[str] = Counter()  # by reason

    # -- building ------------------------------------------------------------------------------------------------

    def finished_on(self, index: int) -> Finished | None:
        """What the engine of a replica calls when a request has ended; None: nobody wants to know."""
        if self._ledger is not None:
            return self._ledger.on_finish(index)
        return self.told_on(index) if self.watched else None

    def told_on(self, index: int) -> Finished:
        """To be called when a request ends on the replica at ``index``, when it happens."""

        def finished(request: Request, time: float) -> None:
            self._ended(index, request, time)
            if self._pass_on is not None:
                self._pass_on(request, time)
            if self.door:
                self.flush(time)

        return finished

    @property
    def eager(self) -> bool:
        """Whether a look at the engines must find that who has ended has left."""
        return self.watched or self._scrapes

    def connect(self, replicas: Sequence[Replica]) -> None:
        """The replicas, once they are built."""
        self.replicas = list(replicas)
        if not (self.watched or self._counts or self._scrapes):
            self._collectors = [replica.collect for replica in replicas]
        if self._ledger is not None:
            self._ledger.watch(replicas)

    # -- requests ------------------------------------------------------------------------------------------------

    def deliver(self, request: Request, now: float) -> None:
        """A request arrives at the cluster."""
        if self._gate is not None:
            self._know(now)
            reason = self._gate.refuses(request, self._candidates.of(request.row), now)
            if reason is not None:
                self._reject(request, now, reason)
                return
        self.route(request, now)

    def route(self, request: Request, now: float) -> None:
        """A request needs a replica: one that is open, or to wait until one is."""
        candidates = self._candidates.of(request.row)
        if self._holds:
            self._know(now)
            candidates = self._with_room(candidates)
        if not len(candidates) or (self._holds and self.door):
            self._wait(request, now)
        else:
            self._place(request, candidates, now)

    def _place(self, request: Request, candidates: Ints, now: float) -> None:
        ledger = self._ledger
        if ledger is not None:
            ledger.look(now)
        fleet = self._fleet
        if self._scrapes:
            fleet.refresh(now)
        chosen = self._router.route(request, candidates, now)
        if self._counts:
            fleet.counts[chosen] += 1
            fleet.token_counts[chosen] += request.prompt_tokens
        if self._queued:
            fleet.queued_tokens[chosen] += request.prompt_tokens
        if self._collectors:
            self._collectors[chosen](request, now)
        else:
            self.replicas[chosen].receive(request, now)
        if ledger is not None:
            ledger.changed(chosen)

    def candidates_of(self, row: int) -> Ints:
        """Replicas that are open and could serve a row."""
        return self._candidates.of(row)

    def joined(self, index: int, request: Request) -> None:
        """A request has come to a replica from another one."""
        if self._counts:
            self._fleet.sent(index, request.prompt_tokens)
            if self._tells:
                self._router.joined(request, index)

    def left(self, index: int, request: Request) -> None:
        """A request has gone from a replica without having ended: counters and routers forget it there."""
        self._gone(index, request)

    def _ended(self, index: int, request: Request, time: float) -> None:
        self._gone(index, request)
        if self._hears:
            self._router.finished(request, index, time)

    def _gone(self, index: int, request: Request) -> None:
        if self._counts:
            fleet = self._fleet
            fleet.counts[index] -= 1
            fleet.token_counts[index] -= request.prompt_tokens
            if self._tells:
                self._router.ended(request, index)

    def _know(self, now: float) -> None:
        """Bring what is known of the replicas up to date."""
        if self._ledger is not None:
            self._ledger.look(now)
        if self._scrapes:
            self._fleet.refresh(now)

    def _reject(self, request: Request, now: float, reason: str) -> None:
        """It ends here and now; who waits for its answer goes on. One that has run before has failed."""
        row = request.row
        served = self._columns.replica[row] >= 0
        self._columns.status[row] = Status.FAILED if served else Status.REJECTED
        if not served:
            self.rejected[reason] += 1
        if self.turned_away is not None:
            self.turned_away(request, now)
        if self._pass_on is not None:
            self._pass_on(request, now)

    def withdraw(self, row: int) -> None:
        """A request at the door does not need a replica any more."""
        self.door.withdraw(row)

    # -- the door ------------------------------------------------------------------------------------------------

    def _with_room(self, candidates: Ints) -> Ints:
        limit = self._plan.max_in_flight
        assert limit is not None
        room = self._fleet.in_flight[candidates] < limit
        return candidates if room.all() else candidates[np.flatnonzero(room)]

    def _wait(self, request: Request, now: float) -> None:
        plan = self._plan
        if plan.max_queue is not None and len(self.door) >= plan.max_queue:
            self._reject(request, now, QUEUE)
            return
        waiting = self.door.enter(self._candidates.kind(request.row), request, now)
        if self.queue_timeout_s is not None:
            self._clock.at(now + self.queue_timeout_s, ARRIVAL, lambda _: self._give_up(waiting))

    def _give_up(self, waiting: Waiting) -> None:
        if waiting.here:
            self.door.leave(waiting)
            self._reject(waiting.request, float(self._clock.now), TIMEOUT)

    def flush(self, time: float) -> None:
        """Somebody at the door may have a replica now: a request has ended, or a replica has opened, at ``time``."""
        if not self._drains and self.door:
            self._drains = True
            self._clock.at(time, ARRIVAL, self._drain)

    def _drain(self, _: Event) -> None:
        """Let in whom there is room for, in order; a line whose replicas are full does not hold up the others."""
        self._drains = False
        now = float(self._clock.now)
        moved = True
        while moved:
            moved = False
            for kind, request in self.door.heads():
                candidates = self._candidates.of(request.row)
                if self._holds:
                    candidates = self._with_room(candidates)
                if len(candidates):
                    self._place(self.door.pop(kind), candidates, now)
                    moved = True
                    break

    def close(self, *, drained: bool) -> None:
        """The simulation stops. drained: nothing will happen any more, so who still waits has waited in vain."""
        if drained:
            for request in self.door.empty():
                self._columns.status[request.row] = Status.FAILED
