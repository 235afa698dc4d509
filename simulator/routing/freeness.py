"""Llumnix's dispatch: to the freest replica."""

from __future__ import annotations

import numpy as np

from simulator.core.options import NoOptions, read_options
from simulator.routing.fleet import Ints
from simulator.routing.router import ROUTERS, Needs, Options, Router, Surroundings
from simulator.scheduling.request import Request


@ROUTERS.register("freeness")
class Freeness(Router):
    """The replica whose requests could all go on longest before its memory is full.

    Decides: the candidate with the most (tokens free - prompt tokens queued) / requests in flight; the first of them
    on a tie. Free memory is as last reported, queued prompts and requests are counted here.
    Why it helps: looks at memory, which decides on preemptions, and at how fast it is used up; negative for replicas
    whose queue cannot be served, which are then the last choice.
    Limits: a request in flight counts one, whether it begins or ends; what was free when last reported may be gone.
    Reference: Sun et al., Llumnix, OSDI 2024 (arXiv:2406.03243), section 4.4; goes together with ``cluster.migration``.
    """

    needs = Needs.IN_FLIGHT | Needs.METRICS | Needs.QUEUED_TOKENS

    def __init__(self, around: Surroundings, options: Options) -> None:
        read_options(NoOptions, "freeness", options, "router")
        self._fleet = around.fleet

    def route(self, request: Request, candidates: Ints, now: float) -> int:
        del request, now
        fleet = self._fleet
        tokens = fleet.free_blocks[candidates] * fleet.block_size[candidates] - fleet.queued_tokens[candidates]
        freeness = tokens / np.maximum(fleet.in_flight[candidates], 1)
        return int(candidates[int(freeness.argmax())])
