"""Predicted latency."""

from __future__ import annotations

from dataclasses import dataclass

from simulator.core.errors import PolicyError
from simulator.core.options import read_options
from simulator.routing.fleet import Ints, least
from simulator.routing.router import ROUTERS, Needs, Options, Router, Surroundings
from simulator.scheduling.request import Request


@dataclass(frozen=True, slots=True)
class Prefixes:
    """prefix: what a replica's prefix cache holds of the prompt is left out of its time."""

    prefix: bool = True


@ROUTERS.register("predicted-latency")
class PredictedLatency(Router):
    """The replica that will have the prompt computed first, by its cost model.

    Decides: for every candidate, the time of the prompt tokens queued there and of the prompt itself (less what its
    cache holds), with the decodes that share those steps; the least wins, the first of them on a tie.
    Why it helps: prompts ahead, cached prefixes and faster GPUs all become seconds, in which they can be compared.
    Limits: of TTFT alone; blind to KV blocks running out; queues are those of the last report and what was sent since.
    Reference: llm-d's predicted-latency based routing, which learns this function on line where we take the cost model;
    Mooncake's conductor estimates the same TTFT (Qin et al., FAST 2025, arXiv:2407.00079, algorithm 1).
    """

    def __init__(self, around: Surroundings, options: Options) -> None:
        chosen = read_options(Prefixes, "predicted-latency", options, "router")
        if around.predict is None:
            raise PolicyError("router 'predicted-latency' needs a cost model.", remedy="Choose another router.")
        self._fleet, self._predict = around.fleet, around.predict
        self._blocks = around.blocks if chosen.prefix else None
        self._block_tokens = around.block_tokens
        self.needs = Needs.METRICS | Needs.QUEUED_TOKENS | (Needs.CACHES if chosen.prefix else Needs.NOTHING)

    def route(self, request: Request, candidates: Ints, now: float) -> int:
        del now
        tokens: int | Ints = request.prompt_tokens
        if self._blocks is not None and request.table is not None:
            hits = self._blocks.hit_blocks(request.table.ids, self._fleet.size)
            tokens = (request.prompt_tokens - hits * self._block_tokens).clip(1)
        return least(self._predict.ttft(self._fleet, tokens), candidates)
