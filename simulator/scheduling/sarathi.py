"""Stall-free batching (Sarathi-Serve)."""

from __future__ import annotations

from simulator.core.options import NoOptions, read_options
from simulator.scheduling.args import EngineArgs
from simulator.scheduling.paging import chunked_step, may_join, waiting_queue
from simulator.scheduling.policy import POLICIES, Policy
from simulator.scheduling.request import Request
from simulator.scheduling.state import EngineState
from simulator.scheduling.step import Step


@POLICIES.register("sarathi")
class Sarathi(Policy):
    """Sarathi-Serve: every decode in every step, and prompts in chunks that fill the token budget.

    Decides: a step holds one token of every running request, then the next chunk of the prompt in progress, then
    waiting prompts (admitted in order when blocks for all of the prompt are free, ``watermark`` of them kept back), up
    to ``max_num_batched_tokens`` (the paper's tau: 512 for strict latency, 2048 for relaxed). Out of blocks, the last
    admitted request is preempted and recomputed.
    Why it helps: a decode waits at most for a step of tau tokens, never for a whole prompt, while prompts still use the
    compute that decodes leave idle.
    Limits: small chunks read the prompt's KV again and again and keep GEMMs below their peak: tau trades TTFT and
    throughput for ITL. No more requests run than tau has tokens. Blocks of an admitted prompt are taken chunk by chunk.
    Reference: Agrawal et al., OSDI 2024 (arXiv:2403.02310), algorithm 3.
    """

    prefix_caching = False
    unused = frozenset({"enable_chunked_prefill", "long_prefill_token_threshold", "scheduler_reserve_full_isl"})

    def __init__(self, args: EngineArgs) -> None:
        read_options(NoOptions, args.policy, args.options)
        self.budget = args.max_num_batched_tokens
        self.max_num_seqs = min(args.max_num_seqs, self.budget)
        self.watermark = args.watermark

    def prepare(self, state: EngineState) -> None:
        state.waiting = waiting_queue(state.args)
        self.spare = int(self.watermark * state.pool.num_blocks)

    def arrive(self, state: EngineState, request: Request) -> bool:
        state.waiting.append(request)
        return may_join(state, request, self.max_num_seqs)

    def schedule(self, state: EngineState) -> Step | None:
        return chunked_step(state, self.budget, self.max_num_seqs, whole=True, spare=self.spare)
