"""Capacity-weighted routing for replicas that differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from simulator.core.options import read_options
from simulator.routing.fleet import Floats, Ints, least
from simulator.routing.router import ROUTERS, Needs, Options, Router, Surroundings
from simulator.scheduling.request import Request


@dataclass(frozen=True, slots=True)
class By:
    """by: turns, shares of the requests by weight; requests, the fewest in flight per weight."""

    by: Literal["turns", "requests"] = "turns"


@ROUTERS.register("capacity-weighted")
class CapacityWeighted(Router):
    """Replicas in proportion to their weight (``weight`` of their group: by default steps per second).

    Decides: turns: every candidate earns its weight, the richest is chosen and pays the sum of all, the first of them
    on a tie; so shares are exact and a heavy replica's turns are spread out. requests: the candidate with the fewest
    requests in flight, the new one included, for its weight.
    Why it helps: in a mixed fleet equal shares overload the slow GPUs while the fast ones idle.
    Limits: one number per replica: prompts and answers may favour different GPUs, and turns are blind to load.
    Reference: smooth weighted round robin of nginx (ngx_http_upstream_round_robin); weighted least connections of the
    Linux Virtual Server.
    """

    def __init__(self, around: Surroundings, options: Options) -> None:
        chosen = read_options(By, "capacity-weighted", options, "router")
        self._fleet = around.fleet
        self._turns = chosen.by == "turns"
        self.needs = Needs.NOTHING if self._turns else Needs.IN_FLIGHT
        self._earned: Floats = np.zeros(around.fleet.size)

    def route(self, request: Request, candidates: Ints, now: float) -> int:
        del request, now
        weight = self._fleet.weight
        if not self._turns:
            return least((self._fleet.in_flight + 1) / weight, candidates)
        earned = self._earned
        if len(candidates) == len(earned):
            earned += weight
            chosen, paid = int(earned.argmax()), float(weight.sum())
        else:
            earned[candidates] += weight[candidates]
            chosen, paid = int(candidates[earned[candidates].argmax()]), float(weight[candidates].sum())
        earned[chosen] -= paid
        return chosen
