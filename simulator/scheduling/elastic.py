"""What a policy sees of an engine whose GPUs form groups anew for every iteration (``replica/elastic.py``)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from simulator.scheduling.policy import Policy
from simulator.scheduling.request import Request
from simulator.scheduling.state import EngineState


@dataclass(frozen=True, slots=True)
class Instances:
    """The instances of an engine at one moment: some compute prompts, some hold the decoding batch, the rest is idle.

    Tokens are of KV, but for ``prompt_tokens``. The functions give seconds.
    """

    idle: int
    held: tuple[float, ...]  # tokens on each instance of the decode group
    capacity: int  # tokens that fit on one
    prompt_tokens: int  # prompt tokens that one may compute at once
    next_idle_s: float  # from now until a prompt batch ends; inf: none is under way
    may_pause: bool  # decodes have run as long as they were last held up
    prefill_s: Callable[[int, int, int], float]  # (instances, tokens, sum of squared tokens)
    decode_s: Callable[[int, int], float]  # (instances, decodes), their attention apart
    move_s: Callable[[float], float]  # tokens leave an instance for others


@dataclass(frozen=True, slots=True)
class Prefill:
    """Whole prompts computed together on ``instances``; their KV stays on ``kept`` of them, which then decode."""

    requests: tuple[Request, ...]
    instances: int
    kept: int


@dataclass(frozen=True, slots=True)
class Allotment:
    """Batches that begin now, together on no more than the idle instances and those that decodes give up.

    gives_up: instances that leave the decode group; their KV moves to the others.
    pauses: the only batch runs on the decode group's instances too, which wait for it.
    """

    batches: tuple[Prefill, ...]
    gives_up: int = 0
    pauses: bool = False


class ElasticPolicy(Policy):
    """A policy that also decides which instances compute what. ``schedule`` plans the decode group's next step."""

    def allot(self, state: EngineState, instances: Instances) -> Allotment | None:
        """Prompts to begin with now; None: none. Changes nothing."""
        raise NotImplementedError

    def grows_by(self, state: EngineState, instances: Instances) -> int:
        """Idle instances that join the decode group before its next step. Changes nothing."""
        raise NotImplementedError
