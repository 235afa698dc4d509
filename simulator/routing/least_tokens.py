"""Least outstanding tokens."""

from __future__ import annotations

from simulator.core.options import NoOptions, read_options
from simulator.routing.fleet import Ints, least
from simulator.routing.router import ROUTERS, Needs, Options, Router, Surroundings
from simulator.scheduling.request import Request


@ROUTERS.register("least-tokens")
class LeastTokens(Router):
    """The replica with the fewest prompt tokens in flight.

    Decides: the candidate whose requests, routed and not finished, have the fewest prompt tokens; the first on a tie.
    Why it helps: long prompts hold more KV and more compute than short ones, which a count of requests cannot see.
    Limits: answers are not counted, as their length is not known; a long prompt counts until its last token is out.
    Reference: Jain et al. (arXiv:2408.13510), join the shortest queue by tokens.
    """

    needs = Needs.IN_FLIGHT

    def __init__(self, around: Surroundings, options: Options) -> None:
        read_options(NoOptions, "least-tokens", options, "router")
        self._fleet = around.fleet

    def route(self, request: Request, candidates: Ints, now: float) -> int:
        del request, now
        return least(self._fleet.in_flight_tokens, candidates)
