"""DynamoLLM's pools: GPUs, tensor parallelism and clock for every size of request, for the least energy."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Annotated

import numpy as np
from pydantic import Field

from simulator.core.random import streams
from simulator.planning.ledger import Row
from simulator.planning.optimisers.melange import Grid, steady_part
from simulator.planning.optimisers.optimiser import OPTIMISERS, Candidate, Design, Optimiser, Question, Simulated
from simulator.scenario.cluster import GroupSpec
from simulator.scenario.config import Scenario
from simulator.scenario.run import run
from simulator.scenario.spec import Positive, PositiveNumber, spec
from traces import transforms
from traces.trace import Floats, Ints, Labels, Trace

LOADS = (0.4, 0.9)  # of what an instance sustains: where its power is measured
Clock = Annotated[float, Field(strict=True, gt=0, le=1, allow_inf_nan=False)]


@spec
class Options:
    """Of ``dynamollm``."""

    rate: PositiveNumber
    """Requests per second to serve."""
    prompt_edges: tuple[Positive, ...] = (256, 1024)
    """Longest prompts of the classes but the last, tokens."""
    output_edges: tuple[Positive, ...] = (100, 350)
    """Longest answers of the classes but the last, tokens."""
    tensor_parallel_sizes: Annotated[tuple[Positive, ...], Field(min_length=1)] = (2, 4, 8)
    """GPUs of an instance."""
    clocks: Annotated[tuple[Clock, ...], Field(min_length=1)] = (0.6, 0.8, 1.0)
    """Core clocks, shares of the maximum."""
    max_gpus: Positive | None = None
    """Budget; null: none."""

    def __post_init__(self) -> None:
        for name in ("prompt_edges", "output_edges"):
            if list(edges := getattr(self, name)) != sorted(set(edges)):
                raise ValueError(f"{name!r} must rise.")


@dataclass(frozen=True)
class Config:
    """An instance."""

    tp: int
    clock: float

    @property
    def label(self) -> str:
        return f"TP{self.tp}" + ("" if self.clock == 1.0 else f"@{self.clock:g}")


@dataclass(frozen=True)
class Profile:
    """Of an instance under requests of one class: requests/s that it sustains (0: none), and watts,
    ``idle + per_rate x requests/s``."""

    sustains: float
    idle_w: float = 0.0
    per_rate: float = 0.0


@dataclass(frozen=True)
class Pools:
    """``counts[i, k]``: instances of configuration k for class i; ``loads[i, k]``: requests/s they get."""

    counts: Ints
    loads: Floats
    watts: float
    configs: tuple[Config, ...] = ()


@OPTIMISERS.register("dynamollm")
class DynamoLlm(Optimiser[Options]):
    """Instances, tensor parallelism and clock for every size of request, for the least energy (an integer program).

    Decides: for each class of requests (lengths of prompt and answer: SS, SM, ... LL) how many instances of what tensor
    parallel size at which clock serve what share of it.
    Why it helps: short requests keep their limits on fewer GPUs at a lower clock than long ones, and a GPU that is not
    held draws nothing.
    Limits: it believes in power linear in the load between two measured points, in loads that even out, and in what an
    instance sustains of a class by itself; the load's rate is one number (fleets that follow a day: ``cluster.scaling``
    with policy ``energy``, and ``cluster.clocks``). A class is known on arrival, where the paper predicts lengths; its
    edges are the paper's, from memory.
    Reference: Stojkovic et al., DynamoLLM, HPCA 2025 (arXiv:2408.00741), section IV; solved by HiGHS.
    """

    quantity = "W"
    Options = Options

    def search(self) -> Sequence[Candidate]:
        """The pools, what they would be without lower clocks or with one size of instance, and one pool for all; by
        belief. Raises UserErrors: no SLO, or a class that nothing serves."""
        options, trace, seed = self.options, self.question.trace(), self.question.seeds[0]
        prompt, output = ((0.0, *edges, math.inf) for edges in (options.prompt_edges, options.output_edges))
        self.grid = Grid(trace, prompt, output)
        self.configs = [Config(tp, clock) for tp, clock in product(options.tensor_parallel_sizes, options.clocks)]
        self.labels = [_letter(prompt, p[0]) + _letter(output, o[0]) for p, o in self.grid.edges]  # SS ... LL
        which = self.grid(trace)
        classes = [np.flatnonzero(which == at) for at in range(len(self.labels))]
        self.rates = options.rate * np.array([len(rows) for rows in classes]) / len(trace)
        largest, fastest = max(options.tensor_parallel_sizes), max(options.clocks)
        asked = [(steady_part(trace, rows, seed), one) for rows in classes for one in self.configs]
        asked.append((steady_part(trace, np.arange(len(trace)), seed), Config(largest, fastest)))
        *each, whole = self._profiles(asked)
        size = len(self.configs)
        self.profiles = [each[at : at + size] for at in range(0, len(each), size)]
        self.pools: dict[str, Pools] = {}
        tries = (
            ("pools", self.configs),
            ("pools at full clock", [one for one in self.configs if one.clock == fastest]),
            (f"pools of TP{largest} at full clock", [Config(largest, fastest)]),
        )
        found = [self._pooled(name, configs) for name, configs in tries] + [self._one_pool(whole, largest, fastest)]
        return sorted(found, key=lambda one: (one.design is None, one.belief))

    def simulate(self, candidates: Sequence[Candidate]) -> list[Simulated]:
        """Mean watts of the GPUs at the rate, and the share of the requests within the SLO, of every replication."""
        question, tasks = self.question, []
        for one in candidates:
            assert one.design is not None
            tasks += [replace(one.design, requests=self._sent(one.label, seed)) for seed in question.seeds]
        rows, size = question.each(_measured, tasks, "simulated"), len(question.seeds)
        found = []
        for at in range(0, len(rows), size):
            own = rows[at : at + size]
            more = {"within_slo": sum(row["within_slo"] for row in own) / size}
            found.append(Simulated.of([row["watts"] for row in own], question.confidence, more))
        return found

    @property
    def goal(self) -> str:
        return f"power, of those with {self.question.slo.percentile:g} % of the requests within the SLO"

    def worth(self, candidate: Candidate, simulated: Simulated) -> float:
        """Fewest watts of those that keep the SLO, as far as the SLO's percentile asks."""
        kept = (simulated.columns["within_slo"] or 0.0) * 100.0 >= self.question.slo.percentile
        return -simulated.value if kept else -math.inf

    def _profiles(self, asked: Sequence[tuple[Trace, Config]]) -> list[Profile]:
        """What an instance sustains of each load, and its watts."""
        designs = [Design(_instance(self.question.scenario, one), load) for load, one in asked]
        rates = [one.value if one.value > 0 else 0.0 for one in self.question.sustained(designs, "instances")]
        able = [(design, rate) for design, rate in zip(designs, rates, strict=True) if rate]
        loads = [replace(design, rate=share * rate) for design, rate in able for share in LOADS]
        watts = iter([row["watts"] for row in self.question.each(_measured, loads, "power")])
        found = []
        for rate in rates:
            if not rate:
                found.append(Profile(0.0))
                continue
            low, high = next(watts), next(watts)
            slope = max(high - low, 0.0) / ((LOADS[1] - LOADS[0]) * rate)
            found.append(Profile(rate, low - slope * LOADS[0] * rate, slope))
        return found

    def _pooled(self, name: str, configs: Sequence[Config]) -> Candidate:
        """The program's answer with some of the configurations."""
        places = [self.configs.index(one) for one in configs]
        profiles = [[own[at] for at in places] for own in self.profiles]
        unserved = [at for at, own in enumerate(profiles) if not any(one.sustains for one in own)]
        if unserved:
            return Candidate(name, reason=f"nothing serves class {self.labels[unserved[0]]} within the SLO.")
        pools = solve_pools(profiles, self.rates, [one.tp for one in configs], self.options.max_gpus)
        if pools is None:
            return Candidate(name, reason=f"{self.options.max_gpus} GPUs are too few.")
        groups = [
            (self.labels[at], configs[k], int(pools.counts[at, k]))
            for at, k in zip(*np.nonzero(pools.counts), strict=True)
        ]
        said = ", ".join(f"{label} {count} x {config.label}" for label, config, count in groups)
        label = f"{name} ({said})"
        self.pools[label] = replace(pools, configs=tuple(configs))
        base = self.question.scenario
        specs = tuple(_group(base, config, count, f"{label}/{config.label}") for label, config, count in groups)
        scenario = replace(base, cluster=replace(base.cluster, replicas=1, groups=specs))
        design = Design(scenario, self._sent(label, self.question.seeds[0]), self.options.rate)
        gpus = int((pools.counts @ np.array([one.tp for one in configs])).sum())
        return Candidate(label, pools.watts, {"gpus": gpus}, design)

    def _one_pool(self, whole: Profile, tp: int, clock: float) -> Candidate:
        """As many equal instances as the whole load needs: the fixed fleet that the paper compares with."""
        label = f"one pool of TP{tp} at full clock"
        if not whole.sustains:
            return Candidate(label, reason="it does not keep the SLO.")
        many = math.ceil(self.options.rate / whole.sustains - 1e-9)
        if self.options.max_gpus is not None and many * tp > self.options.max_gpus:
            return Candidate(label, reason=f"{self.options.max_gpus} GPUs are too few.")
        one = _instance(self.question.scenario, Config(tp, clock))
        scenario = replace(one, cluster=replace(one.cluster, replicas=many))
        watts = many * whole.idle_w + whole.per_rate * self.options.rate
        design = self.question.design(scenario, self.options.rate)
        return Candidate(f"{label} ({many})", watts, {"gpus": many * tp}, design)

    def _sent(self, label: str, seed: int) -> Trace:
        """The requests of a seed, each sent to a pool of its class, by the pools' shares."""
        trace, pools = self.question.trace(seed), self.pools.get(label)
        if pools is None:
            return trace
        shares = np.cumsum(pools.loads, axis=1) / pools.loads.sum(axis=1, keepdims=True)
        which = self.grid(trace)
        draws = streams(seed).stream("planning.dynamollm").random(len(trace))
        config = np.minimum((draws[:, None] >= shares[which]).sum(axis=1), shares.shape[1] - 1)
        names = tuple(f"{label}/{config.label}" for label in self.labels for config in pools.configs)
        return replace(trace, model=Labels((which * shares.shape[1] + config).astype(np.int32), names))


def solve_pools(
    profiles: Sequence[Sequence[Profile]], rates: Floats, gpus: Sequence[int], max_gpus: int | None
) -> Pools | None:
    """Instances N[i, k] and loads L[i, k] of least power (HiGHS); None: the GPUs do not suffice.

    Minimises the sum of idle[i, k] N[i, k] + per_rate[i, k] L[i, k] over whole N and L >= 0, where each class's loads
    sum to rates[i], L[i, k] <= sustains[i, k] N[i, k], and the sum of gpus[k] N[i, k] is at most ``max_gpus``.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    rows, size = len(profiles), len(gpus)
    cells = rows * size
    sustains = np.array([[one.sustains for one in own] for own in profiles]).ravel()
    cost = [[one.idle_w for own in profiles for one in own], [one.per_rate for own in profiles for one in own]]
    served = np.hstack([np.zeros((rows, cells)), np.kron(np.eye(rows), np.ones(size))])
    carried = np.hstack([-np.diag(sustains), np.eye(cells)])
    limits = [LinearConstraint(served, rates, rates), LinearConstraint(carried, -np.inf, 0.0)]
    if max_gpus is not None:
        held = np.concatenate([np.tile(np.asarray(gpus, dtype=float), rows), np.zeros(cells)])
        limits.append(LinearConstraint(held[None, :], 0.0, max_gpus))
    most = np.where(sustains > 0, np.inf, 0.0)
    found = milp(
        np.concatenate(cost),
        constraints=limits,
        bounds=Bounds(np.zeros(2 * cells), np.concatenate([most, most])),
        integrality=np.concatenate([np.ones(cells), np.zeros(cells)]),
    )
    if found.x is None:
        return None
    counts = np.rint(found.x[:cells]).astype(np.int64).reshape(rows, size)
    loads = np.where(counts > 0, np.maximum(found.x[cells:].reshape(rows, size), 0.0), 0.0)
    return Pools(counts, loads, float(found.fun))


def _instance(base: Scenario, config: Config) -> Scenario:
    hardware = replace(base.hardware, clock=config.clock)
    engine = replace(base.engine, tensor_parallel_size=config.tp)
    cluster = replace(base.cluster, replicas=1, groups=())
    return replace(base, hardware=hardware, engine=engine, cluster=cluster)


def _group(base: Scenario, config: Config, count: int, serves: str) -> GroupSpec:
    one = _instance(base, config)
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", serves)
    return GroupSpec(name=name, replicas=count, hardware=one.hardware, engine=one.engine, serves=serves)


def _letter(edges: Sequence[float], low: float) -> str:
    """S, M, L: short to long; numbers where there are more."""
    letters = {1: "A", 2: "SL", 3: "SML"}.get(len(edges) - 1)
    place = list(edges).index(low)
    return str(place + 1) if letters is None else letters[place]


def _measured(task: tuple[Question, Design]) -> Row:
    """Mean watts of the GPUs while requests arrive at the design's rate, and the share of them within the SLO."""
    question, design = task
    assert design.rate is not None and design.requests is not None

    def make() -> Row:
        assert design.rate is not None and design.requests is not None
        requests = transforms.to_rate(design.requests, design.rate)
        found = run(design.scenario, trace=requests).summary
        return {"watts": found["energy"]["mean_w"], "within_slo": found["slo"]["attainment"] or 0.0}

    return question.once(f"dynamollm/{design.rate!r}", design, design.scenario.seed, make)
