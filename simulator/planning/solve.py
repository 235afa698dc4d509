"""From a plan to its answer: bounds first, then runs, the most promising designs first."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from simulator.planning.evaluate import certify, evaluate
from simulator.planning.ledger import Ledger
from simulator.planning.load import PlanFile
from simulator.planning.outcome import Answer, Hour, Outcome, Progress, Shaken, Size, Status
from simulator.planning.pictures import (
    BEST,
    CURVE,
    as_it_stands,
    by_hour,
    changes,
    fewer,
    patient_probe,
    shake,
    shake_bill,
    size,
    with_slo,
)
from simulator.planning.pool import spread
from simulator.planning.probe import Probe
from simulator.planning.screen import Screened, screen_all
from simulator.planning.spec import Plan
from simulator.planning.store import Store
from simulator.planning.study import Study

NOT_REFUSED = ("search", "early stopping", "throughput bound against the best found")  # run, or left out for their cost
MOST_BILLS = 6
DAY_S = 20 * 3600.0  # a load that lasts this long has hours
T = TypeVar("T")
R = TypeVar("R")


def solve(
    file: PlanFile,
    *,
    jobs: int = 1,
    pictures: bool = True,
    progress: Progress | None = None,
    folder: Path | None = None,
) -> Answer:
    """The answer to a plan. The same whatever the number of jobs: only how many designs are left unfinished differs.

    pictures: also make the runs behind the report's curves. folder: keeps every run that ends; the same plan, killed at
    any point and asked again, goes on from there. Raises UserError when a process dies or the folder cannot be used.
    """
    if folder is None:
        return _Solver(file, Ledger(), jobs, progress).solve(pictures=pictures)
    store = Store(folder, "plan")
    try:
        return _Solver(file, Ledger(store.path), jobs, progress).solve(pictures=pictures)
    finally:
        store.close()


class _Solver:
    def __init__(self, file: PlanFile, ledger: Ledger, jobs: int, progress: Progress | None) -> None:
        self.file, self.plan, self.jobs, self.progress = file, file.plan, jobs, progress
        self.study = Study(file.plan, ledger)
        self.done = 0
        self.probes: list[Probe] = []

    def solve(self, *, pictures: bool) -> Answer:
        screened = self._screen()
        outcomes = [_refused(one) for one in screened if one.reason]
        outcomes += self._search([one for one in screened if not one.reason])
        outcomes.sort(key=lambda outcome: (outcome.state != "ranked", outcome.state == "infeasible", outcome.order))
        ranked = [outcome for outcome in outcomes if outcome.state == "ranked"]
        if self.plan.rate is not None:
            certain = self._certified(ranked[:2])
            outcomes = [certain.get(outcome.design.index, outcome) for outcome in outcomes]
        ranked = [outcome for outcome in outcomes if outcome.state == "ranked"]
        curves = self._curves(ranked[:2]) if pictures else {}
        slo_runs = self._against_slo(outcomes) if pictures else ()
        shaken = self._shaken(ranked[:1]) if pictures else ()
        sizes = self._sizes(ranked[:1]) if pictures else ()
        hours = self._hours(ranked[:1]) if pictures else ()
        calibration: dict[str, Any] = {}
        for outcome in ranked[:2]:
            calibration |= self.study.bench(outcome.design).calibration()
        return Answer(
            self.file, tuple(outcomes), curves, slo_runs, sizes, shaken, hours, calibration, tuple(self.probes)
        )

    def _each(self, phase: str, work: Callable[[T], R], tasks: Iterable[T], total: int) -> Iterator[tuple[T, R]]:
        """``spread`` with progress."""
        self.done = 0

        def tick() -> None:
            if self.progress is not None:
                self.progress(Status(phase, self.done, total, len(self.probes)))

        for task, result in spread(work, tasks, self.jobs, tick=tick):
            self.done += 1
            yield task, result
        tick()

    def _screen(self) -> list[Screened]:
        # Neighbours in the space share engines and traces: a process gets a stretch of it.
        total = len(self.file.designs)
        size = max(1, min(8, total // (4 * self.jobs)))
        pieces = [(self.study, self.file.designs[at : at + size]) for at in range(0, total, size)]
        found = [one for _, results in self._each("bounds", screen_all, pieces, len(pieces)) for one in results]
        return sorted(found, key=lambda one: one.design.index)

    def _search(self, screened: list[Screened]) -> list[Outcome]:
        """Most promising first, by the guess. What the bounds or a first run keep from the top is left unfinished."""
        maximise = self.plan.find == "highest-rate"
        order = sorted(
            screened,
            key=lambda one: (-one.guess / one.cost if maximise else _likely_cost(self.plan, one), one.design.index),
        )
        done: list[Outcome] = []
        tasks = ((self.study, one, self._cutoff(done)) for one in order)  # drawn as processes become free
        for _, outcome in self._each("designs", evaluate, tasks, len(order)):
            done.append(outcome)
            self.probes += outcome.probes
        return done

    def _cutoff(self, done: Sequence[Outcome]) -> float | None:
        """What a design must reach to be among the top."""
        ranked = sorted((outcome for outcome in done if outcome.state == "ranked"), key=lambda outcome: outcome.order)
        if self.plan.top == "all" or len(ranked) < self.plan.top:
            return None
        last = ranked[self.plan.top - 1]
        return last.cost if last.value is None else last.value

    def _certified(self, ranked: Sequence[Outcome]) -> dict[int, Outcome]:
        """The best two, by design, with the rate that they sustain and its interval."""
        found: dict[int, Outcome] = {}
        tasks = [(self.study, outcome) for outcome in ranked]
        for _, outcome in self._each("headroom", certify, tasks, len(tasks)):
            found[outcome.design.index] = outcome
            self.probes += outcome.sustained.probes if outcome.sustained is not None else ()
        return found

    def _curves(self, ranked: Sequence[Outcome]) -> dict[int, tuple[Probe, ...]]:
        tasks = [
            (self.study, outcome.design, outcome.sustained.rate * share, outcome.copies or 1, seed)
            for outcome in ranked
            if outcome.sustained is not None and outcome.sustained.rate
            for share in CURVE
            for seed in self.study.seeds(outcome.design)
        ]
        found: dict[int, list[Probe]] = {}
        for task, probe in self._each("curves", patient_probe, tasks, len(tasks)):
            found.setdefault(task[1].index, []).append(probe)
            self.probes.append(probe)
        return {index: tuple(sorted(probes, key=lambda p: (p.rate, p.seed))) for index, probes in found.items()}

    def _shaken(self, ranked: Sequence[Outcome]) -> tuple[Shaken, ...]:
        tasks = [
            (self.study, outcome, change)
            for outcome in ranked
            if outcome.bill is not None or (outcome.sustained is not None and outcome.sustained.rate)
            for change in changes(self.study, outcome)
        ]
        found: dict[str, Shaken | None] = {}
        work = shake_bill if self.plan.find == "lowest-bill" else shake
        for task, (one, probes) in self._each("what if", work, tasks, len(tasks)):
            found[task[2].name] = one
            self.probes += probes
        return tuple(one for _, _, change in tasks if (one := found[change.name]) is not None)

    def _sizes(self, ranked: Sequence[Outcome]) -> tuple[Size, ...]:
        """Fewer copies of the best design, where it is held against an API: small fleets batch worse."""
        if self.plan.api_price is None or not ranked or ranked[0].sustained is None:
            return ()
        best, copies = ranked[0], ranked[0].copies or 1
        assert best.sustained is not None
        tasks = [(self.study, best, count) for count in fewer(copies)]
        found = [Size(copies, best.sustained.rate)]
        for _, (one, probes) in self._each("sizes", size, tasks, len(tasks)):
            found.append(one)
            self.probes += probes
        return tuple(sorted(found, key=lambda one: one.copies))

    def _hours(self, ranked: Sequence[Outcome]) -> tuple[Hour, ...]:
        tasks = [
            (self.study, outcome)
            for outcome in ranked
            if outcome.bill is not None and outcome.design.scenario is not None
            if not outcome.design.scenario.cluster.groups and self._lasts(outcome) >= DAY_S
        ]
        return next((found for _, found in self._each("hours", by_hour, tasks, len(tasks))), ())

    def _lasts(self, outcome: Outcome) -> float:
        return self.study.bench(outcome.design).trace(self.study.seeds(outcome.design)[0]).duration

    def _against_slo(self, outcomes: Sequence[Outcome]) -> tuple[tuple[int, float, float | None], ...]:
        ranked = [outcome for outcome in outcomes if outcome.state == "ranked"][:BEST]
        if self.plan.find == "lowest-bill":
            return self._bills(ranked, outcomes) if self.plan.slo_factors else ()
        tasks = [(self.study, outcome, factor) for outcome in ranked for factor in self.plan.slo_factors]
        found: list[tuple[int, float, float | None]] = []
        for task, (value, probes) in self._each("SLOs", with_slo, tasks, len(tasks)):
            found.append((task[1].design.index, task[2], value))
            self.probes += probes
        return tuple(sorted(found, key=lambda row: row[:2]))


    def _bills(
        self, ranked: Sequence[Outcome], outcomes: Sequence[Outcome]
    ) -> tuple[tuple[int, float, float | None], ...]:
        """A design's bill does not follow its limits: (design, the factor from which it is within them, its bill), of
        the best and of others that were run, or left out for their cost alone."""
        others = [one for one in outcomes if one.state != "ranked" and one.pruned_by in NOT_REFUSED]
        tasks = [(self.study, outcome) for outcome in (*ranked, *others[:MOST_BILLS])]
        found: list[tuple[int, float, float | None]] = []
        for task, (slack, bill, probes) in self._each("SLOs", as_it_stands, tasks, len(tasks)):
            found.append((task[1].design.index, slack, bill))
            self.probes += probes
        return tuple(sorted(found, key=lambda row: row[:2]))


def _refused(one: Screened) -> Outcome:
    return Outcome(
        one.design, "infeasible", one.reason, one.pruned_by, gpus=one.gpus or None, usd_per_hour=one.usd_per_hour,
        bound=one.bound or None,
    )  # fmt: skip


def _likely_cost(plan: Plan, one: Screened) -> float:
    """By the guess, and no less than the bound allows."""
    return max(one.least, math.ceil((plan.rate or 0.0) / one.guess)) * one.cost  # lowest-bill: its floor
