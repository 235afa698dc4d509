"""Max-min offloading: to the replica with the least predicted work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from simulator.core.errors import PolicyError
from simulator.core.options import Range, read_options
from simulator.routing.fleet import Ints, least
from simulator.routing.router import ROUTERS, Needs, Options, Router, Surroundings
from simulator.scheduling.request import Request


@dataclass(frozen=True, slots=True)
class Slice:
    """slice_tokens: output tokens that a request is expected to make before it ends or comes back."""

    slice_tokens: Annotated[int, Range(1)] = 128


@ROUTERS.register("max-min")
class MaxMin(Router):
    """The replica whose requests have the least predicted work left.

    Decides: with c tokens of prompt and answer so far, g1 the time per prompt token and g2 per token of context in a
    decode step, a request's slice of S tokens is worth ``g1 c + g2 S (c + S / 2)`` seconds; the candidate whose
    requests, routed and not back, are worth least takes it. Those that come back at one instant are routed the longest
    first, which keeps the largest load small (the max-min of its paper).
    Why it helps: a slice's work is known beforehand, however long the answer turns out to be.
    Limits: the part of a step that does not depend on the request (weights, launches) is no one's. Without engine
    policy slices the answer's length is not known and S is a guess.
    Reference: Cheng et al., Slice-Level Scheduling (arXiv:2406.13511), max-min offloading.
    """

    needs = Needs.ENDINGS

    def __init__(self, around: Surroundings, options: Options) -> None:
        self._slice = read_options(Slice, "max-min", options, "router").slice_tokens
        if around.predict is None:
            raise PolicyError("router 'max-min' needs a cost model.", remedy="Choose another router.")
        self._predict = around.predict
        self._work: Ints = np.zeros(around.fleet.size, dtype=np.int64)  # ns: whole numbers add up in any order
        self._worth: dict[int, int] = {}  # ns, by row

    def route(self, request: Request, candidates: Ints, now: float) -> int:
        del now
        chosen = least(self._work, candidates)
        self.joined(request, chosen)
        return chosen

    def joined(self, request: Request, replica: int) -> None:
        prompt_s = self._predict.seconds_per_prompt_token[replica]
        context_s = self._predict.seconds_per_context_token[replica]
        tokens = self._slice
        worth = int(1e9 * (prompt_s * request.target + context_s * tokens * (request.target + tokens / 2)))
        self._worth[request.row] = worth
        self._work[replica] += worth

    def ended(self, request: Request, replica: int) -> None:
        self._work[replica] -= self._worth.pop(request.row)
