"""Shortest job first by predicted output lengths."""

from __future__ import annotations

from simulator.core.options import read_options
from simulator.scheduling.args import EngineArgs
from simulator.scheduling.ordered import Ordered, Rank
from simulator.scheduling.policy import POLICIES
from simulator.scheduling.prediction import LengthPredictor, Prediction
from simulator.scheduling.request import Request


@POLICIES.register("sjf")
class Sjf(Ordered):
    """Shortest job first: of the waiting requests, the one with the shortest predicted output is admitted first.

    Decides: as ``vllm``, with the waiting queue sorted by predicted output tokens. Nobody is taken out for another; out
    of blocks, the longest predicted output gives way and is recomputed.
    Why it helps: short requests no longer wait for long ones, so mean latency falls wherever a queue builds up; the
    more the outputs differ and the better they are ranked, the more.
    Limits: without a queue (low load, or a batch that takes everybody) it is vLLM to the bit; long requests may starve
    under overload; predicting is taken to cost nothing (SSJF: about 10 ms of a small model, off the GPU).
    Reference: Qiu et al., SSJF, 2024 (arXiv:2404.08509); predictors with an error: ``prediction.py``.
    """

    speculates = True

    def __init__(self, args: EngineArgs) -> None:
        super().__init__(args)
        self.predict = LengthPredictor(read_options(Prediction, args.policy, args.options))

    def rank(self, request: Request) -> Rank:
        return (self.predict(request),)
