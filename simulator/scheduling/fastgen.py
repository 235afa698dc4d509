"""Dynamic SplitFuse (DeepSpeed-FastGen)."""

from __future__ import annotations

from simulator.core.options import NoOptions, read_options
from simulator.scheduling.args import EngineArgs
from simulator.scheduling.paging import chunked_step, may_join, waiting_queue
from simulator.scheduling.policy import CHUNKING, POLICIES, Policy
from simulator.scheduling.request import Request
from simulator.scheduling.state import EngineState
from simulator.scheduling.step import Step


@POLICIES.register("fastgen")
class FastGen(Policy):
    """DeepSpeed-FastGen's Dynamic SplitFuse: every forward pass is composed to one size.

    Decides: after one token for every running request, long prompts are split and short ones fused, in order of
    arrival, so that a forward pass holds exactly ``max_num_batched_tokens`` whenever that many are there to compute. A
    prompt starts as soon as KV for a piece of it is free. Out of blocks, the last admitted request is preempted and
    recomputed.
    Why it helps: latency depends on the tokens of a pass far more than on the number of sequences, so equal passes are
    consistent ones, close to where throughput saturates.
    Limits: starting prompts without room for all of them means more recomputation under memory pressure than
    ``sarathi``, which waits for blocks for the whole prompt. No more requests run than the pass has tokens.
    Reference: Holmes et al., 2024 (arXiv:2401.08671), section 3.
    """

    prefix_caching = False
    unused = CHUNKING

    def __init__(self, args: EngineArgs) -> None:
        read_options(NoOptions, args.policy, args.options)
        self.budget = args.max_num_batched_tokens
        self.max_num_seqs = min(args.max_num_seqs, self.budget)

    def prepare(self, state: EngineState) -> None:
        state.waiting = waiting_queue(state.args)

    def arrive(self, state: EngineState, request: Request) -> bool:
        state.waiting.append(request)
        return may_join(state, request, self.max_num_seqs)

    def schedule(self, state: EngineState) -> Step | None:
        return chunked_step(state, self.budget, self.max_num_seqs, whole=False, spare=0)
