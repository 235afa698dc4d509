"""From a plan to its answer: bounds first, then runs, the most promising designs first."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

from simulator.core.errors import UserError
from simulator.metrics.slo import Slo
from simulator.planning.bounds import floors, highest_rate, likely_rate, roles_of
from simulator.planning.capacity import Fewest, Sustained, fewest_copies, sustained
from simulator.planning.load import Design, PlanFile, reason_of
from simulator.planning.pool import spread
from simulator.planning.probe import SKETCH, Bench, Probe
from simulator.planning.spec import Plan

T = TypeVar("T")
R = TypeVar("R")

State = Literal["ranked", "infeasible", "dominated"]
CURVE = (0.4, 0.6, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5)  # of the sustained rate, for the picture of the knee
LOOK = 0.93  # a design whose first replication misses at this share of the rate it must beat is given up
BEST = 5  # designs whose cost is drawn against the SLO


@dataclass(frozen=True)
class Screened:
    """A design before any run. ``least``: copies that the bounds allow at least; ``cost``: of one copy, in what is
    minimised (USD per hour or GPUs), None: no price known."""

    design: Design
    reason: str = ""  # why it cannot be, empty: it may
    pruned_by: str = ""  # memory plan | latency floor | throughput bound | budget | price
    gpus: int = 0
    usd_per_hour: float | None = None
    cost: float = 0.0
    bound: float = 0.0
    guess: float = 0.0
    least: int = 1
    limit: int = 1


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
    binding: Probe | None = None
    probes: tuple[Probe, ...] = ()

    @property
    def order(self) -> tuple[float, float, int]:
        """The best first."""
        return (self.cost if self.value is None else -self.value, self.slack, self.design.index)


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


def seeds_of(plan: Plan, design: Design) -> tuple[int, ...]:
    """The same for all designs: common random numbers. One where a seed would not change the requests of a file."""
    assert design.scenario is not None
    first, workload = design.scenario.seed, design.scenario.workload
    drawn = workload.trace is None or any(step.arrivals or step.sample for step in workload.transforms)
    return (first,) if not drawn else tuple(range(first, first + plan.replications))


def solve(file: PlanFile, *, jobs: int = 1, pictures: bool = True, progress: Progress | None = None) -> Answer:
    """The answer to a plan. The same whatever the number of jobs: only how many designs are left unfinished differs.

    pictures: also make the runs behind the report's curves. Raises UserError when no process survives.
    """
    return _Solver(file, jobs, progress).solve(pictures=pictures)


class _Solver:
    def __init__(self, file: PlanFile, jobs: int, progress: Progress | None) -> None:
        self.file, self.plan, self.jobs, self.progress = file, file.plan, jobs, progress
        self.done = 0
        self.probes: list[Probe] = []

    def solve(self, *, pictures: bool) -> Answer:
        screened = self._screen()
        outcomes = [_refused(one) for one in screened if one.reason]
        outcomes += self._search([one for one in screened if not one.reason])
        outcomes.sort(key=lambda outcome: (outcome.state != "ranked", outcome.state == "infeasible", outcome.order))
        ranked = [outcome for outcome in outcomes if outcome.state == "ranked"]
        if self.plan.find != "highest-rate":
            certain = self._certified(ranked[:2])
            outcomes = [certain.get(outcome.design.index, outcome) for outcome in outcomes]
        ranked = [outcome for outcome in outcomes if outcome.state == "ranked"]
        curves = self._curves(ranked[:2]) if pictures else {}
        slo_runs = self._against_slo(ranked[:BEST]) if pictures else ()
        calibration: dict[str, Any] = {}
        for outcome in ranked[:2]:
            assert outcome.design.scenario is not None
            calibration |= Bench(outcome.design.scenario).calibration()
        return Answer(self.file, tuple(outcomes), curves, slo_runs, calibration, tuple(self.probes))

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
        pieces = [(self.plan, self.file.designs[at : at + size]) for at in range(0, total, size)]
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
        tasks = ((self.plan, one, self._cutoff(done)) for one in order)  # drawn as processes become free
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
        tasks = [(self.plan, outcome) for outcome in ranked]
        for _, outcome in self._each("headroom", certify, tasks, len(tasks)):
            found[outcome.design.index] = outcome
            self.probes += outcome.sustained.probes if outcome.sustained is not None else ()
        return found

    def _curves(self, ranked: Sequence[Outcome]) -> dict[int, tuple[Probe, ...]]:
        tasks = [
            (outcome.design, outcome.sustained.rate * share, outcome.copies or 1, seed)
            for outcome in ranked
            if outcome.sustained is not None and outcome.sustained.rate
            for share in CURVE
            for seed in seeds_of(self.plan, outcome.design)
        ]
        found: dict[int, list[Probe]] = {}
        for task, probe in self._each("curves", patient_probe, tasks, len(tasks)):
            found.setdefault(task[0].index, []).append(probe)
            self.probes.append(probe)
        return {index: tuple(sorted(probes, key=lambda p: (p.rate, p.seed))) for index, probes in found.items()}

    def _against_slo(self, ranked: Sequence[Outcome]) -> tuple[tuple[int, float, float | None], ...]:
        tasks = [(self.plan, outcome, factor) for outcome in ranked for factor in self.plan.slo_factors]
        found: list[tuple[int, float, float | None]] = []
        for task, (value, probes) in self._each("SLOs", with_slo, tasks, len(tasks)):
            found.append((task[1].design.index, task[2], value))
            self.probes += probes
        return tuple(sorted(found, key=lambda row: row[:2]))


def _refused(one: Screened) -> Outcome:
    return Outcome(
        one.design, "infeasible", one.reason, one.pruned_by, gpus=one.gpus or None, usd_per_hour=one.usd_per_hour,
        bound=one.bound or None,
    )  # fmt: skip


def screen_all(task: tuple[Plan, Sequence[Design]]) -> list[Screened]:
    """Several designs, in one process."""
    return [screen(task[0], design) for design in task[1]]


def screen(plan: Plan, design: Design) -> Screened:
    """What the memory plan, the latency floors, the throughput bound and the budget say."""
    if design.scenario is None:
        return Screened(design, design.reason, "not a valid scenario")
    try:
        bench = Bench(design.scenario)
        trace = bench.trace(design.scenario.seed)
    except UserError as error:
        return Screened(design, reason_of(error), "memory plan")
    usd = bench.usd_per_hour
    gpus = bench.num_gpus
    roles = roles_of(design.scenario)
    bound = highest_rate(bench.groups, roles, trace)
    base = Screened(design, gpus=gpus, usd_per_hour=usd, bound=bound)
    for floor in floors(bench.groups, roles, trace, bench.slo):
        if not floor.possible:
            said = f"{floor.name} of a request alone is {floor.floor_s:.3g} s at p{bench.slo.percentile:g}"
            return replace(base, reason=f"{said}, over its limit of {floor.limit_s:g} s.", pruned_by="latency floor")
    cost = _unit_cost(plan, gpus, usd)
    if cost is None:
        return replace(base, reason="no price is known: set hardware.price_per_gpu_hour.", pruned_by="price")
    least = 1 if plan.rate is None else max(1, math.ceil(plan.rate / bound))
    limit = 1 if plan.rate is None else _limit(plan, gpus, usd)
    if least > limit:
        text = f"needs at least {least} copies by the throughput bound ({bound:.3g} requests/s each), {limit} allowed."
        return replace(base, reason=text, pruned_by="throughput bound" if limit else "budget", least=least)
    if plan.rate is None and not _limit(plan, gpus, usd):
        return replace(base, reason="exceeds the budget.", pruned_by="budget")
    guess = min(likely_rate(bench.groups, roles, trace, bench.slo), bound)
    return replace(base, cost=cost, guess=guess, least=least, limit=limit)


def _unit_cost(plan: Plan, gpus: int, usd: float | None) -> float | None:
    """What one copy counts: USD per hour, GPUs, or 1."""
    if plan.find == "cheapest" or plan.by == "rate-per-usd":
        return usd
    return float(gpus) if plan.find == "fewest-gpus" or plan.by == "rate-per-gpu" else 1.0


def _limit(plan: Plan, gpus: int, usd: float | None) -> int:
    """Most copies that the budget allows."""
    limit = plan.max_copies
    if plan.max_gpus is not None:
        limit = min(limit, plan.max_gpus // gpus)
    if plan.max_usd_per_hour is not None:
        limit = min(limit, 0 if usd is None else int(plan.max_usd_per_hour / usd + 1e-9)) if usd != 0 else limit
    return limit


def evaluate(task: tuple[Plan, Screened, float | None]) -> Outcome:
    """One design by simulation. cutoff: what it must reach, None: whatever."""
    plan, one, cutoff = task
    assert one.design.scenario is not None
    base = Outcome(one.design, "dominated", "", gpus=one.gpus, usd_per_hour=one.usd_per_hour, bound=one.bound)
    try:
        bench = Bench(one.design.scenario)
        return _rate(plan, one, bench, base, cutoff) if plan.rate is None else _copies(plan, one, bench, base, cutoff)
    except UserError as error:
        return replace(base, state="infeasible", reason=str(error), pruned_by="not a valid scenario")


def _likely_cost(plan: Plan, one: Screened) -> float:
    """By the guess, and no less than the bound allows."""
    return max(one.least, math.ceil((plan.rate or 0.0) / one.guess)) * one.cost


def _copies(plan: Plan, one: Screened, bench: Bench, base: Outcome, cutoff: float | None) -> Outcome:
    assert plan.rate is not None
    limit = one.limit if cutoff is None else min(one.limit, int(cutoff / one.cost + 1e-9))
    if one.least > limit:
        many = "one copy" if one.least == 1 else f"{one.least} copies"
        text = f"needs at least {many} by the throughput bound: {_price(plan, one.least * one.cost)}."
        return replace(base, reason=f"dominated: {text}", pruned_by="throughput bound against the best found")
    seeds = seeds_of(plan, one.design)
    guess = max(one.least, min(math.ceil(plan.rate / one.guess), limit))
    if len(bench.trace(seeds[0])) > 2 * SKETCH:
        sketch = fewest_copies(bench.sketch, plan.rate, seeds[:1], least=one.least, guess=guess, limit=limit)
        guess = sketch.copies or limit
    found = fewest_copies(bench.probe, plan.rate, seeds, least=one.least, guess=guess, limit=limit)
    if found.copies is None:
        return _not_within(plan, one, base, found, limit)
    return replace(
        base,
        state="ranked",
        copies=found.copies,
        gpus=one.gpus * found.copies,
        usd_per_hour=None if one.usd_per_hour is None else one.usd_per_hour * found.copies,
        cost=one.cost * found.copies,
        slack=sum(probe.slack for probe in found.at) / len(found.at),
        binding=found.below or found.at[0],
        probes=found.probes,
    )


def _not_within(plan: Plan, one: Screened, base: Outcome, found: Fewest, limit: int) -> Outcome:
    why = found.below.why if found.below is not None else ""
    many = f"{limit} copies" if limit > 1 else "one copy"
    text = f"{many} ({_price(plan, limit * one.cost)}) do not serve {plan.rate:g} requests/s: {why}."
    if limit == 1:
        text = text.replace(" do not ", " does not ")
    if limit < one.limit:
        return replace(
            base, reason=f"dominated: {text}", pruned_by="early stopping", binding=found.below, probes=found.probes
        )
    return replace(base, state="infeasible", reason=text, pruned_by="search", binding=found.below, probes=found.probes)


def _price(plan: Plan, cost: float) -> str:
    return f"${cost:,.2f}/h" if plan.find == "cheapest" else f"{cost:g} GPUs"


def _rate(plan: Plan, one: Screened, bench: Bench, base: Outcome, cutoff: float | None) -> Outcome:
    seeds = seeds_of(plan, one.design)
    looked: list[Probe] = []
    start = one.guess
    if cutoff is not None:
        needed = cutoff * one.cost
        if one.bound < needed:
            text = f"dominated: carries at most {one.bound:.3g} requests/s by the throughput bound."
            return replace(base, reason=text, pruned_by="throughput bound against the best found")
        looked.append(bench.probe(LOOK * needed, 1, seeds[0]))
        if not looked[0].meets:
            text = f"dominated: misses at {LOOK * needed:.3g} requests/s already ({looked[0].why})."
            return replace(base, reason=text, pruned_by="early stopping", binding=looked[0], probes=tuple(looked))
        start = needed
    found = sustained(bench.probe, 1, seeds, guess=start, tolerance=plan.tolerance, confidence=plan.confidence)
    probes = (*looked, *found.probes)
    if not found.rate:
        why = found.above.why if found.above is not None else ""
        return replace(
            base, state="infeasible", reason=f"misses its SLO even at {found.high:.3g} requests/s: {why}.",
            pruned_by="search", binding=found.above, probes=probes,
        )  # fmt: skip
    return replace(
        base, state="ranked", copies=1, value=found.rate / one.cost, cost=one.cost, slack=0.0, sustained=found,
        binding=found.above, probes=probes,
    )  # fmt: skip


def certify(task: tuple[Plan, Outcome]) -> Outcome:
    """An outcome with the rate that its copies sustain."""
    plan, outcome = task
    assert outcome.design.scenario is not None and outcome.copies is not None and plan.rate is not None
    found = sustained(
        Bench(outcome.design.scenario).probe,
        outcome.copies,
        seeds_of(plan, outcome.design),
        guess=plan.rate,
        tolerance=plan.tolerance,
        confidence=plan.confidence,
    )
    return replace(outcome, sustained=found, binding=found.above or outcome.binding)


def patient_probe(task: tuple[Design, float, int, int]) -> Probe:
    """A run to its end."""
    design, rate, copies, seed = task
    assert design.scenario is not None
    return Bench(design.scenario).probe(rate, copies, seed, patient=True)


def with_slo(task: tuple[Plan, Outcome, float]) -> tuple[float | None, tuple[Probe, ...]]:
    """Cost (or rate) of a design when the SLO's limits are multiplied, of the first replication."""
    plan, outcome, factor = task
    assert outcome.design.scenario is not None
    bench = Bench(outcome.design.scenario)
    slo = scaled(bench.slo, factor)
    seed = seeds_of(plan, outcome.design)[:1]

    def run(rate: float, copies: int, number: int) -> Probe:
        return bench.probe(rate, copies, number, slo=slo)

    roles = roles_of(outcome.design.scenario)
    if not all(floor.possible for floor in floors(bench.groups, roles, bench.trace(seed[0]), slo)):
        return None, ()
    if plan.rate is None:
        assert outcome.sustained is not None
        rates = sustained(run, 1, seed, guess=outcome.sustained.rate, tolerance=0.05, confidence=plan.confidence)
        return (rates.rate or None), rates.probes
    assert outcome.copies is not None
    unit = outcome.cost / outcome.copies
    tighter = factor < 1.0
    limit = min(_limit(plan, bench.num_gpus, bench.usd_per_hour), 4 * outcome.copies) if tighter else outcome.copies
    least = outcome.copies if tighter else 1
    found = fewest_copies(run, plan.rate, seed, least=least, guess=outcome.copies, limit=limit)
    return (None if found.copies is None else found.copies * unit), found.probes


def scaled(slo: Slo, factor: float) -> Slo:
    """Every limit times ``factor``."""
    return replace(slo, **{name: limit * factor for name, limit in slo.limits().items()})  # type: ignore[arg-type]
