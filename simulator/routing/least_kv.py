"""Least KV usage."""

from __future__ import annotations

import numpy as np

from simulator.core.options import NoOptions, read_options
from simulator.routing.fleet import Ints
from simulator.routing.router import ROUTERS, Needs, Options, Router, Surroundings, Uniforms
from simulator.scheduling.request import Request


@ROUTERS.register("least-kv")
class LeastKv(Router):
    """The replica whose KV cache was least used when it last reported.

    Decides: the candidate with the smallest share of KV blocks in use; any of them, drawn at random, on a tie.
    Why it helps: KV is what runs out first, and its use follows prompts, answers and idle time without any prediction.
    Limits: as old as the last report (``metrics_interval_s``): until the next one all requests herd to one replica.
    Reference: the kv-cache-utilization scorer of the Kubernetes Gateway API Inference Extension, alone.
    """

    needs = Needs.METRICS

    def __init__(self, around: Surroundings, options: Options) -> None:
        read_options(NoOptions, "least-kv", options, "router")
        self._fleet = around.fleet
        self._draw = Uniforms(around.rng)

    def route(self, request: Request, candidates: Ints, now: float) -> int:
        del request, now
        usage = self._fleet.kv_usage[candidates]
        best = candidates[np.flatnonzero(usage == usage.min())]
        return int(best[self._draw.below(len(best)) if len(best) > 1 else 0])
