"""Between arrivals and replicas: asks the router, keeps the counters that routers read."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from simulator.cluster.candidates import Candidates
from simulator.cluster.replica import Replica
from simulator.routing import Fleet, Needs, Router
from simulator.scheduling.request import Request

Finished = Callable[[Request, float], None]


class Dispatcher:
    """Hands each request to the replica its router chooses."""

    def __init__(
        self,
        replicas: Sequence[Replica],
        router: Router,
        fleet: Fleet,
        candidates: Candidates,
        pass_on: Finished | None,
    ) -> None:
        """pass_on: told when a request has ended."""
        self._replicas = replicas
        self._router = router
        self._fleet = fleet
        self._candidates = candidates
        self._pass_on = pass_on
        self._counts = bool(router.needs & Needs.IN_FLIGHT)
        self._scrapes = bool(router.needs & (Needs.METRICS | Needs.CACHES))

    def deliver(self, request: Request, now: float) -> None:
        """A request arrives at the cluster."""
        fleet = self._fleet
        if self._scrapes:
            fleet.refresh(now)
        chosen = self._router.route(request, self._candidates.of(request.row), now)
        if self._counts:
            fleet.in_flight[chosen] += 1
            fleet.in_flight_tokens[chosen] += request.prompt_tokens
        self._replicas[chosen].receive(request, now)

    def finished_on(self, replica: int) -> Finished | None:
        """What the engine of ``replica`` calls when a request has ended; None: nobody wants to know."""
        fleet, pass_on = self._fleet, self._pass_on
        if not self._counts:
            return pass_on

        def finished(request: Request, time: float) -> None:
            fleet.in_flight[replica] -= 1
            fleet.in_flight_tokens[replica] -= request.prompt_tokens
            if pass_on is not None:
                pass_on(request, time)

        return finished
