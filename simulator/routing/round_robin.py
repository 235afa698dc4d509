"""Round robin."""

from __future__ import annotations

from collections.abc import Mapping

from simulator.core.options import NoOptions, read_options
from simulator.routing.fleet import Ints
from simulator.routing.router import ROUTERS, Router, Surroundings
from simulator.scheduling.request import Request


@ROUTERS.register("round-robin")
class RoundRobin(Router):
    """Replicas in turn.

    Decides: the candidate after the one chosen last.
    Why it helps: nothing to know, nothing to go stale; even counts.
    Limits: blind to length and load: long requests pile up where they fall, and caches are shared by nobody.
    Reference: nginx and Kubernetes services; the default of vLLM's production stack.
    """

    def __init__(self, around: Surroundings, options: Mapping[str, bool | int | float | str]) -> None:
        read_options(NoOptions, "round-robin", options, "router")
        self._last = -1
        self._size = around.fleet.size

    def route(self, request: Request, candidates: Ints, now: float) -> int:
        del request, now
        after = self._last + 1
        if len(candidates) == self._size:  # nobody is closed: the usual case
            self._last = after if after < self._size else 0
        else:
            following = candidates[candidates > self._last]
            self._last = int(following[0] if len(following) else candidates[0])
        return self._last
