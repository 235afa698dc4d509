"""What an engine policy is, and the register of those that ship."""

from __future__ import annotations

from typing import Protocol

from simulator.core.registry import Registry
from simulator.scheduling.args import EngineArgs
from simulator.scheduling.request import Request
from simulator.scheduling.state import EngineState, Step


class Policy(Protocol):
    """Decides which tokens an engine computes next.

    A policy is constructed with the engine's arguments and keeps no state of its own beyond what its paper's algorithm
    needs: requests, queues and blocks live in the ``EngineState`` it is given. ``schedule`` checks, then mutates.
    """

    grows: bool
    """Whether decoding takes KV blocks as it goes; False when admission reserves all a request may need."""

    def __init__(self, args: EngineArgs) -> None: ...

    def prepare(self, state: EngineState) -> None:
        """Once, before the first request: choose the waiting queue."""
        ...

    def arrive(self, state: EngineState, request: Request) -> bool:
        """Queue a new request. True when it might be scheduled before anything else changes: a running span of
        decode steps is then cut short, so that the next step can be planned with it."""
        ...

    def schedule(self, state: EngineState) -> Step | None:
        """Plan the next step; None when there is nothing to compute."""
        ...


POLICIES: Registry[type[Policy]] = Registry("engine policy")
