"""LoRA affinity."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from simulator.core.errors import PolicyError
from simulator.core.options import Range, read_options
from simulator.routing.fleet import Ints, least
from simulator.routing.router import ROUTERS, Needs, Options, Router, Surroundings
from simulator.scheduling.request import Request


@dataclass(frozen=True, slots=True)
class Slots:
    """max_loras: adapters that a replica's GPUs hold at once (vLLM's argument).
    spill: a replica with more than so many times the mean of the requests in flight has no affinity; 0: no limit.
    """

    max_loras: Annotated[int, Range(1)] = 4
    spill: Annotated[float, Range(0)] = 2.0


@ROUTERS.register("lora-affinity")
class LoraAffinity(Router):
    """A request for a LoRA adapter to a replica that has it, or has room for it.

    Decides: candidates with a request for the same adapter in flight come first, then those with fewer than
    ``max_loras`` different ones, then the others; within a class the fewest requests in flight. One with more than
    ``spill`` times the mean (and a request more than it) counts as the others.
    Why it helps: adapters stay where they are, instead of being loaded and evicted on every replica.
    Limits: which adapters are loaded is inferred from what is in flight. Only with ``engine.lora_config`` does loading
    an adapter, or computing with it, take time; without, this router changes who meets whom and nothing else.
    Reference: lora-affinity-scorer of kubernetes-sigs/gateway-api-inference-extension (its order of classes); Sheng et
    al., S-LoRA, MLSys 2024 (arXiv:2311.03285).
    """

    needs = Needs.IN_FLIGHT | Needs.ENDINGS

    def __init__(self, around: Surroundings, options: Options) -> None:
        self._slots = read_options(Slots, "lora-affinity", options, "router")
        if around.trace.adapter is None:
            raise PolicyError(
                "router 'lora-affinity' goes by the trace's adapter column, which it lacks.",
                remedy="Use a trace that has one, or another router.",
            )
        self._fleet = around.fleet
        self._codes = around.trace.adapter.codes
        self._here: list[Counter[int]] = [Counter() for _ in range(around.fleet.size)]  # adapter -> requests
        self._loaded: Ints = np.zeros(around.fleet.size, dtype=np.int64)  # different adapters
        self._homes: dict[int, set[int]] = {}  # adapter -> replicas that have it

    def route(self, request: Request, candidates: Ints, now: float) -> int:
        del now
        adapter = int(self._codes[request.row])
        if adapter < 0:
            return least(self._fleet.in_flight, candidates)
        in_flight = self._fleet.in_flight[candidates]
        rank = np.where(self._loaded[candidates] < self._slots.max_loras, 1, 2)
        homes = self._homes.get(adapter)
        if homes:
            rank[np.isin(candidates, list(homes))] = 0
        if self._slots.spill:
            mean = in_flight.mean()
            rank[(in_flight > self._slots.spill * mean) & (in_flight > mean + 1)] = 2
        chosen = int(candidates[np.lexsort((in_flight, rank))[0]])
        self._take(adapter, chosen)
        return chosen

    def joined(self, request: Request, replica: int) -> None:
        adapter = int(self._codes[request.row])
        if adapter >= 0:
            self._take(adapter, replica)

    def _take(self, adapter: int, replica: int) -> None:
        here = self._here[replica]
        here[adapter] += 1
        if here[adapter] == 1:
            self._loaded[replica] += 1
            self._homes.setdefault(adapter, set()).add(replica)

    def ended(self, request: Request, replica: int) -> None:
        adapter = int(self._codes[request.row])
        if adapter < 0:
            return
        here = self._here[replica]
        here[adapter] -= 1
        if not here[adapter]:
            del here[adapter]
            self._loaded[replica] -= 1
            self._homes[adapter].discard(replica)
