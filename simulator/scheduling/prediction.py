"""Predictors of output lengths, from an oracle to a useless one: what policies know of requests they have not served.

A prediction belongs to its request: it follows from the trace's row and a seed, whichever replica asks and how often.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, log, pi, sin, sqrt
from statistics import NormalDist
from typing import Annotated, Literal

from simulator.core.options import Range
from simulator.scheduling.request import Request

NORMAL = NormalDist()
MASK = (1 << 64) - 1
LONGEST = 1e9  # tokens; a hopeless predictor may say anything


@dataclass(frozen=True)  # without slots: options of policies derive from several such classes
class Prediction:
    """Options of a length predictor.

    predictor: ``oracle`` knows; ``log-normal`` is off by a factor exp(sigma N(0, 1)); ``bins`` names one of num_bins
    equal bins of up to bin_tokens x num_bins tokens, the right one with chance ``accuracy`` and else any other, and
    means its upper end; ``rank`` orders requests with Kendall's tau to the order of their true lengths, exactly so
    where those are log-normal with ``median_tokens`` and ``spread``, the standard deviation of their logarithm.
    seed: of the errors.
    """

    predictor: Literal["oracle", "log-normal", "bins", "rank"] = "oracle"
    sigma: Annotated[float, Range(0)] = 0.5
    accuracy: Annotated[float, Range(0, 1)] = 0.8
    bin_tokens: Annotated[int, Range(1)] = 200
    num_bins: Annotated[int, Range(2)] = 10
    tau: Annotated[float, Range(0, 1)] = 0.6
    median_tokens: Annotated[float, Range(1)] = 200.0
    spread: Annotated[float, Range(1e-3)] = 1.0
    seed: Annotated[int, Range(0)] = 0


class LengthPredictor:
    """Calls give the output tokens that a predictor expects of a request, >= 1.

    Kendall's tau of two normal variables with correlation rho is (2 / pi) asin(rho) (Kruskal, 1958,
    10.1080/01621459.1958.10501481), so rank predictors mix the true length's standing with noise at
    rho = sin(pi tau / 2).
    """

    def __init__(self, options: Prediction) -> None:
        self.options = options
        self.rho = sin(pi * options.tau / 2)

    def __call__(self, request: Request) -> float:
        options = self.options
        true = request.output_tokens
        if options.predictor == "oracle":
            return float(true)
        if options.predictor == "bins":
            return float(self._bin(request.row, true) * options.bin_tokens)
        noise = NORMAL.inv_cdf(uniform(request.row, options.seed, 0))
        if options.predictor == "log-normal":
            return _tokens(log(true) + options.sigma * noise)
        standing = (log(true) - log(options.median_tokens)) / options.spread
        score = self.rho * standing + sqrt(1 - self.rho * self.rho) * noise
        return _tokens(log(options.median_tokens) + options.spread * score)

    def _bin(self, row: int, true: int) -> int:
        """Number of the bin, from 1."""
        options = self.options
        right = min(-(-true // options.bin_tokens), options.num_bins)
        if uniform(row, options.seed, 1) < options.accuracy:
            return right
        other = 1 + int(uniform(row, options.seed, 2) * (options.num_bins - 1))
        return other if other < right else other + 1


def made(state_token_steps: int, request: Request) -> int:
    """Output tokens that a request has, in flight included; of one that waits, runs or is swapped out."""
    if request.decoding:
        return request.offset + state_token_steps + 1 - request.prompt_tokens
    return max(request.target, request.computed + 1) - request.prompt_tokens


def uniform(row: int, seed: int, draw: int) -> float:
    """A number in (0, 1) by SplitMix64 (Steele et al., OOPSLA 2014, 10.1145/2660193.2660195) of the three."""
    mixed = _mix(_mix(_mix(seed) + draw) + row)
    return ((mixed >> 12) + 0.5) / (1 << 52)


def _mix(value: int) -> int:
    value = (value + 0x9E3779B97F4A7C15) & MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)


def _tokens(logarithm: float) -> float:
    return max(exp(logarithm), 1.0) if logarithm < log(LONGEST) else LONGEST
