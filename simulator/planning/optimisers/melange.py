"""Mélange's integer program: the cheapest mix of GPU types for a rate (arXiv:2404.14527)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from simulator.core.errors import UserError
from simulator.core.random import streams
from simulator.planning.optimisers.optimiser import OPTIMISERS, Candidate, Design, Optimiser, Simulated
from simulator.scenario.cluster import GroupSpec
from simulator.scenario.config import Scenario
from simulator.scenario.engine import HardwareSpec
from simulator.scenario.spec import PositiveNumber, Shorthand, spec
from traces.generate import arrivals
from traces.trace import Floats, Ints, Labels, Trace

PROMPT_EDGES = (0, 128, 512, 2048, 8192, np.inf)  # tokens; a bucket holds its upper edge
OUTPUT_EDGES = (0, 32, 128, 512, np.inf)
LEAST, SAMPLE = 20, 600  # requests of a bucket that has one of its own; requests of a bucket's measurement
Shares = NDArray[np.float64]
Edges = tuple[float, float]


@spec
class Options:
    """Of ``melange``."""

    rate: PositiveNumber
    """Requests per second to serve."""
    gpus: Annotated[tuple[Annotated[HardwareSpec, Shorthand("gpu")], ...], Field(min_length=1)]
    """Types to rent, one engine on each. Plain text is a catalogue name."""

    def __post_init__(self) -> None:
        names = [one.gpu for one in self.gpus]
        if len(set(names)) < len(names):
            raise ValueError(f"GPU types must differ: {', '.join(names)}.")


@dataclass(frozen=True)
class Bucket:
    """Requests of similar size. ``share`` of all; ``rates``: requests/s that a replica of each type sustains of them
    alone within the SLO, 0: none."""

    prompt: Edges
    output: Edges
    share: float
    rates: tuple[float, ...]


class Grid:
    """Sizes of requests; cells that hold few requests of a trace join the nearest that holds more."""

    def __init__(
        self, trace: Trace, prompt: Sequence[float] = PROMPT_EDGES, output: Sequence[float] = OUTPUT_EDGES
    ) -> None:
        """prompt, output: edges in tokens, from 0 to infinity; a cell holds its upper edge."""
        self._prompt, self._output = prompt, output
        edges = list(product(pairwise(prompt), pairwise(output)))
        counts = np.bincount(self._cells(trace), minlength=len(edges))
        large = np.flatnonzero(counts >= min(LEAST, counts.max(initial=0)))
        at = np.array([divmod(cell, len(output) - 1) for cell in range(len(edges))])
        nearest = [int(np.argmin(np.abs(at[large] - at[cell]).sum(axis=1))) for cell in range(len(edges))]
        self._bucket = np.array(nearest, dtype=np.int64)
        self.edges: list[tuple[Edges, Edges]] = [edges[int(cell)] for cell in large]

    def __call__(self, trace: Trace) -> Ints:
        """The bucket of each request."""
        return self._bucket[self._cells(trace)]

    def _cells(self, trace: Trace) -> Ints:
        rows = np.searchsorted(self._prompt[1:-1], trace.prompt_tokens, side="left")
        columns = np.searchsorted(self._output[1:-1], trace.output_tokens, side="left")
        return np.asarray(rows * (len(self._output) - 1) + columns, dtype=np.int64)


@dataclass(frozen=True)
class Fleet:
    """``counts``: replicas by type. ``assigned[i, j]``: share of bucket i that type j serves."""

    counts: Ints
    assigned: Shares


@OPTIMISERS.register("melange")
class Melange(Optimiser[Options]):
    """The cheapest mix of GPU types for a rate, each size of request where that is cheapest (an integer program).

    Decides: how many replicas of each type to rent, and which share of each bucket of requests (by lengths of prompt
    and answer) each type serves.
    Why it helps: small GPUs serve short requests at less money each, large ones long requests; a mix may be cheaper
    than any single type.
    Limits: it believes that a replica serves a mixture as fast as its buckets one after the other (loads add up), and
    that a share of a replica is as good as a whole one; bursts, and the unevenness of a few replicas, are not in it. A
    bucket is measured by 600 requests at a steady rate, a request's type is drawn by its bucket's shares. Candidates
    beside the mix are the single types, by the same program.
    Reference: Griggs et al., Mélange (arXiv:2404.14527), its integer program, solved by HiGHS; here shares of buckets
    are continuous (its slices, infinitely thin).
    """

    Options = Options

    def search(self) -> Sequence[Candidate]:
        """The mix, then the single types by price. Raises UserErrors: no SLO, no price, a bucket that nobody serves."""
        options, names = self.options, [one.gpu for one in self.options.gpus]
        alone = [_single(self.question.scenario, one) for one in options.gpus]
        prices = np.array([self._price(one) for one in alone])
        trace = self.question.trace()
        self.grid, self.fleets = Grid(trace), {}  # type: Grid, dict[str, Fleet]
        self.buckets = self._measured(trace, alone)
        mix = Fleet(*solve_mix(self.buckets, prices, options.rate))
        singles = [self._alone(at) for at in range(len(names))]
        ranked = sorted((one for one in singles if one is not None), key=lambda one: float(one.counts @ prices))
        single = float(ranked[0].counts @ prices) if ranked else None
        found = []
        for fleet in (mix, *ranked):
            label = " + ".join(f"{n} x {name}" for n, name in zip(fleet.counts.tolist(), names, strict=True) if n)
            if label not in self.fleets:
                self.fleets[label] = fleet
                found.append(self._candidate(label, fleet, prices, single))
        missing = [name for name, fleet in zip(names, singles, strict=True) if fleet is None]
        return [*found, *(Candidate(name, reason="some sizes of requests miss the SLO on it.") for name in missing)]

    def simulate(self, candidates: Sequence[Candidate]) -> list[Simulated]:
        """Every replication's requests, each on a type drawn by its bucket's shares."""
        question, designs = self.question, []
        for one in candidates:
            for seed in question.seeds:
                assert one.design is not None
                designs.append(replace(one.design, requests=self._labelled(self.fleets[one.label], seed)))
        found, size = question.sustained(designs, "simulated"), len(question.seeds)
        refused = next((one for one in found if one.reason), None)
        if refused is not None:
            raise UserError(refused.reason)
        return [
            Simulated.of(
                [one.value for one in found[at : at + size]], question.confidence, tolerance=question.tolerance
            )
            for at in range(0, len(found), size)
        ]

    @property
    def goal(self) -> str:
        return "USD per hour, of those that serve the rate"

    def worth(self, candidate: Candidate, simulated: Simulated) -> float:
        """How little it costs, where it serves the rate."""
        serves = simulated.value >= self.options.rate
        return 1.0 / float(candidate.columns["usd_per_hour"]) if serves else -math.inf

    def _price(self, scenario: Scenario) -> float:
        price = self.question.bench(Design(scenario)).usd_per_hour
        if price is None:
            gpu = scenario.hardware.gpu
            raise UserError(f"no price of {gpu} is known.", remedy="Leave it out, or give its price_per_gpu_hour.")
        return price

    def _measured(self, trace: Trace, alone: Sequence[Scenario]) -> list[Bucket]:
        """The buckets with what a replica of each type sustains of each."""
        which, found = self.grid(trace), []
        parts = [
            steady_part(trace, np.flatnonzero(which == at), self.question.seeds[0])
            for at in range(len(self.grid.edges))
        ]
        rates = self.question.sustained([Design(one, part) for part in parts for one in alone], "buckets")
        for at, (prompt, output) in enumerate(self.grid.edges):
            own = rates[at * len(alone) : (at + 1) * len(alone)]
            if not any(one.value > 0 for one in own):
                raise UserError(
                    f"no type serves prompts of {prompt[0]:g} to {prompt[1]:g} tokens with answers of {output[0]:g} to "
                    f"{output[1]:g} within the SLO.",
                    remedy="Add larger GPUs, or loosen the SLO.",
                )
            found.append(Bucket(prompt, output, float(np.mean(which == at)), tuple(one.value for one in own)))
        return found

    def _alone(self, which: int) -> Fleet | None:
        """As many of one type as the rate needs; None: some bucket cannot be served by it."""
        types = len(self.options.gpus)
        if not all(bucket.rates[which] for bucket in self.buckets):
            return None
        need = sum(self.options.rate * bucket.share / bucket.rates[which] for bucket in self.buckets)
        one = np.eye(types)[which]
        return Fleet((math.ceil(need - 1e-9) * one).astype(np.int64), np.tile(one, (len(self.buckets), 1)))

    def _candidate(self, label: str, fleet: Fleet, prices: Floats, single: float | None) -> Candidate:
        scenario, options = self.question.scenario, self.options
        groups = tuple(
            GroupSpec(name=one.gpu, replicas=count, hardware=one, serves=one.gpu)
            for one, count in zip(options.gpus, fleet.counts.tolist(), strict=True)
            if count
        )
        whole = replace(scenario, cluster=replace(scenario.cluster, replicas=1, groups=groups))
        design = Design(whole, self._labelled(fleet, self.question.seeds[0]), options.rate)
        cost = float(fleet.counts @ prices)
        columns = {"usd_per_hour": cost, "usd_over_best_single": None if single is None else cost / single}
        return Candidate(label, believed(self.buckets, fleet, options.rate), columns, design)

    def _labelled(self, fleet: Fleet, seed: int) -> Trace:
        """The requests of a seed, each sent to a type."""
        trace = self.question.trace(seed)
        draws = streams(seed).stream("planning.melange.assigned").random(len(trace))
        bound = np.cumsum(fleet.assigned, axis=1)[self.grid(trace)]
        names = tuple(one.gpu for one in self.options.gpus)
        types = np.minimum((draws[:, None] >= bound).sum(axis=1), len(names) - 1).astype(np.int32)
        return replace(trace, model=Labels(types, names))


def loads(buckets: Sequence[Bucket], assigned: Shares, rate: float) -> Floats:
    """(types,) replicas of each type that the program believes busy."""
    served = np.array([bucket.rates for bucket in buckets], dtype=float)
    share = np.array([bucket.share for bucket in buckets])
    used = assigned > 0
    return np.asarray((rate * share[:, None] * assigned / np.where(used, served, 1.0)).sum(axis=0))


def believed(buckets: Sequence[Bucket], fleet: Fleet, rate: float) -> float:
    """Requests/s at which the first type is full, of the program's split of the buckets."""
    busy = loads(buckets, fleet.assigned, rate)
    return float(rate * np.min(fleet.counts[busy > 0] / busy[busy > 0]))


def solve_mix(buckets: Sequence[Bucket], prices: Floats, rate: float) -> tuple[Ints, Shares]:
    """Replicas by type, and the share of each bucket that each type serves, at the least price per hour (HiGHS).

    Minimises the sum of prices[j] B[j] over whole B and A >= 0, where each bucket's shares A[i, j] sum to 1, and what
    is sent to a type, the sum over i of A[i, j] rate share[i] / rates[i][j], is at most its replicas B[j].
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    served = np.array([bucket.rates for bucket in buckets], dtype=float)
    share = np.array([bucket.share for bucket in buckets])
    rows, types = served.shape
    load = rate * share[:, None] / np.where(served > 0, served, 1.0)
    size = rows * types + types
    whole = np.zeros((rows, size))
    carried = np.zeros((types, size))
    for i, j in product(range(rows), range(types)):
        whole[i, i * types + j] = 1.0
        carried[j, i * types + j] = load[i, j]
    carried[:, rows * types :] = -np.eye(types)
    upper = np.concatenate([(served > 0).astype(float).ravel(), np.full(types, np.inf)])
    found = milp(
        np.concatenate([np.zeros(rows * types), prices]),
        constraints=[LinearConstraint(whole, 1.0, 1.0), LinearConstraint(carried, -np.inf, 0.0)],
        bounds=Bounds(np.zeros(size), upper),
        integrality=np.concatenate([np.zeros(rows * types), np.ones(types)]),
    )
    if found.x is None:
        raise UserError("the integer program has no solution.", remedy="Check that every bucket can be served.")
    counts = np.rint(found.x[rows * types :]).astype(np.int64)
    shares = np.where(counts > 0, np.clip(found.x[: rows * types].reshape(rows, types), 0.0, 1.0), 0.0)  # but for 1e-15
    return counts, shares / shares.sum(axis=1, keepdims=True)


def _single(scenario: Scenario, hardware: HardwareSpec) -> Scenario:
    return replace(scenario, hardware=hardware, cluster=replace(scenario.cluster, replicas=1, groups=()))


def steady_part(trace: Trace, rows: Ints, seed: int) -> Trace:
    """``SAMPLE`` requests of these rows, drawn again where there are fewer, as independent arrivals."""
    rng = streams(seed).stream("planning.melange")
    picked = np.sort(rng.choice(rows, SAMPLE, replace=len(rows) < SAMPLE))
    times = arrivals.Poisson(1.0).times(SAMPLE, rng)
    return Trace(times, trace.prompt_tokens[picked], trace.output_tokens[picked], source=trace.source)
