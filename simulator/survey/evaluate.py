"""One system: its measurements, then its band."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from simulator.core.errors import ScenarioError, UserError
from simulator.planning.ledger import Ledger
from simulator.planning.optimisers.file import read_options
from simulator.planning.optimisers.optimiser import Question
from simulator.planning.optimisers.solve import ask
from simulator.planning.search import highest_rate
from simulator.survey.experiment import Experiment, Numbers, load_of, numbers
from simulator.survey.expression import Formula, Points
from simulator.survey.load import SystemFile, variant
from simulator.survey.spec import CapacitySpec, Check, Measure, OptimiseSpec

Verdict = Literal["within band", "miss", "not reproduced here"]
Progress = Callable[[str], None]

# What of a run's summary is kept beside the band's own numbers.
KEPT = ("ttft_s", "tpot_s", "itl_s", "e2e_s", "normalized_latency_s_per_token")


@dataclass(frozen=True)
class Found:
    """One check: what was found. ``value`` None: nothing to measure; a statement is 1 (true) or 0."""

    name: str
    value: float | None
    low: float | None
    high: float | None
    exact: bool
    within: bool
    why: str

    @property
    def statement(self) -> bool:
        return self.low is None and self.high is None


@dataclass(frozen=True)
class Outcome:
    """A system's row of the scoreboard."""

    verdict: Verdict
    checks: tuple[Found, ...]
    measured: dict[str, Any]  # by measurement: a few numbers of its run, or of each run of its sweep
    calibration: dict[str, str]  # by GPU: where step times come from
    seconds: float


def evaluate(file: SystemFile, progress: Progress | None = None) -> Outcome:
    """Run a system's measurements and judge its band. Raises UserErrors of its scenarios and formulas."""
    begin = time.perf_counter()
    system = file.system
    if system.not_reproduced is not None:
        return Outcome("not reproduced here", (), {}, {}, 0.0)
    bench = _Bench(file)
    for name, measure in system.measure.items():
        if progress is not None:
            progress(name)
        try:
            bench.results[name] = bench.measure(measure)
        except UserError as error:
            where = f"{file.path}: measure.{name}: {error.where or ''}".removesuffix(": ")
            raise type(error)(error.message, where=where, remedy=error.remedy) from error
    checks = tuple(judge(check, bench.results) for check in system.band)
    verdict: Verdict = "within band" if all(check.within for check in checks) else "miss"
    kept = {name: _kept_of(result, system.measure[name]) for name, result in bench.results.items()}
    return Outcome(verdict, checks, kept, bench.calibration, time.perf_counter() - begin)


class _Bench:
    """Measurements of one system, in order."""

    def __init__(self, file: SystemFile) -> None:
        self.file = file
        self.results: dict[str, Any] = {}
        self.calibration: dict[str, str] = {}
        self.built: dict[str, Any] = {}
        self.ledger = Ledger()  # of optimisers: runs that several of them ask for

    def measure(self, measure: Measure) -> Numbers | Points:
        if measure.optimise is not None:
            return self._optimised(measure, measure.optimise)
        rate = measure.rate
        if isinstance(rate, str):
            rate = Formula(rate).number(self.results)
        if measure.sweep is None:
            experiment = self._experiment(measure, {})
            if measure.capacity is not None:
                return self._capacity(experiment, measure, measure.capacity)
            return self._run(experiment, rate, measure)
        path, points = measure.sweep.path, []
        for value in measure.sweep.values:
            settings = {} if path == "rate" else {path: value}
            experiment = self._experiment(measure, settings)
            point = self._run(experiment, value if path == "rate" else rate, measure)
            points.append(point | {"value": value})
        return Points(points)

    def _optimised(self, measure: Measure, spec: OptimiseSpec) -> Points:
        """One entry per candidate of the optimiser that can be."""
        chosen = variant(self.file, measure.of, measure.set)
        if chosen.prices:
            raise ScenarioError("published prices ('price') do not go to an optimiser.")
        requests = load_of(chosen) if chosen.mix else None
        question = Question(
            chosen.scenario, (chosen.scenario.seed,), spec.tolerance, ledger=self.ledger, requests=requests
        )
        computed = {name: Formula(text).number(self.results) for name, text in spec.computed.items()}
        kind, options = read_options(spec.optimiser, spec.options | computed, self.file.source)
        found = ask(kind(question, options), spec.optimiser, spec.top)
        if found.best is None:
            raise ScenarioError(found.answer)
        for gpu, said in found.calibration().items():
            self.calibration[gpu] = str(said.get("name", "data-sheet roofline"))
        return Points(row for row in found.rows if row["rank"] is not None)

    def _experiment(self, measure: Measure, settings: Mapping[str, Any]) -> Experiment:
        experiment = Experiment(self.file, measure.of, measure.set | dict(settings), self.built)
        for group in experiment.groups:
            fitted = group.calibration
            self.calibration[group.gpu.name] = "data-sheet roofline" if fitted is None else fitted.name
        if experiment.variant.prices:
            self.calibration |= {name: price.source for name, price in experiment.variant.prices.items()}
        return experiment

    def _run(self, experiment: Experiment, rate: float | None, measure: Measure) -> Numbers:
        return numbers(experiment.run(rate), measure, self.results) | {"rate": rate}

    def _capacity(self, experiment: Experiment, measure: Measure, spec: CapacitySpec) -> Numbers:
        """The numbers of the run at the highest rate that meets the target (where none does: of the last one)."""
        meets = Formula(spec.meets)
        best: Numbers = {}
        last: Numbers = {}

        def probe(rate: float) -> bool:
            nonlocal best, last
            last = self._run(experiment, rate, measure)
            good = meets.number(self.results | last) == 1.0
            if good and rate > best.get("rate", 0.0):
                best = last
            return good

        found = highest_rate(probe, start=spec.start, tolerance=spec.tolerance, highest=spec.highest or math.inf)
        return (best or last) | {"rate": found.rate, "too_high": found.too_high, "probes": found.probes}


def judge(check: Check, results: Mapping[str, Any]) -> Found:
    """Hold one formula against its bounds. NaN (nothing measured) is never within."""
    value = Formula(check.value).number(results)
    known = not math.isnan(value)
    if check.low is None and check.high is None:
        within = value == 1.0
    else:
        low = -math.inf if check.low is None else check.low
        high = math.inf if check.high is None else check.high
        within = known and low <= value <= high
    shown = value if known and math.isfinite(value) else None
    return Found(check.name, shown, check.low, check.high, check.exact, within, "" if within else check.why)


def _kept_of(result: Numbers | Points, measure: Measure) -> Any:
    if measure.optimise is not None:
        assert isinstance(result, Points)
        return [{name: _plain(value) for name, value in row.items()} for row in result]
    if isinstance(result, Points):
        return [_kept(point, measure) for point in result]
    return _kept(result, measure)


def _kept(point: Numbers, measure: Measure) -> dict[str, Any]:
    latency = point["latency"]
    kept: dict[str, Any] = {
        name: point[name] for name in ("value", "rate", "too_high", *measure.values) if name in point
    }
    kept["stability"] = point["stability"]["verdict"]
    kept["finished"] = point["requests"]["finished"]
    kept["request_per_s"] = point["throughput"]["request_per_s"]
    kept["output_tokens_per_s"] = point["throughput"]["output_tokens_per_s"]
    kept |= {name: {part: latency[name][part] for part in ("mean", "p50", "p99")} for name in KEPT}
    if point["slo"] is not None:
        kept["slo_attainment"] = point["slo"]["attainment"]
    return {name: _plain(value) for name, value in kept.items()}


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
