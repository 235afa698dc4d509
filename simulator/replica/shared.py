"""Engines of several models on the same GPUs: one of them computes at a time, step by step, in turn.

All weights stay resident, so changing from one model to the next costs nothing. Whoever has work asks for the GPUs and
gets them in the order of asking; an engine that has had its step asks again behind the others. Requests of a model that
bursts thus take what the others leave, over all the GPUs the models are cut over (AlpaServe, OSDI 2023,
arXiv:2302.11665, multiplexes models at the level of batches the same way). Steps are planned when the GPUs are free,
one by one.

Cut into pipeline stages, engines share those (``PipelineEngine``): a batch enters a stage when the one planned before
it, whoever's it was, has left.
"""

from __future__ import annotations

from collections import deque
from math import inf

from simulator.cost.interface import StepCost
from simulator.replica.engine import Engine, Observer
from simulator.replica.recorder import Recorder
from simulator.replica.steps import OnFinish, release_ended
from simulator.scheduling.policy import Policy
from simulator.scheduling.state import EngineState
from simulator.scheduling.step import DECODE


class Processor:
    """The GPUs of a replica that several engines share. stages: of the pipeline that each of them is cut into."""

    __slots__ = ("busy_until", "queue", "stages")

    def __init__(self, stages: int = 1) -> None:
        self.stages = [0.0] * stages  # s, when each is free
        self.busy_until = 0.0  # s
        self.queue: deque[SharedEngine] = deque()  # who waits for them


class SharedEngine(Engine):
    """Same calls as ``Engine``, for watched replicas alone: engines see each other's steps as they happen."""

    __slots__ = ("_processor",)

    def __init__(
        self,
        state: EngineState,
        policy: Policy,
        cost: StepCost,
        recorder: Recorder,
        *,
        processor: Processor,
        on_finish: OnFinish | None = None,
        observer: Observer | None = None,
    ) -> None:
        super().__init__(state, policy, cost, recorder, step_mode=True, on_finish=on_finish, observer=observer)
        self._lead = 0  # nobody knows before the GPUs are free whose step is next
        self._processor = processor

    def run_until(self, time: float) -> None:
        """Do what is to be done at ``wake_time``, if that is before ``time``; call again for what comes after."""
        now = self.wake_time
        if now >= time:
            return
        state = self.state
        if self._pending:
            self._apply()
        release_ended(state, self.recorder, now, self.on_finish)
        if self._actions:
            self._actions[:] = [action for action in self._actions[:] if not action(now)]
        if self.observer is not None:
            self.observer.settled(now, state)
        works = state.num_decodes or state.prefilling or len(state.waiting) or state.swapped
        self.wake_time = self._ask(now) if works else inf

    def _ask(self, now: float) -> float:
        """Take a step when it is this engine's turn; returns when to wake."""
        processor = self._processor
        queue = processor.queue
        if self not in queue:
            queue.append(self)
        if processor.busy_until > now:
            return processor.busy_until
        if queue[0] is not self:
            return now  # the one before wakes at this instant too
        queue.popleft()
        step = self.policy.schedule(self.state)
        if step is None:
            self._version = -1
            return inf
        if self.observer is not None and (step.decodes or step.chunks):
            self.observer.planned(now, now, step, self.state)
        if step is DECODE:
            if now > self.busy_until:
                self._version = -1  # others have computed in between
            end = self._span(now)
        else:
            end = self._mixed(step, now, now)
        processor.busy_until = end
        return end
