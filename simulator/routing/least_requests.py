"""Least outstanding requests."""

from __future__ import annotations

from collections.abc import Mapping

from simulator.core.options import NoOptions, read_options
from simulator.routing.fleet import Ints, least
from simulator.routing.router import ROUTERS, Needs, Router, Surroundings
from simulator.scheduling.request import Request


@ROUTERS.register("least-requests")
class LeastRequests(Router):
    """The replica with the fewest requests in flight (join the shortest queue).

    Decides: the candidate with the fewest requests routed and not finished; the first of them on a tie.
    Why it helps: follows every imbalance at once, with counters that pass through the router anyway.
    Limits: a request counts one, however long.
    Reference: Winston, J. Appl. Prob. 14 (1977), 10.2307/3213271; Envoy's LEAST_REQUEST.
    """

    needs = Needs.IN_FLIGHT

    def __init__(self, around: Surroundings, options: Mapping[str, bool | int | float | str]) -> None:
        read_options(NoOptions, "least-requests", options, "router")
        self._fleet = around.fleet

    def route(self, request: Request, candidates: Ints, now: float) -> int:
        del request, now
        return least(self._fleet.in_flight, candidates)
