"""What a router is, and the register of those that ship."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Flag, auto
from typing import ClassVar, Protocol

import numpy as np

from simulator.core.registry import Registry
from simulator.routing.fleet import Fleet, Ints
from simulator.routing.prefix_index import PrefixIndex
from simulator.scheduling.request import Request
from traces.trace import Trace


class Needs(Flag):
    """What the cluster must keep up to date for a router; each costs time."""

    NOTHING = 0
    IN_FLIGHT = auto()  # requests routed and not finished
    METRICS = auto()  # queues and KV usage of the engines, scraped
    CACHES = auto()  # what the engines' prefix caches hold, told when they are scraped


@dataclass(frozen=True)
class Surroundings:
    """What a router is built with.

    blocks: ids of prompt blocks -> replicas whose prefix cache held them when last scraped; block_tokens: of those.
    """

    fleet: Fleet
    trace: Trace
    rng: np.random.Generator
    blocks: PrefixIndex | None = None
    block_tokens: int = 0


class Router(Protocol):
    """Chooses the replica of each request. Derive from this class; one file per policy.

    It sees the request as it arrives (its prompt, never its output length) and the ``Fleet``, and mutates neither.
    """

    needs: ClassVar[Needs] = Needs.NOTHING

    def __init__(self, around: Surroundings, options: Mapping[str, bool | int | float | str]) -> None: ...

    def route(self, request: Request, candidates: Ints, now: float) -> int:
        """Replica for a request. candidates: replicas that are open and could serve it, ascending, never empty."""
        ...


ROUTERS: Registry[type[Router]] = Registry("router")
