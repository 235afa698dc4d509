"""What an optimiser is: it searches by what it believes of designs, and the designs it likes best are simulated."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Generic, TypeVar

from simulator.core.errors import UserError
from simulator.core.registry import Registry
from simulator.metrics.slo import Slo
from simulator.planning.bounds import highest_rate, likely_rate, roles_of
from simulator.planning.capacity import sustained, t_half_width
from simulator.planning.ledger import Ledger, Row
from simulator.planning.load import reason_of
from simulator.planning.pool import spread
from simulator.planning.probe import Bench, fingerprint
from simulator.planning.runs import WORKSHOP, run_key
from simulator.scenario.config import Scenario
from simulator.scenario.setup import build_slo
from simulator.scenario.spec import spec
from traces.trace import Trace

OptionsT = TypeVar("OptionsT")
T = TypeVar("T")
R = TypeVar("R")
Tick = Callable[[str, int, int], None]


def silent(phase: str, finished: int, total: int) -> None:
    """Tells nobody."""


@dataclass(frozen=True)
class Design:
    """What is simulated. requests: instead of the scenario's workload. rate: requests/s it is meant for, where a search
    for what it sustains begins; None: begin where the prices of steps say."""

    scenario: Scenario
    requests: Trace | None = None
    rate: float | None = None


@dataclass(frozen=True)
class Simulated:
    """What a simulation found: mean of the replications and its interval; NaN: it cannot be built, for a ``reason``.
    ``columns``: what else of it tables show."""

    value: float
    low: float
    high: float
    reason: str = ""
    columns: Mapping[str, float | None] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        values: Sequence[float],
        confidence: float,
        columns: Mapping[str, float | None] | None = None,
        *,
        tolerance: float = 0.0,
    ) -> Simulated:
        """One value per replication; the interval is Student's t, and half the last bracket of a search to
        ``tolerance``."""
        mean = sum(values) / len(values)
        half = t_half_width(values, confidence) + 0.5 * tolerance * mean
        return cls(mean, max(mean - half, 0.0), mean + half, columns=columns or {})

    @classmethod
    def refused(cls, error: UserError) -> Simulated:
        """Of a design that cannot be built."""
        return cls(math.nan, math.nan, math.nan, reason_of(error))


@dataclass(frozen=True)
class Candidate:
    """A design as an optimiser sees it. ``belief``: of the optimiser's quantity. ``columns``: more of it, for tables.
    ``design`` None: it is none, for the ``reason``."""

    label: str
    belief: float = 0.0
    columns: Mapping[str, Any] = field(default_factory=dict)
    design: Design | None = None
    reason: str = ""


@dataclass(frozen=True)
class Question:
    """What every optimiser is given. ``scenario``: what all designs share; ``seeds``: of the replications.
    ``requests``: instead of the scenario's workload, and then there is one replication."""

    scenario: Scenario
    seeds: tuple[int, ...]
    tolerance: float = 0.05
    confidence: float = 0.95
    ledger: Ledger = field(default_factory=Ledger)
    jobs: int = 1
    tick: Tick = silent
    requests: Trace | None = None

    def __post_init__(self) -> None:
        if self.requests is not None:
            object.__setattr__(self, "seeds", self.seeds[:1])

    @property
    def slo(self) -> Slo:
        """Raises UserError where the scenario has none."""
        slo = build_slo(self.scenario.slo)
        if slo is None:
            raise UserError("without an SLO nothing tells what a design sustains.", remedy="Add slo: to the scenario.")
        return slo

    def trace(self, seed: int | None = None) -> Trace:
        """The requests to serve; seed None: the first replication's."""
        if self.requests is not None:
            return self.requests
        return WORKSHOP.trace(replace(self.scenario, seed=self.seeds[0] if seed is None else seed))

    def design(self, scenario: Scenario, rate: float | None = None) -> Design:
        """A design that serves the question's requests."""
        return Design(scenario, self.requests, rate)

    def bench(self, design: Design) -> Bench:
        """Raises UserErrors where the design cannot be built, or without an SLO."""
        _ = self.slo  # there must be one
        return Bench(design.scenario, self.ledger, requests=design.requests)

    def once(self, what: str, design: Design, seed: int, make: Callable[[], Row]) -> Row:
        """Numbers of a run (plain data), made now or kept from before."""
        load = "" if design.requests is None else fingerprint(design.requests)
        asked = f"{what}/{run_key(replace(design.scenario, seed=seed))}/{load}"
        key = hashlib.sha256(asked.encode()).hexdigest()
        row = self.ledger.get(key)
        if row is None:
            row = {"found": make()}
            self.ledger.add(key, row)
        found: Row = row["found"]
        return found

    def seeds_of(self, design: Design) -> tuple[int, ...]:
        """One where a seed would not change the requests."""
        workload = design.scenario.workload
        drawn = workload.trace is None or any(step.arrivals or step.sample for step in workload.transforms)
        return self.seeds if drawn and design.requests is None else self.seeds[:1]

    def sustained(self, designs: Sequence[Design], phase: str) -> list[Simulated]:
        """Requests/s within the SLO of each design, in the order given; 0: not even a thousandth of the guess."""
        return self.each(_sustained, designs, phase)

    def each(self, work: Callable[[tuple[Question, T]], R], tasks: Sequence[T], phase: str) -> list[R]:
        """``work((self, task))`` of every task, in the order given, in as many processes as there are jobs.

        work: a function of a module.
        """
        alone = replace(self, jobs=1, tick=silent)  # what goes to other processes
        numbered = [(at, alone, task) for at, task in enumerate(tasks)]
        found: dict[int, R] = {}
        for (at, _, _), result in spread(_Worker(work), numbered, self.jobs):
            found[at] = result
            self.tick(phase, len(found), len(numbered))
        return [found[at] for at in range(len(numbered))]


@dataclass(frozen=True)
class _Worker(Generic[T, R]):
    work: Callable[[tuple[Question, T]], R]

    def __call__(self, task: tuple[int, Question, T]) -> R:
        return self.work(task[1:])


def _sustained(task: tuple[Question, Design]) -> Simulated:
    question, design = task
    try:
        bench = question.bench(design)
        seeds = question.seeds_of(design)
        trace, roles = bench.trace(seeds[0]), roles_of(design.scenario)
        guess = design.rate or likely_rate(bench.groups, roles, trace, bench.slo)
        found = sustained(
            bench.probe, 1, seeds, guess=guess, tolerance=question.tolerance, confidence=question.confidence
        )
        # A short run of short requests ends before a queue shows; no load is carried faster than the steps allow.
        most = highest_rate(bench.groups, roles, trace)
    except UserError as error:
        return Simulated.refused(error)
    return Simulated(min(found.rate, most), min(found.low, most), min(found.high, most))


@spec
class NoOptions:
    """Of optimisers that have none."""


class Optimiser(ABC, Generic[OptionsT]):
    """Searches designs by what it believes of them. ``quantity``: what it believes something about, and what a
    simulation of a design is asked for. ``Options``: a ``spec`` of its options in a plan's file."""

    quantity: ClassVar[str] = "requests/s within the SLO"
    Options: ClassVar[type] = NoOptions

    def __init__(self, question: Question, options: OptionsT) -> None:
        self.question, self.options = question, options

    @abstractmethod
    def search(self) -> Sequence[Candidate]:
        """Candidates, the one it proposes first; those that cannot be come last. Raises UserErrors."""

    def simulate(self, candidates: Sequence[Candidate]) -> list[Simulated]:
        """The quantity of candidates that have a design."""
        designs = [one.design for one in candidates if one.design is not None]
        return self.question.sustained(designs, "simulated")

    @property
    def goal(self) -> str:
        """What ``worth`` is, in words."""
        return self.quantity

    def worth(self, candidate: Candidate, simulated: Simulated) -> float:
        """What the optimiser wants most of, of a candidate as simulated: by default the quantity. -inf: it is not what
        was asked for."""
        return simulated.value


OPTIMISERS: Registry[type[Optimiser[Any]]] = Registry("optimiser")
