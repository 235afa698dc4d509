"""What an autoscaler is, what it is shown, and the register of those that ship."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from simulator.core.registry import Registry
from simulator.scaling.profile import Profile

OptionValue = bool | int | float | str


@dataclass(frozen=True, slots=True)
class GroupFacts:
    """What does not change about a group of equal replicas."""

    name: str
    min_replicas: int
    max_replicas: int
    initial: int
    cold_start_s: float
    max_num_seqs: int
    profile: Profile | None = None  # None: nobody has measured it, as nobody asks


@dataclass(frozen=True, slots=True)
class GroupView:
    """A group as it is at the moment of asking. Counts of requests are over its ready replicas together."""

    target: int  # replicas asked for last
    ready: int
    starting: int
    draining: int
    waiting: int  # requests in the engines' queues, and at the router where no replica is ready
    running: int
    kv_usage: float  # mean over ready replicas, 0 to 1; 0 without any
    arrivals: int  # requests that came for this group since the last look
    freeness: float = 0.0  # tokens that every running request could still make, memory of all ready replicas together
    prompt_tokens: int = 0  # of the requests that came since the last look
    context_tokens: int = 0  # in the KV caches of the running requests
    clock: float = 1.0  # share of the maximum at which its GPUs are locked, or will be
    watts: float = 0.0  # of all its replicas, mean since the last look; known to clock controllers


@dataclass(frozen=True, slots=True)
class View:
    """What autoscalers see: the present and what they remember. Never the future of the trace."""

    now: float  # s
    groups: tuple[GroupView, ...]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What an autoscaler is built with."""

    groups: tuple[GroupFacts, ...]
    interval_s: float


class Scaler(Protocol):
    """Decides how many replicas each group should have. Derive from this class; one file per policy."""

    def __init__(self, around: Surroundings, options: Mapping[str, OptionValue]) -> None: ...

    def desired(self, view: View) -> Sequence[int]:
        """Replicas wanted per group, in the groups' order; the cluster clips them to the group's limits."""
        ...


SCALERS: Registry[type[Scaler]] = Registry("autoscaler")
