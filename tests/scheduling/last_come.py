"""A policy of somebody else's, named as ``tests.scheduling.last_come:LastComeFirstServed``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from simulator.core.options import Range, read_options
from simulator.kv.prefix import NO_HIT
from simulator.scheduling import DECODE, EngineArgs, EngineState, Policy, Request, Step


@dataclass(frozen=True, slots=True)
class Options:
    patience: Annotated[int, Range(1, 10)] = 1


class LastComeFirstServed(Policy):
    """One request at a time, the youngest first."""

    prefix_caching = False

    def __init__(self, args: EngineArgs) -> None:
        self.options = read_options(Options, args.policy, args.options)

    def prepare(self, state: EngineState) -> None: ...

    def arrive(self, state: EngineState, request: Request) -> bool:
        state.waiting.appendleft(request)
        return not state.running

    def schedule(self, state: EngineState) -> Step | None:
        if state.running or not state.waiting:
            return DECODE if state.num_decodes else None
        step = Step(decodes=False)
        request = state.waiting.popleft()
        state.admit(request, NO_HIT, step)
        state.chunk(request, request.target, step)
        return step
