"""Power of two choices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from simulator.core.options import Range, read_options
from simulator.routing.fleet import Ints
from simulator.routing.router import ROUTERS, Needs, Options, Router, Surroundings, Uniforms
from simulator.scheduling.request import Request


@dataclass(frozen=True, slots=True)
class Choices:
    """choices: replicas drawn per request. load: what is compared, requests in flight or their prompt tokens."""

    choices: Annotated[int, Range(1)] = 2
    load: Literal["requests", "tokens"] = "requests"


@ROUTERS.register("power-of-two")
class PowerOfTwo(Router):
    """The less loaded of two replicas drawn at random.

    Decides: draws ``choices`` different candidates and takes the one with the least in flight, the first drawn on a
    tie.
    Why it helps: the queue's tail falls doubly exponentially instead of exponentially, for two look-ups; routers that
    do not know of each other do not herd.
    Limits: a request counts one, however long; caches are shared by nobody.
    Reference: Mitzenmacher, IEEE TPDS 12 (2001), 10.1109/71.963420; vLLM's and SGLang's routers (power_of_two).
    """

    needs = Needs.IN_FLIGHT

    def __init__(self, around: Surroundings, options: Options) -> None:
        chosen = read_options(Choices, "power-of-two", options, "router")
        self._choices = chosen.choices
        self._draw = Uniforms(around.rng)
        fleet = around.fleet
        self._load = fleet.counts if chosen.load == "requests" else fleet.token_counts

    def route(self, request: Request, candidates: Ints, now: float) -> int:
        del request, now
        n = len(candidates)
        drawn: list[int] = []
        while len(drawn) < min(self._choices, n):
            position = self._draw.below(n)
            if position not in drawn:
                drawn.append(position)
        load = self._load
        best = int(candidates[drawn[0]])
        for position in drawn[1:]:
            other = int(candidates[position])
            if load[other] < load[best]:
                best = other
        return best
