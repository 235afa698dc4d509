"""What became of each design, and the answer they make together."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from simulator.planning.capacity import Sustained
from simulator.planning.load import Design, PlanFile
from simulator.planning.probe import Probe

State = Literal["ranked", "infeasible", "dominated"]


@dataclass(frozen=True)
class Bill:
    """USD per hour of what a design held: mean of the replications, with its interval."""

    usd_per_hour: float
    low: float
    high: float
    by_seed: tuple[float, ...]


@dataclass(frozen=True)
class Outcome:
    """What became of a design."""

    design: Design
    state: State
    reason: str
    pruned_by: str = ""
    copies: int | None = None
    gpus: int | None = None
    usd_per_hour: float | None = None
    bound: float | None = None
    cost: float = math.inf  # what is minimised
    value: float | None = None  # what is maximised (highest-rate)
    slack: float = math.inf
    sustained: Sustained | None = None
    bill: Bill | None = None  # lowest-bill
    gpus_held: float | None = None  # lowest-bill: on average
    binding: Probe | None = None
    probes: tuple[Probe, ...] = ()

    @property
    def order(self) -> tuple[float, float, int]:
        """The best first."""
        return (self.cost if self.value is None else -self.value, self.slack, self.design.index)


@dataclass(frozen=True)
class Shaken:
    """A change, and what it does to the best design. rate: sustained within the SLO under it (requests/s), 0: none.
    lowest-bill: what the load then costs (``usd_per_hour``), how much of the SLO's limits it takes (``slack``, inf:
    more than there is), and why it misses."""

    name: str
    rate: float = 0.0
    usd_per_hour: float | None = None
    slack: float = math.inf
    why: str = ""


@dataclass(frozen=True)
class Size:
    """Copies of the best design, and what they sustain (requests/s)."""

    copies: int
    rate: float


@dataclass(frozen=True)
class Hour:
    """An hour of a load. offered, carries: requests/s that arrive, and that the replicas ready then sustain; ready:
    replicas, on average; within_slo: share of the requests judged, None: none was."""

    offered: float
    carries: float
    ready: float
    within_slo: float | None


@dataclass(frozen=True)
class Status:
    """How far a plan is."""

    phase: str
    finished: int
    total: int
    runs: int


Progress = Callable[[Status], None]


@dataclass(frozen=True)
class Answer:
    """A plan's result: every design's outcome, the ranked ones first and in order."""

    file: PlanFile
    outcomes: tuple[Outcome, ...]
    curves: dict[int, tuple[Probe, ...]]  # by design: runs around what the best two sustain
    slo_runs: tuple[tuple[int, float, float | None], ...]  # (design, factor, cost or rate), None: not within the limits
    sizes: tuple[Size, ...]  # of the best design, where an API's price is held against it
    shaken: tuple[Shaken, ...]  # of the best design: what it sustains when the plan is wrong about something
    hours: tuple[Hour, ...]  # of the best design, of a load that lasts for a day or more at its own times
    calibration: dict[str, Any]
    all_probes: tuple[Probe, ...] = field(repr=False, default=())

    @property
    def ranked(self) -> tuple[Outcome, ...]:
        return tuple(outcome for outcome in self.outcomes if outcome.state == "ranked")

    @property
    def best(self) -> Outcome | None:
        return self.ranked[0] if self.ranked else None

    @property
    def next_best(self) -> Outcome | None:
        return self.ranked[1] if len(self.ranked) > 1 else None
