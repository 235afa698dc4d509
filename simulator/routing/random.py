"""Random."""

from __future__ import annotations

from simulator.core.options import NoOptions, read_options
from simulator.routing.fleet import Ints
from simulator.routing.router import ROUTERS, Options, Router, Surroundings, Uniforms
from simulator.scheduling.request import Request


@ROUTERS.register("random")
class Random(Router):
    """Any replica, each as likely as the others.

    Decides: a uniformly drawn candidate.
    Why it helps: no state at all, so any number of routers agree without talking to each other.
    Limits: queues as if the others were not there: with Poisson arrivals every replica is an M/G/1 queue of its own.
    Reference: Mitzenmacher, IEEE TPDS 12 (2001), 10.1109/71.963420, whose baseline it is.
    """

    def __init__(self, around: Surroundings, options: Options) -> None:
        read_options(NoOptions, "random", options, "router")
        self._draw = Uniforms(around.rng)

    def route(self, request: Request, candidates: Ints, now: float) -> int:
        del request, now
        return int(candidates[self._draw.below(len(candidates))])
