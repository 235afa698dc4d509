"""Iteration-level scheduling with selective batching (Orca)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from simulator.core.options import read_options
from simulator.kv.prefix import NO_HIT
from simulator.scheduling.args import EngineArgs
from simulator.scheduling.paging import may_join, waiting_queue
from simulator.scheduling.policy import CHUNKING, POLICIES, Policy
from simulator.scheduling.request import Request
from simulator.scheduling.reserving import longest_reservation
from simulator.scheduling.state import EngineState
from simulator.scheduling.step import DECODE, Step


@dataclass(frozen=True, slots=True)
class OrcaOptions:
    """reservation: KV slots taken at admission. ``max``: ``max_model_len``; ``pow2``: the prompt and the next power of
    two of the output's length; ``oracle``: prompt and output, no more. The three Orcas of the PagedAttention paper."""

    reservation: Literal["max", "pow2", "oracle"] = "max"


@POLICIES.register("orca")
class Orca(Policy):
    """Orca: requests join and leave the batch at every iteration; KV is reserved in full at admission.

    Decides: before each iteration, waiting requests are admitted in order of arrival while fewer than ``max_num_seqs``
    run and unreserved KV slots suffice for the longest they may become; their whole prompts and one token of every
    running request are computed together (selective batching). A running request is never preempted.
    Why it helps: a finished request leaves at once and a new one takes its place, so no slot is padded: the gain over
    request-level batching grows with the spread of the output lengths and is nil when they are equal.
    Limits: reserved and unused slots keep the batch small (option ``reservation``); a long prompt holds up every decode
    of its iteration; ``max_num_batched_tokens`` does not bound an iteration (it only sizes the activations).
    Reservations are counted in blocks of ``block_size`` tokens; holes between pieces of different sizes are not, so
    ``pow2`` and ``oracle`` are upper bounds of what contiguous memory admits.
    Reference: Yu et al., OSDI 2022, algorithm 1; reservations of Kwon et al., SOSP 2023 (10.1145/3600006.3613165), 6.1.
    """

    grows = False
    holds = True
    prefix_caching = None
    unused = CHUNKING

    def __init__(self, args: EngineArgs) -> None:
        self.reservation = read_options(OrcaOptions, args.policy, args.options).reservation
        self.max_num_seqs = args.max_num_seqs
        self.max_model_len = args.max_model_len
        self.longest = 0  # blocks

    def prepare(self, state: EngineState) -> None:
        state.waiting = waiting_queue(state.args)
        if self.reservation == "max":
            self.longest = longest_reservation(state)

    def arrive(self, state: EngineState, request: Request) -> bool:
        state.waiting.append(request)
        return may_join(state, request, self.max_num_seqs)

    def schedule(self, state: EngineState) -> Step | None:
        waiting = state.waiting
        step = Step(decodes=state.num_decodes > 0)
        while waiting and len(state.running) < self.max_num_seqs:
            request = waiting[0]
            blocks = self.blocks(state, request)
            if blocks > state.pool.free:
                break
            waiting.popleft()
            state.admit(request, NO_HIT, step)
            state.reserve(request, blocks)
            state.chunk(request, request.target, step)
        if step.chunks:
            return step
        return DECODE if step.decodes else None

    def blocks(self, state: EngineState, request: Request) -> int:
        """Blocks to reserve, never more than the KV cache has: a request that fits it is served. The last token needs
        no KV of its own."""
        if self.reservation == "max":
            return self.longest
        output = request.output_tokens
        if self.reservation == "pow2":
            output = 1 << (output - 1).bit_length()
        tokens = request.prompt_tokens + output - 1
        if self.max_model_len:
            tokens = min(tokens, self.max_model_len - 1)  # longer requests are rejected when they arrive
        return min(state.blocks_of(tokens), state.pool.num_blocks)
