"""Which layers of a model nodes of several kinds hold, for the largest flow: an integer program, and Swarm's stages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from math import inf
from typing import NamedTuple

import numpy as np

from simulator.metrics.stats import Floats

LEAST = 1e-6  # tokens/s: less is rounding


class Span(NamedTuple):
    """Layers ``first`` to ``end - 1``."""

    first: int
    end: int


@dataclass(frozen=True)
class Kind:
    """Equal nodes. ``rates[k]``: tokens/s of one that holds k layers, as far as they fit."""

    count: int
    region: str
    rates: tuple[float, ...]

    @property
    def most(self) -> int:
        """Layers that one can hold."""
        return len(self.rates) - 1


@dataclass(frozen=True)
class Placement:
    """How many nodes of each kind (by its place) hold which layers. flow: tokens/s through them, by the program. bound:
    that no placement exceeds, by the program."""

    counts: Mapping[tuple[int, Span], int]
    flow: float
    bound: float


class _Program:
    """Columns and sparse rows of a mixed-integer program: maximise, 0 <= x <= upper."""

    def __init__(self) -> None:
        self.gain: list[float] = []
        self.upper: list[float] = []
        self.whole: list[int] = []
        self.entries: list[tuple[int, int, float]] = []
        self.limits: list[tuple[float, float]] = []

    def column(self, upper: float, *, gain: float = 0.0, whole: bool = False) -> int:
        self.gain.append(gain)
        self.upper.append(upper)
        self.whole.append(int(whole))
        return len(self.gain) - 1

    def row(self, terms: Iterable[tuple[int, float]], low: float, high: float) -> None:
        """low <= the sum of column times factor <= high."""
        number = len(self.limits)
        self.limits.append((low, high))
        self.entries += [(number, column, factor) for column, factor in terms]

    def solve(self, time_limit_s: float, mip_gap: float) -> tuple[Floats, float] | None:
        """(values, bound of the objective); None: nothing feasible was found in time."""
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import coo_array

        rows, columns, factors = zip(*self.entries, strict=True)
        matrix = coo_array((factors, (rows, columns)), shape=(len(self.limits), len(self.gain))).tocsr()
        low, high = zip(*self.limits, strict=True)
        found = milp(
            -np.array(self.gain),
            constraints=LinearConstraint(matrix, low, high),
            bounds=Bounds(0.0, np.array(self.upper)),
            integrality=np.array(self.whole),
            options={"time_limit": time_limit_s, "mip_rel_gap": mip_gap},
        )
        if found.x is None:
            return None
        bound = found.mip_dual_bound
        return np.asarray(found.x), float("nan") if bound is None else -float(bound)


def place_layers(
    kinds: Sequence[Kind],
    num_layers: int,
    *,
    link_tokens_per_s: float = inf,
    granularity: int = 1,
    partial: bool = True,
    time_limit_s: float = 60.0,
    mip_gap: float = 0.0,
) -> Placement | None:
    """The placement of the largest flow; None: none was found.

    Whole x[g, span]: nodes of kind g that hold a span of layers. Flow y[g, span, l]: tokens/s that enter those at layer
    l (``partial``; else at the first) and leave at the span's end. At every layer what comes in from spans that end
    there goes on into spans entered there; between regions, over no more than one link of ``link_tokens_per_s`` per
    sending node. Each node computes ``rates[k]`` at most, whatever part of its layers a token takes there.

    granularity: spans begin and end at multiples of so many layers.
    """
    program = _Program()
    cuts = sorted({*range(0, num_layers, granularity), num_layers})
    spans = [(g, Span(a, b)) for g, kind in enumerate(kinds) for a, b in product(cuts, cuts) if 0 < b - a <= kind.most]
    nodes = {key: program.column(kinds[key[0]].count, whole=True) for key in spans}
    flows_of: dict[tuple[int, Span], list[int]] = {}
    most = sum(kind.count * max(kind.rates, default=0.0) for kind in kinds)
    regions = sorted({kind.region for kind in kinds})
    into: dict[tuple[int, str], list[int]] = {(cut, region): [] for cut in cuts for region in regions}
    out: dict[tuple[int, str], list[int]] = {key: [] for key in into}
    ending: dict[tuple[int, str], list[int]] = {key: [] for key in into}
    for (g, span), held in nodes.items():
        region = kinds[g].region
        entries = [cut for cut in cuts if span.first <= cut < span.end] if partial else [span.first]
        flows = flows_of[g, span] = [program.column(most, gain=float(cut == 0)) for cut in entries]
        for cut, flow in zip(entries, flows, strict=True):
            into[cut, region].append(flow)
        out[span.end, region] += flows
        ending[span.end, region].append(held)
        rate = kinds[g].rates[span.end - span.first]
        program.row([(held, -rate), *((flow, 1.0) for flow in flows)], -inf, 0.0)
    for g, kind in enumerate(kinds):
        program.row(((column, 1.0) for (own, _), column in nodes.items() if own == g), 0.0, kind.count)
    for cut in cuts[1:-1]:
        ways = {(a, b): program.column(most) for a, b in product(regions, regions)}
        for region in regions:
            leaving = [(flow, 1.0) for flow in out[cut, region]]
            program.row([*leaving, *((ways[region, b], -1.0) for b in regions)], 0.0, 0.0)
            entering = [(flow, 1.0) for flow in into[cut, region]]
            program.row([*entering, *((ways[a, region], -1.0) for a in regions)], 0.0, 0.0)
            for far in regions:
                if far != region and link_tokens_per_s < inf:
                    senders = ((held, -link_tokens_per_s) for held in ending[cut, region])
                    program.row([(ways[region, far], 1.0), *senders], -inf, 0.0)
    solved = program.solve(time_limit_s, mip_gap)
    if solved is None:
        return None
    values, bound = solved
    used = {key: float(values[columns].sum()) > LEAST for key, columns in flows_of.items()}
    counts = {key: round(float(values[column])) for key, column in nodes.items() if used[key]}
    whole = float(np.array(program.gain) @ values)
    return Placement({key: count for key, count in counts.items() if count}, whole, bound) if whole > LEAST else None


def swarm_stages(kinds: Sequence[Kind], num_layers: int) -> dict[Span, list[int]] | None:
    """Swarm's placement: equal stages that the smallest node can hold, as few as there may be; then every node, fastest
    first, to the stage that computes least so far. Kinds (by their place) of the nodes of each stage; None: there are
    fewer nodes than stages."""
    smallest = min(kind.most for kind in kinds)
    count = next((n for n in range(1, num_layers + 1) if -(-num_layers // n) <= smallest), None)
    nodes = [g for g, kind in enumerate(kinds) for _ in range(kind.count)]
    if count is None or len(nodes) < count:
        return None
    cuts = [round(num_layers * i / count) for i in range(count + 1)]
    longest = max(b - a for a, b in pairwise(cuts))
    stages: list[list[int]] = [[] for _ in range(count)]
    total = [0.0] * count
    for g in sorted(nodes, key=lambda g: -kinds[g].rates[longest]):
        least = total.index(min(total))
        stages[least].append(g)
        total[least] += kinds[g].rates[longest]
    return {Span(a, b): stage for (a, b), stage in zip(pairwise(cuts), stages, strict=True)}
