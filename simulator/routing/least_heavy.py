"""TetriInfer's choice of a decode replica: heavy and light requests mixed, by predicted length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from simulator.core.options import Range, read_options
from simulator.routing.fleet import Ints
from simulator.routing.router import ROUTERS, Needs, Options, Router, Surroundings, Uniforms
from simulator.scheduling.request import Request


@dataclass(frozen=True, slots=True)
class Heaviness:
    """granularity: tokens per class of answer lengths. accuracy: chance that the predictor names the right class, else
    a neighbouring one. heavy_tokens: answers predicted to be longer (the middle of their class) are heavy.
    """

    granularity: Annotated[int, Range(1)] = 200
    accuracy: Annotated[float, Range(0, 1)] = 0.749
    heavy_tokens: Annotated[int, Range(1)] = 128


@ROUTERS.register("least-heavy")
class LeastHeavy(Router):
    """Of two replicas with room for the predicted answer, the one with fewer heavy requests for each light one.

    Decides: candidates whose free KV holds the prompt and the upper end of the predicted class of answer lengths (all,
    if none does); two of them at random; the one with the lower ratio of heavy to light requests in flight, the first
    drawn on a tie.
    Why it helps: long answers pile up memory and slow each other; spread evenly, no replica runs out first.
    Limits: a class is as good as its predictor; free memory is as last reported, and what has been sent since is not
    in it.
    Reference: Hu et al., TetriInfer (arXiv:2401.11181), section 3.4: power of two choices over the replicas with
    enough memory, the least heavy decodes, and the accuracy of its OPT-125M predictor at 200 tokens (74.9 %).
    """

    needs = Needs.IN_FLIGHT | Needs.METRICS | Needs.ENDINGS

    def __init__(self, around: Surroundings, options: Options) -> None:
        chosen = read_options(Heaviness, "least-heavy", options, "router")
        self._fleet = around.fleet
        self._draw = Uniforms(around.rng)
        output, size = around.trace.output_tokens, chosen.granularity
        right = np.maximum(output - 1, 0) // size
        wrong = around.rng.random(len(output)) >= chosen.accuracy
        side = np.where((around.rng.random(len(output)) < 0.5) & (right > 0), -1, 1)
        named = np.where(wrong, right + side, right)
        self._upper: Ints = (named + 1) * size  # tokens, of the class that the predictor names
        self._is_heavy = (named * size + size // 2 > chosen.heavy_tokens).tolist()
        self._heavy: Ints = np.zeros(around.fleet.size, dtype=np.int64)  # requests in flight

    def route(self, request: Request, candidates: Ints, now: float) -> int:
        del now
        fleet, row = self._fleet, request.row
        free = fleet.free_blocks[candidates] * fleet.block_size[candidates]
        roomy = candidates[free >= request.prompt_tokens + self._upper[row]]
        among = roomy if len(roomy) else candidates
        first, second = self._draw.below(len(among)), self._draw.below(max(len(among) - 1, 1))
        second = (second + (second >= first)) % len(among)
        chosen = min(int(among[first]), int(among[second]), key=self._ratio)
        self._heavy[chosen] += self._is_heavy[row]
        return chosen

    def joined(self, request: Request, replica: int) -> None:
        self._heavy[replica] += self._is_heavy[request.row]

    def ended(self, request: Request, replica: int) -> None:
        self._heavy[replica] -= self._is_heavy[request.row]

    def _ratio(self, replica: int) -> float:
        heavy = int(self._heavy[replica])
        return heavy / max(self._fleet.counts[replica] - heavy, 1)
