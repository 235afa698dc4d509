"""Sequence scheduling by perceived response lengths."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from math import ceil
from typing import Annotated, Literal

from simulator.core.options import Range, read_options
from simulator.kv.prefix import NO_HIT
from simulator.scheduling.args import EngineArgs
from simulator.scheduling.policy import CHUNKING, POLICIES, Policy
from simulator.scheduling.prediction import LengthPredictor, Prediction
from simulator.scheduling.request import Request
from simulator.scheduling.reserving import longest_reservation
from simulator.scheduling.state import EngineState
from simulator.scheduling.step import DECODE, Step


@dataclass(frozen=True, slots=True)
class ResponseLengthOptions(Prediction):
    """group_size: requests that are sorted together. margin: of tokens over the longest prediction in a batch after
    which those who still generate are stopped."""

    predictor: Literal["oracle", "log-normal", "bins", "rank"] = "log-normal"
    sigma: Annotated[float, Range(0)] = 0.3
    group_size: Annotated[int, Range(1)] = 256
    margin: Annotated[int, Range(0)] = 0


class Groups:
    """Waiting requests: a group sorted by predicted length, those that failed in it, and who came since."""

    def __init__(self) -> None:
        self.group: deque[Request] = deque()
        self.failed: deque[Request] = deque()
        self.fresh: deque[Request] = deque()

    def __len__(self) -> int:
        return len(self.group) + len(self.failed) + len(self.fresh)

    def __getitem__(self, index: int) -> Request:
        return [*self.group, *self.failed, *self.fresh][index]

    def append(self, request: Request) -> None:
        self.fresh.append(request)

    def appendleft(self, request: Request) -> None:
        self.failed.append(request)

    def popleft(self) -> Request:
        return (self.group or self.failed or self.fresh).popleft()


@POLICIES.register("response-length")
class ResponseLength(Policy):
    """Sequence scheduling: batches of similar predicted length on an engine that batches requests, not iterations.

    Decides: when nothing runs and the last group is done, ``group_size`` waiting requests are sorted by predicted
    output and cut into batches, the shortest first: each as large as ``max_num_seqs`` and KV for the prompts and the
    batch's longest prediction allow (so batches of short answers are larger). A batch decodes in lockstep up to that
    prediction and ``margin``; whoever has more to say has failed, and failures are run together, without a limit, at
    the end of the group.
    Why it helps: little padding, and reservations as long as the batch needs.
    Limits: with iteration-level scheduling there is no padding to save, and the gain is gone. A failure costs the
    recomputation of its KV; its tokens are kept, where the paper generates them again. Arrivals wait for their group.
    Reference: Zheng et al., NeurIPS 2023 (arXiv:2305.13144), section 4; for the engine see ``static``.
    """

    grows = False
    pads = True
    prefix_caching = None
    unused = CHUNKING | {"scheduling_policy"}

    def __init__(self, args: EngineArgs) -> None:
        options = read_options(ResponseLengthOptions, args.policy, args.options)
        self.predict = LengthPredictor(options)
        self.group_size, self.margin = options.group_size, options.margin
        self.max_num_seqs = args.max_num_seqs

    def prepare(self, state: EngineState) -> None:
        self.queue = Groups()
        state.waiting = self.queue
        self.longest = longest_reservation(state)  # blocks
        self.failing: list[Request] = []  # running requests that will not be done in time
        self.stop = 0  # token step after which they are taken out

    def arrive(self, state: EngineState, request: Request) -> bool:
        self.queue.append(request)
        return False  # the batch is closed

    def schedule(self, state: EngineState) -> Step | None:
        step = Step(decodes=False)
        if state.running:
            if self.failing and state.token_steps >= self.stop:
                for request in self.failing:
                    if request in state.running:
                        state.preempt(request, step)
                self.failing = []
            step.decodes = state.num_decodes > 0
            if step.preempted or (step.decodes and self.failing):
                return step
            return DECODE if step.decodes else None
        if not len(self.queue):
            return None
        if self.queue.group or not self.queue.failed:
            self._batch(state, step)
        else:
            self._failures(state, step)
        return step if step.chunks else None

    def _batch(self, state: EngineState, step: Step) -> None:
        """The next batch of the group, of a new one if that is done."""
        queue = self.queue
        if not queue.group:
            several = [queue.fresh.popleft() for _ in range(min(self.group_size, len(queue.fresh)))]
            queue.group.extend(sorted(several, key=lambda r: (self.predict(r), r.arrival, r.row)))
        batch: list[Request] = []
        for request in list(queue.group)[: self.max_num_seqs]:
            limit = ceil(self.predict(request)) + self.margin
            if batch and sum(self._blocks(state, r, limit) for r in [*batch, request]) > state.pool.free:
                break
            batch.append(request)
        limit = ceil(self.predict(batch[-1])) + self.margin
        if sum(self._blocks(state, r, limit) for r in batch) > state.pool.free:
            return
        for _ in batch:
            queue.group.popleft()
        self.failing = [r for r in batch if r.output_tokens > limit]
        self.stop = state.token_steps + limit - 1  # the first token comes with the prompt
        self._start(state, step, batch, limit)

    def _failures(self, state: EngineState, step: Step) -> None:
        failed = self.queue.failed
        several = min(len(failed), self.max_num_seqs, state.pool.free // self.longest)
        self._start(state, step, [failed.popleft() for _ in range(several)], None)

    def _start(self, state: EngineState, step: Step, batch: list[Request], limit: int | None) -> None:
        """Compute the prompts of a batch and let it decode until its longest member is done, or for ``limit``."""
        left = [r.prompt_tokens + r.output_tokens - r.target for r in batch]
        longest = max(left, default=0) if limit is None else min(max(left), limit)
        for request, tokens in zip(batch, left, strict=True):
            state.admit(request, NO_HIT, step)
            state.reserve(request, self.longest if limit is None else self._blocks(state, request, limit))
            state.chunk(request, request.target, step)
            if tokens < longest:
                state.pad(request, longest - tokens)

    def _blocks(self, state: EngineState, request: Request, limit: int) -> int:
        """Blocks for a prompt and ``limit`` tokens; the last one needs none of its own."""
        return min(-(-(request.prompt_tokens + limit - 1) // state.block_size), self.longest)
