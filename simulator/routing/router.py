"""What a router is, and the register of those that ship."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Flag, auto
from typing import Protocol

import numpy as np

from simulator.core.registry import Registry
from simulator.routing.fleet import Fleet, Floats, Ints
from simulator.routing.prefix_index import PrefixIndex
from simulator.scheduling.request import Request
from traces.trace import Trace


class Needs(Flag):
    """What the cluster must keep up to date for a router; each costs time."""

    NOTHING = 0
    IN_FLIGHT = auto()  # requests routed and not finished
    METRICS = auto()  # queues and KV usage of the engines, scraped
    CACHES = auto()  # what the engines' prefix caches hold, told when they are scraped
    TIERS = auto()  # what the KV tiers of the replicas hold, as it is when a request is routed
    QUEUED_TOKENS = auto()  # prompt tokens still to compute, scraped
    ENDINGS = auto()  # a call of ``ended`` for each request
    FINISHES = auto()  # a call of ``finished`` for each request


class Predictor(Protocol):
    """What routers know of speed: the replicas' own cost models, boiled down to straight lines."""

    @property
    def seconds_per_prompt_token(self) -> Floats:
        """(replicas,) of a full step."""
        ...

    @property
    def seconds_per_context_token(self) -> Floats:
        """(replicas,) that a decode step reads."""
        ...

    def ttft(self, fleet: Fleet, prompt_tokens: int | Ints) -> Floats:
        """(replicas,) s until a prompt that came now would be computed, behind ``fleet.queued_tokens``.

        prompt_tokens: of it, or, (replicas,), what each replica would have to compute.
        """
        ...


class TierView(Protocol):
    """What the KV tiers of the replicas hold; those that several share are not counted."""

    def after(self, replica: int, ids: Sequence[int], have: int, now: float) -> Sequence[int]:
        """How many blocks of a prompt, after the ``have`` first that the GPU's cache holds, each tier of a replica
        holds, fastest first, up to the first block that none has. ids: of the prompt's blocks."""
        ...


@dataclass(frozen=True)
class Surroundings:
    """What a router is built with.

    blocks: ids of prompt blocks -> replicas whose prefix cache held them when last scraped; block_tokens: of those.
    predict: None where no cost model is known. tiers: for routers that need ``TIERS``.
    """

    fleet: Fleet
    trace: Trace
    rng: np.random.Generator
    blocks: PrefixIndex | None = None
    block_tokens: int = 0
    predict: Predictor | None = None
    tiers: TierView | None = None


class Router(Protocol):
    """Chooses the replica of each request. Derive from this class; one file per policy.

    It sees the request as it arrives (its prompt, never its output length) and the ``Fleet``, and mutates neither. What
    depends on how requests end reads the ``Fleet`` or asks for ``ended``.
    """

    needs: Needs = Needs.NOTHING  # of the class, or of one with these options

    def __init__(self, around: Surroundings, options: Mapping[str, bool | int | float | str]) -> None: ...

    def route(self, request: Request, candidates: Ints, now: float) -> int:
        """Replica for a request. candidates: replicas that are open and could serve it, ascending, never empty."""
        ...

    def ended(self, request: Request, replica: int) -> None:
        """A request has left ``replica``. Those of different replicas may be told out of order, all before the next
        ``route`` at a later time. Called where ``needs`` has ``ENDINGS``."""

    def joined(self, request: Request, replica: int) -> None:
        """A request has come to ``replica`` from another one, which it has left, with its KV. Called like ``ended``."""

    def finished(self, request: Request, replica: int, time: float) -> None:
        """A request has got its last token on ``replica`` at ``time`` (s). Told as ``ended`` is, where ``needs`` has
        ``FINISHES``; not told of requests that leave a replica otherwise."""


class Uniforms:
    """Uniform draws, taken from numpy a thousand at a time: one by one they would cost more than all else here."""

    __slots__ = ("_left", "_rng")

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._left: list[float] = []

    def below(self, n: int) -> int:
        """One of 0 .. n - 1."""
        if not self._left:
            self._left = self._rng.random(1024).tolist()
        return int(self._left.pop() * n)


Options = Mapping[str, bool | int | float | str]
ROUTERS: Registry[type[Router]] = Registry("router")
