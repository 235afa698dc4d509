"""Request-level batching, as FasterTransformer behind a batching server does it."""

from __future__ import annotations

from simulator.core.options import NoOptions, read_options
from simulator.kv.prefix import NO_HIT
from simulator.scheduling.args import EngineArgs
from simulator.scheduling.paging import waiting_queue
from simulator.scheduling.policy import CHUNKING, POLICIES, Policy
from simulator.scheduling.request import Request
from simulator.scheduling.reserving import longest_reservation
from simulator.scheduling.state import EngineState
from simulator.scheduling.step import DECODE, Step


@POLICIES.register("static")
class Static(Policy):
    """Request-level batching: a batch is formed when the engine is idle and kept until its longest member is done.

    Decides: when nothing runs, up to ``max_num_seqs`` waiting requests start together, each with ``max_model_len``
    tokens of KV reserved; their prompts are one step, then they decode in lockstep. Nobody joins or leaves before the
    last token of the longest output: shorter ones are padded and cost a slot in every step. In a pipeline every stage
    has a batch of its own on the way, a microbatch of an equal share of ``max_num_seqs``.
    Why it helps: nothing to decide between steps; it was the way of serving before iteration-level scheduling, and it
    loses nothing when all outputs have one length.
    Limits: arrivals wait for a whole batch; padding wastes decode slots; in a pipeline, a microbatch's prompts take as
    long as many tokens, and stages before and behind them idle (bubbles). ``max_num_batched_tokens`` does not bound a
    step (it only sizes the activations). Prompts are not padded (FasterTransformer removes that padding too). Results
    leave with their batch: ``first_token`` is when the first token was computed, which a client would see only at
    ``finish``, the end of the batch; so TTFT is that of a server that streams, E2E and TPOT are those of one that does
    not.
    Reference: the FasterTransformer baseline of Orca, Yu et al., OSDI 2022, sections 2 and 6.
    """

    pipelines = True
    grows = False
    pads = True
    holds = True
    prefix_caching = None
    unused = CHUNKING

    def __init__(self, args: EngineArgs) -> None:
        read_options(NoOptions, args.policy, args.options)
        self.max_num_seqs = args.max_num_seqs

    def prepare(self, state: EngineState) -> None:
        state.waiting = waiting_queue(state.args)
        self.blocks = longest_reservation(state)

    def arrive(self, state: EngineState, request: Request) -> bool:
        state.waiting.append(request)
        return False  # the batch is closed

    def schedule(self, state: EngineState) -> Step | None:
        if state.num_decodes:
            return DECODE
        if state.running and len(state.lanes) == 1:
            return None  # last tokens are on their way
        step = Step(decodes=False)
        several = self.max_num_seqs // len(state.lanes)
        while state.waiting and len(step.admitted) < several:
            blocks = self.reservation(state, state.waiting[0])
            if blocks > state.pool.free:
                break
            request = state.waiting.popleft()
            state.admit(request, NO_HIT, step)
            state.reserve(request, blocks)
            state.chunk(request, request.target, step)
        left = [request.prompt_tokens + request.output_tokens - request.target for request in step.requests]
        for request, tokens in zip(step.requests, left, strict=True):
            state.pad(request, max(left) - tokens)
        return step if step.chunks else None

    def reservation(self, state: EngineState, request: Request) -> int:
        """Blocks that a request holds until its batch is done."""
        del state, request
        return self.blocks
