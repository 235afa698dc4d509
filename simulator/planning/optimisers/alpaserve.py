"""AlpaServe: which models stand on which group of GPUs, cut how (arXiv:2302.11665)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, NamedTuple

import numpy as np
from pydantic import Field

from simulator.core.errors import HardwareError, UserError
from simulator.metrics.stats import Floats, Ints
from simulator.planning.optimisers.optimiser import OPTIMISERS, Candidate, Design, Optimiser, Question, Simulated
from simulator.scenario.cluster import GroupSpec
from simulator.scenario.config import Scenario
from simulator.scenario.run import run
from simulator.scenario.setup import Setup, build
from simulator.scenario.spec import Fraction, Name, Positive, spec
from simulator.scenario.trace import make_trace
from traces import transforms
from traces.trace import Labels, Trace


@spec
class Options:
    """Of ``alpaserve``."""

    gpus: Positive
    """GPUs there are."""
    models: Annotated[tuple[Name, ...], Field(min_length=1)]
    """Names of the models: variants of the scenario's, each with its workload, drawn anew."""
    memory_share: Annotated[Fraction, Field(gt=0)] = 0.92
    """Share of a GPU's memory for all the models on it; each has an equal part."""

    def __post_init__(self) -> None:
        if len(set(self.models)) < len(self.models):
            raise ValueError("models must differ.")


class Cut(NamedTuple):
    """How the models of a group of GPUs are cut."""

    tensor: int
    stages: int

    @property
    def gpus(self) -> int:
        return self.tensor * self.stages


@dataclass(frozen=True)
class Prices:
    """Of a cut: seconds that a request takes in each stage, (requests,); models that a group holds at most."""

    stage_s: Floats
    most: int


@dataclass(frozen=True)
class Placement:
    """Models of each group of GPUs, all of them cut alike."""

    cut: Cut
    models: tuple[frozenset[int], ...]

    @property
    def label(self) -> str:
        held = "; ".join(",".join(str(m) for m in sorted(group)) for group in self.models)
        return f"{len(self.models)} x (tensor {self.cut.tensor}, stages {self.cut.stages}): {held}"


@OPTIMISERS.register("alpaserve")
class AlpaServe(Optimiser[Options]):
    """Many models on a cluster, several on the same GPUs and each cut over several, for the most requests in time.

    Decides: into groups of how many GPUs the cluster is divided, how models are cut over a group (tensor parallel,
    pipeline stages), and which models stand on which groups.
    Why it helps: models that burst in turn use each other's GPUs; cut over many, a burst has all of them, for the price
    of communication and uneven stages.
    Limits: groups are alike (its buckets of models by size are left out); models are variants of one architecture; it
    believes that requests are computed one by one, whole prompts in the order they come, on the group that is free
    first, and that an answer's tokens follow each other. Nothing is turned away. The first candidate of each cut is
    simulated, the best belief first; groups of one GPU are selective replication, its baseline.
    Reference: Li et al., AlpaServe, OSDI 2023 (arXiv:2302.11665), algorithms 1 and 2 with its faster heuristic: the
    model with most requests out of time goes to the least used group with room, as long as there is one; the best
    placement on that way counts.
    """

    quantity = "SLO attainment"
    Options = Options

    def search(self) -> Sequence[Candidate]:
        """The best placement of every cut, by belief. Raises UserErrors: no SLO on the whole request, nothing fits."""
        slo = self.question.slo
        if slo.e2e_s is None:
            raise UserError("AlpaServe's SLO is on whole requests.", where="slo", remedy="Give slo.e2e_s.")
        self.trace = self._trace(self.question.seeds[0])
        which = self._which(self.trace)
        found = []
        for cut in cuts(self.options.gpus):
            prices = self._prices(cut)
            if prices is None:
                found.append(Candidate(_name(cut), reason="a model does not fit on a group."))
                continue
            groups = self.options.gpus // cut.gpus
            oracle = Oracle(self.trace.arrival, which, prices.stage_s, cut.stages, slo.e2e_s)
            placement, belief = select(cut, groups, len(self.options.models), prices.most, oracle)
            if not all(any(m in held for held in placement.models) for m in range(len(self.options.models))):
                found.append(Candidate(placement.label, reason="the groups do not hold every model."))
                continue
            design = Design(self._scenario(placement), self.trace)
            found.append(Candidate(placement.label, belief, {"group_gpus": cut.gpus}, design))
        return sorted(found, key=lambda one: (one.design is None, -one.belief))

    def simulate(self, candidates: Sequence[Candidate]) -> list[Simulated]:
        """Share of every replication's requests within the SLO."""
        question = self.question
        tasks = [
            (replace(one.design, requests=self._trace(seed)), seed)
            for one in candidates
            if one.design
            for seed in question.seeds
        ]
        values = question.each(_attainment, tasks, "simulated")
        size = len(question.seeds)
        return [Simulated.of(values[at : at + size], question.confidence) for at in range(0, len(values), size)]

    def _trace(self, seed: int) -> Trace:
        """The requests of all models."""
        workload, parts = self.question.scenario.workload, []
        for at, name in enumerate(self.options.models):
            part = make_trace(workload, seed + 1_000 * at)
            parts.append(replace(part, model=Labels(np.zeros(len(part), dtype=np.int32), (name,))))
        return transforms.merge(parts)

    def _which(self, trace: Trace) -> Ints:
        """(requests,) the model of each, by its place."""
        assert trace.model is not None
        place = {name: at for at, name in enumerate(self.options.models)}
        return np.array([place[name] for name in trace.model.names], dtype=np.int64)[trace.model.codes]

    def _prices(self, cut: Cut) -> Prices | None:
        """None: not one model fits on a group."""
        most, setup = 0, None
        for models in range(1, len(self.options.models) + 1):
            try:
                setup = build(self._cut(cut, models))
            except HardwareError:
                break
            most = models
        if setup is None or not most:
            return None
        sizes = zip(self.trace.prompt_tokens.tolist(), self.trace.output_tokens.tolist(), strict=True)
        known: dict[tuple[int, int], float] = {}
        seconds = [known[s] if s in known else known.setdefault(s, _alone(setup, *s)) for s in sizes]
        return Prices(np.array(seconds), most)

    def _cut(self, cut: Cut, models: int) -> Scenario:
        """One of so many models on a group."""
        scenario = self.question.scenario
        engine = replace(
            scenario.engine,
            tensor_parallel_size=cut.tensor,
            pipeline_parallel_size=cut.stages,
            gpu_memory_utilization=self.options.memory_share / models,
        )
        return replace(scenario, engine=engine)

    def _scenario(self, placement: Placement) -> Scenario:
        scenario, groups = self.question.scenario, []
        for at, held in enumerate(placement.models):
            names = [self.options.models[m] for m in sorted(held)]
            for name in names:
                host = None if name == names[0] else f"gpus-{at}-{names[0]}"
                engine = self._cut(placement.cut, len(names)).engine
                groups.append(GroupSpec(name=f"gpus-{at}-{name}", serves=name, shares=host, engine=engine))
        return replace(scenario, cluster=replace(scenario.cluster, replicas=1, groups=tuple(groups)))


def cuts(gpus: int) -> Iterator[Cut]:
    """Ways to cut models over groups that divide the cluster."""
    for size in range(1, gpus + 1):
        if gpus % size == 0:
            yield from (Cut(tensor, size // tensor) for tensor in range(1, size + 1) if size % tensor == 0)


class Oracle:
    """AlpaServe's simulation: every request goes to the group with its model that is free first, and passes the stages
    behind those before it."""

    def __init__(self, arrival: Floats, which: Ints, stage_s: Floats, stages: int, limit_s: float) -> None:
        self._arrival, self._which, self._stage_s = arrival.tolist(), which.tolist(), stage_s.tolist()
        self._stages, self._limit_s = stages, limit_s

    def __call__(self, models: Sequence[frozenset[int]]) -> tuple[Floats, Floats]:
        """((requests,) 1 where in time, (groups,) seconds that the first stage computes)."""
        free = [0.0] * len(models)  # of the first stage; all stages take as long
        used = np.zeros(len(models))
        hosts: dict[int, list[int]] = {}
        for group, held in enumerate(models):
            for m in held:
                hosts.setdefault(m, []).append(group)
        good = np.zeros(len(self._arrival))
        last = [[0.0] * self._stages for _ in models]
        for row, (now, m, seconds) in enumerate(zip(self._arrival, self._which, self._stage_s, strict=True)):
            if m not in hosts:
                continue
            group = min(hosts[m], key=free.__getitem__)
            end, ends = now, last[group]
            for stage, before in enumerate(ends):
                end = ends[stage] = max(end, before) + seconds
            free[group] = ends[0]
            used[group] += seconds
            good[row] = end - now <= self._limit_s
        return good, used

    def missed(self, good: Floats, models: int) -> Floats:
        """(models,) requests out of time."""
        return np.asarray(np.bincount(np.array(self._which), weights=1.0 - good, minlength=models), dtype=np.float64)


def select(cut: Cut, groups: int, models: int, most: int, oracle: Oracle) -> tuple[Placement, float]:
    """The best placement on the way of the heuristic, and the share of requests in time. most: models on a group."""
    held: list[frozenset[int]] = [frozenset()] * groups
    best, highest = Placement(cut, tuple(held)), -1.0
    while True:
        good, used = oracle(held)
        if float(good.mean()) > highest:
            best, highest = Placement(cut, tuple(held)), float(good.mean())
        missed = oracle.missed(good, models)
        stands = [any(m in group for group in held) for m in range(models)]
        ways = [  # who stands nowhere comes first
            (stands[m], -missed[m], used[g], m, g)
            for m in range(models)
            for g in range(groups)
            if m not in held[g] and len(held[g]) < most
        ]
        if not ways:
            return best, highest
        *_, model, group = min(ways)
        held[group] |= {model}


def _alone(setup: Setup, prompt: int, output: int) -> float:
    """Seconds in each stage of a request computed alone: its prompt, and its tokens after the first."""
    seconds = setup.cost.mixed(0, 0, 0, [(prompt, 0)], 1)
    if output > 1:
        seconds += (output - 1) * setup.cost.decode(1, prompt + output // 2, 0, 0).first
    return seconds


def _name(cut: Cut) -> str:
    return f"groups of {cut.gpus} (tensor {cut.tensor}, stages {cut.stages})"


def _attainment(task: tuple[Question, tuple[Design, int]]) -> float:
    question, (design, seed) = task

    def make() -> dict[str, float]:
        summary = run(design.scenario, seed, trace=design.requests).summary
        return {"value": float(summary["slo"]["attainment"])}

    return float(question.once("alpaserve", design, seed, make)["value"])
