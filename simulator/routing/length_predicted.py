"""Length-predicted routing: least impact of mixing, by predicted answer lengths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from simulator.core.errors import PolicyError
from simulator.core.options import Range, read_options
from simulator.routing.fleet import Ints, least
from simulator.routing.router import ROUTERS, Needs, Options, Router, Surroundings
from simulator.scheduling.request import Request


@dataclass(frozen=True, slots=True)
class Prediction:
    """accuracy: chance that the predictor names the right bucket of lengths, else a neighbouring one.
    first_bucket: its upper end, tokens; each next bucket ends at four times as much.
    alpha: weight of the impact on the new prompt against that on the requests that are there.
    """

    accuracy: Annotated[float, Range(0, 1)] = 0.7915
    first_bucket: Annotated[int, Range(1)] = 250
    alpha: Annotated[float, Range(0, 1)] = 0.5


@ROUTERS.register("length-predicted")
class LengthPredicted(Router):
    """The replica on which a request slows itself and the others down least, by predicted answer lengths.

    Decides: with p and d the prompt and predicted answer of a request, g1 the time per prompt token, g2 per token of
    context in a decode step, n and C the requests in flight on a replica and the sum of their p + d: the least
    ``alpha (g1 p + g2 C) + (1 - alpha) n (g1 p + g2 (p + d))``. The answer's length is known as a bucket (its middle
    stands for it), drawn once per request with the predictor's ``accuracy``.
    Why it helps: long prompts stall many decodes, and many long contexts slow a prompt: heavy meets light.
    Limits: progress is not tracked: a request counts in full until it ends. The paper trains a reinforcement learner
    and uses this impact as its guide; this is the guide alone, which its reward function takes to be the best choice of
    the moment. What it gains by waiting at the router and by learning is not here.
    Reference: Jain et al., Intelligent Router for LLM Workloads (arXiv:2408.13510), sections 5.1 and 5.2: bucket sizes
    and the predictor's accuracy, and the mixing impact in its words (proportional to the prompt and to the tokens that
    are decoded; to the number of requests).
    """

    needs = Needs.IN_FLIGHT | Needs.ENDINGS

    def __init__(self, around: Surroundings, options: Options) -> None:
        chosen = read_options(Prediction, "length-predicted", options, "router")
        if around.predict is None:
            raise PolicyError("router 'length-predicted' needs a cost model.", remedy="Choose another router.")
        self._fleet, self._predict, self._alpha = around.fleet, around.predict, chosen.alpha
        output = around.trace.output_tokens
        self._predicted = predicted_lengths(output, chosen.accuracy, chosen.first_bucket, around.rng)
        self._context: Ints = np.zeros(around.fleet.size, dtype=np.int64)  # tokens in flight, predicted ones included

    def route(self, request: Request, candidates: Ints, now: float) -> int:
        del now
        prompt_s, context_s = self._predict.seconds_per_prompt_token, self._predict.seconds_per_context_token
        p, total = request.prompt_tokens, self._total(request)
        own = prompt_s * p + context_s * self._context
        others = self._fleet.in_flight * (prompt_s * p + context_s * total)
        chosen = least(self._alpha * own + (1 - self._alpha) * others, candidates)
        self._context[chosen] += total
        return chosen

    def joined(self, request: Request, replica: int) -> None:
        self._context[replica] += self._total(request)

    def ended(self, request: Request, replica: int) -> None:
        self._context[replica] -= self._total(request)

    def _total(self, request: Request) -> int:
        return request.prompt_tokens + int(self._predicted[request.row])


def predicted_lengths(
    output: NDArray[np.int64], accuracy: float, first_bucket: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """(rows,) tokens: the middle of the bucket that the predictor names.

    Buckets end at ``first_bucket * 4 ** k``. A wrong one is the next shorter or longer with equal chance.
    """
    if not len(output):
        return np.zeros(0, dtype=np.int64)
    last = 1
    while first_bucket * 4 ** (last - 1) < output.max():
        last += 1
    ends = first_bucket * 4 ** np.arange(last, dtype=np.int64)
    middles = (np.concatenate(([0], ends[:-1])) + ends + 1) // 2
    bucket = np.searchsorted(ends, output)
    wrong = rng.random(len(output)) >= accuracy
    step = np.where(rng.random(len(output)) < 0.5, -1, 1)
    step = np.where(bucket == 0, 1, step)
    step = np.where((bucket == last - 1) & (bucket > 0), -1, step)
    found: NDArray[np.int64] = middles[np.clip(np.where(wrong, bucket + step, bucket), 0, last - 1)]
    return found
