"""The default scheduler of vLLM V0: prefill first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from simulator.core.errors import PolicyError
from simulator.core.options import Range, read_options
from simulator.scheduling.args import EngineArgs
from simulator.scheduling.paging import last_admitted, may_join, waiting_queue
from simulator.scheduling.policy import CHUNKING, POLICIES, Policy
from simulator.scheduling.request import Request
from simulator.scheduling.state import EngineState
from simulator.scheduling.step import DECODE, Step


@dataclass(frozen=True, slots=True)
class VllmV0Options:
    """preemption: what happens to the KV of a preempted request: thrown away and recomputed, or moved to host memory.
    swap_space_gib: that memory, per GPU (V0's default). pcie_gb_s: GB/s over the link, one direction; PCI Express 4.0
    with 16 lanes carries 31.5 (16 GT/s, 128b/130b; PCI-SIG), pinned copies reach about 0.8 of it.
    kv_bytes_per_token: of all layers, on one GPU; needed to swap (131072 for Llama-3.1-8B in 16 bit on one GPU).
    watermark: share of the KV blocks kept free when requests are admitted or swapped in (V0's block manager)."""

    preemption: Literal["recompute", "swap"] = "recompute"
    swap_space_gib: Annotated[float, Range(0)] = 4.0
    pcie_gb_s: Annotated[float, Range(1e-3)] = 25.0
    kv_bytes_per_token: Annotated[int, Range(0)] = 0
    watermark: Annotated[float, Range(0, 1)] = 0.01


@POLICIES.register("vllm-v0")
class VllmV0(Policy):
    """vLLM V0: a step is either prompts or decodes, and prompts come first; paged KV, recompute or swap.

    Decides: while a waiting prompt fits (``max_num_batched_tokens``, ``max_num_seqs``, blocks for all of it less the
    watermark, nobody swapped out), the next step computes whole prompts and no decode. Otherwise every running request
    makes a token; out of blocks, the last admitted one is recomputed or swapped out (option ``preemption``), and
    swapped requests come back, in order, once their blocks fit.
    Why it helps: paging admits several times the requests that contiguous reservations do, and prefill first gives the
    lowest TTFT. Swapping spares the recomputation of long contexts; recomputing spares PCIe and wins for short ones.
    Limits: a running request stalls for as long as prompts keep coming (the generation stalls of Sarathi-Serve). A
    prompt longer than the budget is computed alone (V0 refuses to start unless max_model_len fits), and the watermark
    is waived for an empty engine (V0 fails such a request). V0 wants a free block per decode, needed or not; here only
    those needed. When swap space is full a request is recomputed (V0 crashes). Copies are not overlapped with
    computation, as in V0.
    Reference: Kwon et al., SOSP 2023 (10.1145/3600006.3613165), 4.5; ``core/scheduler.py`` of vLLM 0.6, default path.
    """

    prefix_caching = False
    unused = CHUNKING

    def __init__(self, args: EngineArgs) -> None:
        options = read_options(VllmV0Options, args.policy, args.options)
        self.max_num_seqs = args.max_num_seqs
        self.budget = args.max_num_batched_tokens
        self.watermark = options.watermark
        self.swaps = options.preemption == "swap"
        if self.swaps and not options.kv_bytes_per_token:
            raise PolicyError(
                f"engine policy {args.policy!r}: preemption 'swap' needs the option kv_bytes_per_token.",
                remedy="Give the KV bytes of a token on one GPU, such as 131072 for Llama-3.1-8B in 16 bit.",
            )
        block_bytes = options.kv_bytes_per_token * args.block_size
        self.block_copy_s = block_bytes / (options.pcie_gb_s * 1e9)
        self.host_blocks = int(options.swap_space_gib * (1 << 30) / block_bytes) if self.swaps else 0

    def prepare(self, state: EngineState) -> None:
        state.waiting = waiting_queue(state.args)
        self.spare = int(self.watermark * state.pool.num_blocks)

    def arrive(self, state: EngineState, request: Request) -> bool:
        state.waiting.append(request)
        return not state.swapped and may_join(state, request, self.max_num_seqs)

    def schedule(self, state: EngineState) -> Step | None:
        step = Step(decodes=False)
        if state.waiting and not state.swapped:
            self.prefill(state, step)
            if step.chunks:
                return step
        while state.blocks_next > state.pool.free:
            self.preempt(state, step)
        if state.swapped and not step.preempted:
            self.swap_in(state, step)
        step.decodes = state.num_decodes > 0
        if step.preempted or step.extra_s:
            return step
        if not step.decodes:
            return None
        # Blocks of a finished request that is about to go may let a swapped one in: look again at every step.
        return step if state.swapped and state.releasing else DECODE

    def prefill(self, state: EngineState, step: Step) -> None:
        """Admit whole prompts in order."""
        waiting = state.waiting
        size = state.block_size
        budget = self.budget
        while waiting and len(state.running) < self.max_num_seqs:
            request = waiting[0]
            hit = state.hit(request)
            tokens = request.target - hit.reused * size
            need = -(-request.target // size) - hit.blocks + hit.free_blocks + (self.spare if state.running else 0)
            if need > state.pool.free or (tokens > budget and step.chunks):
                return
            waiting.popleft()
            state.admit(request, hit, step)
            state.chunk(request, tokens, step)
            budget -= tokens

    def preempt(self, state: EngineState, step: Step) -> None:
        victim = last_admitted(state)
        assert victim is not None  # it is one of those that decode
        blocks = state.blocks_held(victim)
        if self.swaps and blocks <= self.host_blocks - sum(map(state.blocks_held, state.swapped)):
            state.swap_out(victim, step)
            step.extra_s += blocks * self.block_copy_s
        else:
            state.preempt(victim, step)

    def swap_in(self, state: EngineState, step: Step) -> None:
        """Take swapped requests back in order, with room for the token they make in this step."""
        size = state.block_size
        while state.swapped and len(state.running) < self.max_num_seqs:
            request = state.swapped[0]
            blocks = -(-(request.computed + 1) // size) + (self.spare if state.running else 0)
            if blocks > state.pool.free - state.blocks_next:
                return
            blocks = state.blocks_held(request)
            state.swap_in()
            step.extra_s += blocks * self.block_copy_s
