"""Shortest remaining processing time by predicted output lengths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from simulator.core.options import Range, read_options
from simulator.scheduling.args import EngineArgs
from simulator.scheduling.ordered import Rank
from simulator.scheduling.policy import POLICIES
from simulator.scheduling.prediction import LengthPredictor, Prediction, made
from simulator.scheduling.preemptive import Preemptive
from simulator.scheduling.request import Request
from simulator.scheduling.state import EngineState
from simulator.scheduling.swapping import Swapping


@dataclass(frozen=True, slots=True)
class SrptOptions(Swapping, Prediction):
    """preempt_until: a request is taken out for another only while it has made at most this share of its predicted
    output; 1: always, 0: never once it has made a token (TRAIL's C)."""

    preempt_until: Annotated[float, Range(0, 1)] = 0.8


@POLICIES.register("srpt")
class Srpt(Preemptive):
    """Shortest remaining processing time: the requests with the fewest predicted tokens left run.

    Decides: order by predicted output less the tokens made (never below 0). A waiting request with fewer tokens left
    takes the place of a running one with more, unless that one is past ``preempt_until`` of its prediction: its KV is
    large and it is about to leave. KV of those who gave way stays on the GPU until others need its room, then it is
    recomputed or swapped out (option ``preemption``).
    Why it helps: for mean latency no order is better when lengths are known and preemption is free.
    Limits: preemption is not free where memory is short: recomputation costs the prompt and all tokens made, swapping
    the link. A request that is longer than predicted counts as nearly done for the rest of its life. The prediction is
    made once; TRAIL's refinement from the model's embeddings at every token is an error model with a smaller sigma. No
    gain without a queue.
    Reference: Shahout et al., TRAIL, ICLR 2025 (arXiv:2410.01035), section 3.
    """

    stays = True

    def __init__(self, args: EngineArgs) -> None:
        options = read_options(SrptOptions, args.policy, args.options)
        super().__init__(args, options)
        self.predict = LengthPredictor(options)
        self.preempt_until = options.preempt_until

    def rank(self, state: EngineState, request: Request) -> Rank:
        return (max(self.predict(request) - made(state.token_steps, request), 0.0),)

    def may_displace(self, state: EngineState, request: Request, running: Request) -> bool:
        return made(state.token_steps, running) <= self.preempt_until * self.predict(running)
