"""Skip-join multi-level feedback queues (FastServe)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from simulator.core.options import Range, read_options
from simulator.scheduling.args import EngineArgs
from simulator.scheduling.ordered import Rank, RankedQueue
from simulator.scheduling.policy import POLICIES
from simulator.scheduling.preemptive import Preemptive
from simulator.scheduling.request import Request
from simulator.scheduling.state import EngineState
from simulator.scheduling.step import Step
from simulator.scheduling.swapping import Swapping


@dataclass(frozen=True, slots=True)
class FastServeOptions(Swapping):
    """quantum_s: of the first queue; each of the num_queues has twice that of the one before. seconds_per_prompt_token:
    to predict how long a prompt takes (2 x 13e9 FLOP at half of an A100's 312 TFLOP/s are 1.7e-4 s). skip_join: a new
    request joins the queue whose quantum covers its prompt; else the first. starvation_s: after waiting so long a
    request goes to the first queue (0: never). proactive: copies run ahead of need and beside the computation.
    preemption: as in the paper, swap needs ``kv_bytes_per_token``."""

    quantum_s: Annotated[float, Range(1e-6)] = 0.05
    num_queues: Annotated[int, Range(1, 64)] = 8
    seconds_per_prompt_token: Annotated[float, Range(0)] = 1.7e-4
    skip_join: bool = True
    starvation_s: Annotated[float, Range(0)] = 0.3
    proactive: bool = True
    preemption: Literal["recompute", "swap"] = "swap"


class Job:
    """What the queues know of a request."""

    __slots__ = ("level", "running", "since", "used")

    def __init__(self, level: int, now: float) -> None:
        self.level = level
        self.since = now  # s, when it joined its queue, started to run or gave way
        self.used = 0.0  # s of its quantum
        self.running = False


@POLICIES.register("fastserve")
class FastServe(Preemptive):
    """FastServe: short requests finish before long ones without anybody knowing which are short.

    Decides: requests stand in queues of rising quanta; those of the first queues run, at every step. A new request
    skips to the first queue whose quantum is at least its predicted prefill time. Who has run for the quantum of its
    queue goes down to the next; who has waited for ``starvation_s`` goes up to the first. Requests that give way keep
    their KV while there is room; then it is swapped to host memory, of the last in the queues first. ``proactive``:
    copies run ahead of need beside the computation, so that a step is held up only by what the link cannot carry in
    time (it is behind by more than the last step took); else each copy stops the engine.
    Why it helps: under first come, first served, long outputs hold up short ones (head-of-line blocking); lengths need
    not be predicted, only prompts, whose time is known.
    Limits: no gain without a queue; a swap space that is full means recomputation. Among requests of one queue, the
    first to join it goes first. The paper orders swaps by the estimated next scheduled time; here the order of the
    queues stands for it. Time runs while anybody waits; a request that runs while nobody waits has used that time too.
    Reference: Wu et al., FastServe, 2023 (arXiv:2305.05920), sections 4 and 5; starvation_s is its alpha of 300 ms.
    """

    steady = False
    stays = True

    def __init__(self, args: EngineArgs) -> None:
        options = read_options(FastServeOptions, args.policy, args.options)
        super().__init__(args, options)
        self.options = options
        self.quanta = [options.quantum_s * 2**level for level in range(options.num_queues)]

    def prepare(self, state: EngineState) -> None:
        super().prepare(state)
        self.jobs: dict[Request, Job] = {}
        self.link_free = 0.0  # s, when all copies so far are done
        self.last, self.last_step_s = 0.0, 0.0

    def rank(self, state: EngineState, request: Request) -> Rank:
        job = self.jobs.get(request)
        if job is None:  # it has just come
            level = self._joins(request)
            return level, state.now
        return job.level, job.since if not job.running else -1.0

    def _joins(self, request: Request) -> int:
        if not self.options.skip_join:
            return 0
        prefill_s = request.prompt_tokens * self.options.seconds_per_prompt_token
        return next((i for i, quantum in enumerate(self.quanta) if quantum >= prefill_s), len(self.quanta) - 1)

    def schedule(self, state: EngineState) -> Step | None:
        self.last_step_s, self.last = state.now - self.last, state.now
        return super().schedule(state)

    def refresh(self, state: EngineState, queue: RankedQueue) -> None:
        """Who has used up its quantum goes down; who has waited too long goes up."""
        now, starvation = state.now, self.options.starvation_s
        waiting = [*(queue[i] for i in range(len(queue))), *state.swapped]
        alive = [*waiting, *state.running]
        self.jobs = {r: self.jobs.get(r) or Job(self._joins(r), now) for r in alive}
        for request in waiting:
            job = self.jobs[request]
            if starvation and job.level and now - job.since >= starvation:
                job.level, job.used, job.since = 0, 0.0, now
        for request in state.running:
            job = self.jobs[request]
            used = job.used + now - job.since
            if used >= self.quanta[job.level]:
                while used >= self.quanta[job.level] and job.level < len(self.quanta) - 1:
                    used -= self.quanta[job.level]
                    job.level += 1
                job.used, job.since = min(used, self.quanta[job.level]), now
        queue.resort()

    def entered(self, state: EngineState, request: Request) -> None:
        job = self.jobs[request]
        job.running, job.since = True, state.now

    def gave_way(self, state: EngineState, request: Request) -> None:
        job = self.jobs.get(request)
        if job is not None:
            job.used += state.now - job.since
            job.running, job.since = False, state.now

    def copies(self, state: EngineState, step: Step, blocks: int) -> None:
        seconds = blocks * self.host.block_copy_s
        if not self.options.proactive:
            step.extra_s += seconds
            return
        self.link_free = max(self.link_free, state.now) + seconds
        step.extra_s = max(self.link_free - state.now - self.last_step_s, 0.0)
