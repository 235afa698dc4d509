"""KV reserved for the predicted output (S3)."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from simulator.core.options import Range, read_options
from simulator.kv.prefix import NO_HIT
from simulator.scheduling.args import EngineArgs
from simulator.scheduling.policy import CHUNKING, POLICIES, Policy
from simulator.scheduling.prediction import LengthPredictor, Prediction
from simulator.scheduling.request import Request
from simulator.scheduling.state import EngineState
from simulator.scheduling.step import DECODE, Step


@dataclass(frozen=True, slots=True)
class S3Options(Prediction):
    """The predictor is by default the paper's: a classifier into 10 bins that is right in 98.6 % of the cases."""

    predictor: Literal["oracle", "log-normal", "bins", "rank"] = "bins"
    accuracy: Annotated[float, Range(0, 1)] = 0.986


class LargestFirst:
    """Waiting requests by size, the largest first; equal ones in order of arrival. Any of them can be taken."""

    def __init__(self) -> None:
        self._waiting: list[tuple[int, float, int, Request]] = []  # sorted

    def __len__(self) -> int:
        return len(self._waiting)

    def __getitem__(self, index: int) -> Request:
        return self._waiting[index][3]

    def __iter__(self) -> Iterator[Request]:
        return (request for *_, request in self._waiting)

    def insert(self, request: Request, size: int) -> None:
        insort(self._waiting, (-size, request.arrival, request.row, request))

    def remove(self, taken: set[Request]) -> None:
        self._waiting = [entry for entry in self._waiting if entry[3] not in taken]

    def append(self, request: Request) -> None:
        self.insert(request, request.reserved)

    appendleft = append

    def popleft(self) -> Request:
        return self._waiting.pop(0)[3]


@POLICIES.register("s3")
class S3(Policy):
    """S3: contiguous KV for the prompt and the predicted length, not for the longest possible one.

    Decides: before each iteration, waiting requests are packed into the free KV slots by decreasing first fit, while
    fewer than ``max_num_seqs`` run: each reserves its prompt and the upper end of its predicted bin. A request that
    outgrows its slots is taken out, its reservation is doubled, and it queues again; its KV is recomputed.
    Why it helps: many more requests run at once than with slots of ``max_model_len`` (``orca``), as many times as that
    exceeds the usual request, until computing is the limit.
    Limits: next to paged KV the gain is gone: blocks are taken as they fill. A predictor that guesses short costs
    recomputation, one that guesses long wastes slots; the rest of a bin is always wasted. The largest go first, so
    under overload small ones wait for gaps. ``max_num_batched_tokens`` does not bound an iteration, as in Orca, whose
    iteration-level scheduling S3 runs on. Predicting is taken to cost nothing (the paper: 3.7 ms a request).
    Reference: Jin et al., NeurIPS 2023 (arXiv:2306.06000), section 4.
    """

    grows = False
    prefix_caching = None
    unused = CHUNKING | {"scheduling_policy"}

    def __init__(self, args: EngineArgs) -> None:
        self.predict = LengthPredictor(read_options(S3Options, args.policy, args.options))
        self.max_num_seqs = args.max_num_seqs
        self.max_model_len = args.max_model_len
        self.block_size = args.block_size

    def prepare(self, state: EngineState) -> None:
        self.queue = LargestFirst()
        state.waiting = self.queue
        self.tight: dict[Request, None] = {}  # running requests whose reservation does not last to their end

    def arrive(self, state: EngineState, request: Request) -> bool:
        request.reserved = self.capped(state, max(request.target, request.prompt_tokens + self.predict(request) - 1))
        self.queue.append(request)
        return len(state.running) - len(state.releasing) < self.max_num_seqs

    def capped(self, state: EngineState, tokens: float) -> int:
        """Blocks for so many tokens, never more than the longest request or the KV cache has."""
        if self.max_model_len:
            tokens = min(tokens, self.max_model_len - 1)
        return int(min(-(-tokens // self.block_size), state.pool.num_blocks))

    def schedule(self, state: EngineState) -> Step | None:
        step = Step(decodes=False)
        self._outgrown(state, step)
        if len(self.queue) and not step.preempted:
            self._pack(state, step)
        step.decodes = state.num_decodes > 0
        if step.chunks or step.preempted:
            return step
        if not step.decodes:
            return None
        return step if self.tight else DECODE

    def _outgrown(self, state: EngineState, step: Step) -> None:
        """Requests whose next token has no slot give up their reservation and ask for twice as much."""
        for request in list(self.tight):
            if not request.decoding:  # its prompt is being computed, or it has been moved elsewhere
                if request not in state.running:
                    del self.tight[request]
                continue
            tokens = request.offset + state.token_steps + 1
            if tokens > request.reserved * self.block_size:
                del self.tight[request]
                blocks = request.reserved
                state.detach(request, step)
                request.reserved = self.capped(state, 2 * blocks * self.block_size)
                self.queue.append(request)

    def _pack(self, state: EngineState, step: Step) -> None:
        seats = self.max_num_seqs - len(state.running)
        taken: set[Request] = set()
        for request in self.queue:
            if seats <= len(taken) or not state.pool.free:
                break
            if request.reserved <= state.pool.free:
                taken.add(request)
                state.admit(request, NO_HIT, step)
                state.reserve(request, request.reserved)
                state.chunk(request, request.target, step)
                if request.prompt_tokens + request.output_tokens - 1 > request.reserved * self.block_size:
                    self.tight[request] = None
        if taken:
            self.queue.remove(taken)
