"""ExeGPT's schedule: prompts of a fixed number of requests, then a fixed number of decoding iterations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from simulator.core.options import Range, read_options
from simulator.kv.prefix import NO_HIT
from simulator.scheduling.args import EngineArgs
from simulator.scheduling.paging import may_join, sequence_free, waiting_queue
from simulator.scheduling.policy import CHUNKING, POLICIES, Policy
from simulator.scheduling.request import Request
from simulator.scheduling.reserving import longest_reservation
from simulator.scheduling.state import EngineState
from simulator.scheduling.step import DECODE, Step


@dataclass(frozen=True, slots=True)
class ExeGptOptions:
    """encode_batch: most requests whose prompts are computed in one phase (the paper's B_E). decode_steps: decoding
    iterations between two such phases (its N_D)."""

    encode_batch: Annotated[int, Range(1)] = 8
    decode_steps: Annotated[int, Range(1)] = 16


@POLICIES.register("exegpt")
class ExeGpt(Policy):
    """ExeGPT's round-robin allocation: a phase of prompts, then a fixed number of decoding iterations, in turns.

    Decides: every ``decode_steps`` iterations (at once when nobody decodes) up to ``encode_batch`` waiting requests are
    admitted, KV reserved for ``max_model_len`` tokens each, and their whole prompts are one step; then all decode.
    Requests that are done leave after any iteration. In a pipeline every stage's batch on the way does the same with an
    equal share of both sizes, so that phases of prompts follow each other through the stages.
    Why it helps: the batch that decodes stays nearly the same size, ``encode_batch`` times the mean output over
    ``decode_steps``, where a static batch dwindles; and how long an answer takes is known before, because it meets a
    known number of phases.
    Limits: slots that are free wait for the next phase; ``max_num_batched_tokens`` does not bound a step (it only sizes
    the activations). Who chooses the two numbers: optimiser ``exegpt`` (``windtunnel plan``). Prompts and decodes on
    GPUs of their own (its workload-aware allocation) are ``cluster.groups`` with roles; tensor parallelism on only some
    of the GPUs is not here.
    Reference: Oh et al., ExeGPT, ASPLOS 2024 (arXiv:2404.07947), sections 3 and 4.
    """

    pipelines = True
    grows = False
    holds = True
    prefix_caching = None
    unused = CHUNKING

    def __init__(self, args: EngineArgs) -> None:
        options = read_options(ExeGptOptions, args.policy, args.options)
        self.encode_batch = options.encode_batch
        self.decode_steps = options.decode_steps
        self.max_num_seqs = args.max_num_seqs
        self.due: dict[int, int] = {}  # by batch on the way: decoding iterations at which its next phase begins

    def prepare(self, state: EngineState) -> None:
        state.waiting = waiting_queue(state.args)
        self.blocks = longest_reservation(state)

    def arrive(self, state: EngineState, request: Request) -> bool:
        state.waiting.append(request)
        return may_join(state, request, self.max_num_seqs)

    def schedule(self, state: EngineState) -> Step | None:
        if not state.num_decodes or state.token_steps >= self.due.get(state.lane, 0):
            step = self.encode(state)
            if step.chunks:
                self.due[state.lane] = state.token_steps + self.decode_steps
                return step
            return DECODE if state.num_decodes else None  # nobody waits, or there is no room until somebody ends
        # Without a free sequence nobody joins before somebody ends, and an arrival changes nothing (see ``arrive``).
        return Step(decodes=True) if state.waiting and sequence_free(state, self.max_num_seqs) else DECODE

    def encode(self, state: EngineState) -> Step:
        """The prompts of as many requests as the phase, the slots and the memory allow."""
        step, waiting, batches = Step(decodes=False), state.waiting, len(state.lanes)
        share = max(1, self.max_num_seqs // batches) - state.num_decodes
        several = min(max(1, self.encode_batch // batches), share, self.max_num_seqs - len(state.running))
        while waiting and len(step.admitted) < several and self.blocks <= state.pool.free:
            request = waiting.popleft()
            state.admit(request, NO_HIT, step)
            state.reserve(request, self.blocks)
            state.chunk(request, request.target, step)
        return step
