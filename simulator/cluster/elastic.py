"""What a cluster is made of when its replicas come and go: limits, cold starts, an autoscaler, faults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

OptionValue = bool | int | float | str
Recovery = Literal["recompute", "finish", "migrate"]


@dataclass(frozen=True)
class GroupLife:
    """How many replicas of a group there may be, and how long one takes to start.

    max_replicas: alive at once, starting and draining ones included: the GPUs there are for it.
    initial: ready when the simulation starts.
    warm_start_s: of a start on a node that has loaded the weights before; None: no node keeps them.
    scaling: name and options of an autoscaler of its own; None: that of all groups.
    network_bytes_per_s: of a replica, for the KV of requests that move away from it.
    """

    min_replicas: int
    max_replicas: int
    initial: int
    cold_start_s: float = 0.0
    warm_start_s: float | None = None
    network_bytes_per_s: float = 0.0
    scaling: tuple[str, Mapping[str, OptionValue]] | None = None


@dataclass(frozen=True)
class ScalingPlan:
    """An autoscaler by name, asked every ``interval_s``.

    drain: what becomes of the requests of a replica that is scaled in: it finishes them, they are computed again
    elsewhere at once (recompute), or their KV moves (migrate). drain_timeout_s: those still there then are computed
    again elsewhere.
    """

    policy: str
    options: Mapping[str, OptionValue] = field(default_factory=dict)
    interval_s: float = 15.0
    drain: Recovery = "finish"
    drain_timeout_s: float = float("inf")


@dataclass(frozen=True)
class FaultPlan:
    """A source of faults by name.

    detection_s: from a failure without warning until the router knows; what it sends there meanwhile waits as long.
    recovery: what is done in the time between a warning and the end, see ``ScalingPlan.drain``.
    max_attempts: a request lost for that many times has failed.
    """

    policy: str
    options: Mapping[str, OptionValue] = field(default_factory=dict)
    detection_s: float = 10.0
    recovery: Recovery = "finish"
    max_attempts: int = 10


@dataclass(frozen=True)
class LifePlan:
    """Replicas that come and go. queue_timeout_s: a request that waits so long for any replica to be ready is
    rejected. copies_every_tokens: of each request, its KV is copied to another machine; None: it is not."""

    groups: tuple[GroupLife, ...]
    scaling: ScalingPlan | None = None
    faults: tuple[FaultPlan, ...] = ()
    queue_timeout_s: float = 600.0
    copies_every_tokens: int | None = None

    @property
    def migrates(self) -> bool:
        """Whether requests take their KV along when their replica has to go."""
        drains = [fault.recovery for fault in self.faults] + ([self.scaling.drain] if self.scaling is not None else [])
        return "migrate" in drains
