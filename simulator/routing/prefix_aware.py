"""Prefix-aware routing: to where the prompt is cached, unless that replica is overloaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np

from simulator.core.errors import PolicyError
from simulator.core.options import Range, read_options
from simulator.routing.fleet import Among, Ints, least
from simulator.routing.prefix_index import PrefixIndex, RoutedPrefixes, least_of
from simulator.routing.router import ROUTERS, Needs, Router, Surroundings
from simulator.scheduling.request import Request


@dataclass(frozen=True, slots=True)
class Options:
    """index: exact asks what the engines' caches hold; approximate remembers what was sent where.
    capacity_blocks: blocks remembered per replica (approximate).
    hit_threshold: share of the prompt that must be cached for the hit to decide.
    tier_weight: what a block in a replica's own KV tiers counts: so much of one in its GPU memory if it is in the first
    tier, the square of it in the second, and so on (exact).
    balance_abs, balance_rel: the load decides instead when the busiest replica has more than ``balance_abs`` requests
    in flight more than the idlest, and more than ``balance_rel`` times as many.
    """

    index: Literal["exact", "approximate"] = "exact"
    capacity_blocks: Annotated[int, Range(1)] = 100_000
    hit_threshold: Annotated[float, Range(0, 1)] = 0.3
    tier_weight: Annotated[float, Range(0, 1)] = 0.0
    balance_abs: Annotated[int, Range(0)] = 64
    balance_rel: Annotated[float, Range(1)] = 1.5


@ROUTERS.register("prefix-aware")
class PrefixAware(Router):
    """The replica that holds the longest prefix of the prompt; the least loaded one when that is short or load uneven.

    Decides: while the fleet is balanced, the candidate with the longest cached prefix, the least loaded of equals, if
    it covers ``hit_threshold`` of the prompt. Else the candidate with the fewest requests in flight.
    Why it helps: conversations and shared system prompts find their KV, which round robin spreads over all caches.
    Limits: a popular prefix makes a hot replica until the balance rule spreads it; the approximate index forgets that
    engines evict.
    Reference: Zheng et al., SGLang, NeurIPS 2024 (arXiv:2312.07104), and its router's cache-aware policy, whose
    thresholds are the defaults here. Weights of tiers: llm-d's precise prefix-cache scorer (gpu 1.0, cpu 0.8);
    MemServe's global prompt tree (arXiv:2406.17565) and Mooncake's conductor (arXiv:2407.00079) see all that a replica
    holds, too.
    """

    needs = Needs.IN_FLIGHT | Needs.CACHES

    def __init__(self, around: Surroundings, options: Mapping[str, bool | int | float | str]) -> None:
        self._options = chosen = read_options(Options, "prefix-aware", options, "router")
        self._fleet = around.fleet
        self._among = Among(around.fleet.size)
        self._block_tokens = around.block_tokens
        self._routed = None
        self._index: PrefixIndex | None = around.blocks
        if chosen.index == "approximate":
            self._routed = RoutedPrefixes(around.fleet.size, chosen.capacity_blocks)
            self._index = self._routed.index
            self.needs = Needs.IN_FLIGHT  # this one asks the engines nothing
        self._tiers = around.tiers if chosen.tier_weight else None
        if chosen.tier_weight:
            if chosen.index == "approximate":
                message = "router 'prefix-aware': what engines have in tiers is known to the exact index alone."
                raise PolicyError(message, remedy="Leave out index: approximate, or tier_weight.")
            self.needs |= Needs.TIERS

    def route(self, request: Request, candidates: Ints, now: float) -> int:
        choice = self._longest(request, candidates, now)
        if choice < 0:
            choice = least(self._fleet.in_flight, candidates)
        if self._routed is not None and request.table is not None:
            self._routed.routed(choice, request.table.ids)
        return choice

    def _longest(self, request: Request, candidates: Ints, now: float) -> int:
        """-1: no hit is long enough, or the load is uneven."""
        if request.table is None or self._index is None:
            return -1
        hits = [] if self._tiers is not None else self._index.hits(request.table.ids)
        if not hits and self._tiers is None:
            return -1
        in_flight = self._fleet.in_flight
        all_open = len(candidates) == len(in_flight)
        loads = in_flight if all_open else in_flight[candidates]
        low, high = int(np.minimum.reduce(loads)), int(np.maximum.reduce(loads))
        if high - low > self._options.balance_abs and high > self._options.balance_rel * low:
            return -1
        if self._tiers is not None:
            return self._most_worth(request.table.ids, request.prompt_tokens, candidates, now)
        allowed = self._among.bits(candidates)
        for mask, blocks in reversed(hits):
            if blocks * self._block_tokens < self._options.hit_threshold * request.prompt_tokens:
                return -1
            if mask & allowed:
                return least_of(mask & allowed, self._fleet)
        return -1

    def _most_worth(self, ids: Sequence[int], prompt_tokens: int, candidates: Ints, now: float) -> int:
        """The same with blocks in tiers, which count less."""
        assert self._index is not None and self._tiers is not None
        weight = self._options.tier_weight
        in_gpu = self._index.hit_blocks(ids, self._fleet.size)[candidates]
        worth = in_gpu.astype(np.float64)
        for i, (replica, have) in enumerate(zip(candidates.tolist(), in_gpu.tolist(), strict=True)):
            for depth, blocks in enumerate(self._tiers.after(replica, ids, have, now), 1):
                worth[i] += weight**depth * blocks
        most = worth.max()
        if not most or most * self._block_tokens < self._options.hit_threshold * prompt_tokens:
            return -1
        return least(self._fleet.in_flight, candidates[worth == most])
