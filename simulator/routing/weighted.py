"""Weighted scorers, as llm-d and the Gateway API Inference Extension route."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np

from simulator.core.options import Range, read_options
from simulator.routing.fleet import Floats, Ints
from simulator.routing.prefix_index import PrefixIndex, RoutedPrefixes
from simulator.routing.router import ROUTERS, Needs, Options, Router, Surroundings, Uniforms
from simulator.scheduling.request import Request


@dataclass(frozen=True, slots=True)
class Weights:
    """queue, kv, prefix, active: weights of the scorers; 0 leaves one out.
    index: approximate remembers what was sent where, exact asks what the engines' caches hold.
    capacity_blocks: blocks remembered per replica (approximate).
    """

    queue: Annotated[float, Range(0)] = 2.0
    kv: Annotated[float, Range(0)] = 2.0
    prefix: Annotated[float, Range(0)] = 3.0
    active: Annotated[float, Range(0)] = 0.0
    index: Literal["exact", "approximate"] = "approximate"
    capacity_blocks: Annotated[int, Range(1)] = 31_250


@ROUTERS.register("weighted")
class Weighted(Router):
    """The replica with the highest weighted sum of scores for its queue, its KV cache and the prompt's prefix.

    Decides: each scorer gives every candidate 0 to 1 and the best weighted sum wins, a random one of equals. queue: 1
    for the shortest waiting queue, 0 for the longest, in between by proportion, 1 for all when equal. kv: share of free
    KV blocks. prefix: share of the prompt's blocks that are cached. active: as queue, of the requests in flight.
    Why it helps: one knob per concern, instead of thresholds.
    Limits: the sum of unlike things: a long prefix outweighs a queue of any length; queue and KV are as old as the last
    report, and a queue of 1 against 0 weighs as much as one of 100.
    Reference: queue-scorer, kv-cache-utilization-scorer, prefix-cache-scorer and max-score-picker of
    kubernetes-sigs/gateway-api-inference-extension (weights 2, 2, 3 and 31,250 blocks are those of its chart), on which
    llm-d's inference scheduler builds; active: llm-d's active-request-scorer.
    """

    def __init__(self, around: Surroundings, options: Options) -> None:
        self._weights = chosen = read_options(Weights, "weighted", options, "router")
        self.needs = Needs.METRICS if chosen.queue or chosen.kv else Needs.NOTHING
        if chosen.active:
            self.needs |= Needs.IN_FLIGHT
        self._fleet = around.fleet
        self._draw = Uniforms(around.rng)
        self._routed = None
        self._index: PrefixIndex | None = None
        if chosen.prefix and chosen.index == "exact":
            self._index = around.blocks
            self.needs |= Needs.CACHES
        elif chosen.prefix:
            self._routed = RoutedPrefixes(around.fleet.size, chosen.capacity_blocks)
            self._index = self._routed.index

    def route(self, request: Request, candidates: Ints, now: float) -> int:
        del now
        score = self._score(request, candidates)
        best = np.flatnonzero(score == score.max())
        choice = int(candidates[best[self._draw.below(len(best)) if len(best) > 1 else 0]])
        if self._routed is not None and request.table is not None:
            self._routed.routed(choice, request.table.ids)
        return choice

    def _score(self, request: Request, candidates: Ints) -> Floats:
        """(candidates,)."""
        weights, fleet = self._weights, self._fleet
        score = np.zeros(len(candidates))
        if weights.queue:
            score += weights.queue * shortest(fleet.waiting[candidates])
        if weights.kv:
            score += weights.kv * (fleet.free_blocks[candidates] / fleet.num_blocks[candidates])
        if weights.active:
            score += weights.active * shortest(fleet.in_flight[candidates])
        if self._index is not None and request.table is not None and len(request.table.ids):
            hits = self._index.hit_blocks(request.table.ids, fleet.size)
            score += weights.prefix * (hits[candidates] / len(request.table.ids))
        return score


def shortest(queues: Ints) -> Floats:
    """1 for the shortest, 0 for the longest, 1 for all when they are equal."""
    low, high = int(queues.min()), int(queues.max())
    if low == high:
        return np.ones(len(queues))
    found: Floats = (high - queues) / (high - low)
    return found
