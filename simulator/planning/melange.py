"""Mélange's integer program: the cheapest mix of GPU types for a rate, each size of request where that is cheapest.

Decides: how many replicas of each type to rent, and which share of each bucket of requests (by lengths of prompt and
answer) each type serves.
Why it helps: small GPUs serve short requests at less money each, large ones long requests; a mix may be cheaper than
any single type.
Limits: it believes that a replica serves a mixture as fast as its buckets one after the other (loads add up), and that
a share of a replica is as good as a whole one; bursts, and the unevenness of a few replicas, are not in it. Therefore
the answer is simulated, each request sent where the program sent its bucket, and both numbers are given.
Reference: Griggs et al., Mélange (arXiv:2404.14527), its integer program; here shares of buckets are continuous (its
slices, infinitely thin).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from simulator.core.errors import UserError
from simulator.core.random import streams
from simulator.planning.bounds import highest_rate, roles_of
from simulator.planning.capacity import sustained
from simulator.planning.probe import Bench
from simulator.scenario.cluster import GroupSpec
from simulator.scenario.config import Scenario
from simulator.scenario.engine import HardwareSpec
from traces.generate import arrivals
from traces.trace import Floats, Ints, Labels, Trace

if TYPE_CHECKING:
    import pandas as pd

PROMPT_EDGES = (0, 128, 512, 2048, 8192, np.inf)  # tokens; a bucket holds its upper edge
OUTPUT_EDGES = (0, 32, 128, 512, np.inf)
LEAST, SAMPLE = 20, 600  # requests of a bucket that has one of its own; requests of a bucket's measurement
TOLERANCE, CONFIDENCE = 0.05, 0.95


@dataclass(frozen=True)
class Bucket:
    """Requests of similar size. ``share`` of all; ``rates``: requests/s that a replica of each type sustains of them
    alone within the SLO, 0: none."""

    prompt: tuple[float, float]
    output: tuple[float, float]
    share: float
    rates: tuple[float, ...]


@dataclass(frozen=True)
class Mix:
    """``counts``: replicas by type; ``usd_per_hour`` of them. ``assigned[i, j]``: share of bucket i that type j serves.
    ``singles``: price of each type alone by the same program, None: it cannot serve all buckets. ``sustains``:
    requests/s that the mix sustains when it is simulated, where the program believes in ``rate``."""

    rate: float
    types: tuple[str, ...]
    buckets: tuple[Bucket, ...]
    counts: tuple[int, ...]
    usd_per_hour: float
    assigned: NDArray[np.float64]
    singles: tuple[float | None, ...]
    sustains: float

    @property
    def table(self) -> pd.DataFrame:
        """A row per bucket: its share of the requests, what each type sustains of it, the share each type serves."""
        import pandas as pd

        rows = []
        for bucket, shares in zip(self.buckets, self.assigned, strict=True):
            row: dict[str, object] = {
                "prompt_tokens": bucket.prompt,
                "output_tokens": bucket.output,
                "share": bucket.share,
            }
            row |= {f"{name}_request_per_s": rate for name, rate in zip(self.types, bucket.rates, strict=True)}
            rows.append(row | {f"{name}_share": share for name, share in zip(self.types, shares, strict=True)})
        return pd.DataFrame(rows)

    @property
    def gap(self) -> float:
        """What simulation leaves of the program's belief, less one."""
        return self.sustains / self.rate - 1.0


class _Played(Bench):
    """A design that plays requests given as they are."""

    def __init__(self, scenario: Scenario, trace: Trace) -> None:
        super().__init__(scenario)
        self._trace = trace

    def trace(self, seed: int) -> Trace:
        return self._trace


def mix(scenario: Scenario, gpus: Sequence[str], rate: float) -> Mix:
    """The cheapest mix of the GPU types for ``rate`` requests/s of the scenario's load, and what it sustains simulated.

    scenario: its model, engine and SLO; one replica is one engine on each type. Raises UserErrors: no SLO, an engine
    that does not fit, a price that is not known, a bucket that no type serves.
    """
    if scenario.slo is None:
        raise UserError("without an SLO nothing tells what a GPU sustains.", remedy="Add slo: to the scenario.")
    alone = [_single(scenario, gpu) for gpu in gpus]
    benches = [Bench(one) for one in alone]
    prices = [bench.usd_per_hour for bench in benches]
    for gpu, price in zip(gpus, prices, strict=True):
        if price is None:
            raise UserError(f"no price of {gpu} is known.", remedy="Leave it out, or give the catalogue a price.")
    trace = benches[0].trace(scenario.seed)
    which, edges = buckets_of(trace)
    found = []
    for index, (prompt, output) in enumerate(edges):
        part = _poisson(trace, np.flatnonzero(which == index), scenario.seed)
        rates = tuple(_sustains(one, part, scenario.seed, guess=1.0) for one in alone)
        if not any(rates):
            raise UserError(
                f"no type serves prompts of {prompt[0]:g} to {prompt[1]:g} tokens with answers of {output[0]:g} to "
                f"{output[1]:g} within the SLO.",
                remedy="Add larger GPUs, or loosen the SLO.",
            )
        found.append(Bucket(prompt, output, float(np.mean(which == index)), rates))
    costs = np.array(prices, dtype=float)
    counts, assigned = solve_mix(found, costs, rate)
    singles = tuple(_alone(found, costs, rate, j) for j in range(len(gpus)))
    sustains = _simulated(scenario, gpus, counts, assigned, trace, which, rate)
    chosen = tuple(int(n) for n in counts)
    return Mix(rate, tuple(gpus), tuple(found), chosen, float(counts @ costs), assigned, singles, sustains)


def buckets_of(trace: Trace) -> tuple[Ints, list[tuple[tuple[float, float], tuple[float, float]]]]:
    """The bucket of each request, and the buckets' edges. Buckets with few requests join the nearest that has more."""
    edges = list(product(pairwise(PROMPT_EDGES), pairwise(OUTPUT_EDGES)))
    wide = len(OUTPUT_EDGES) - 1
    rows = np.searchsorted(PROMPT_EDGES[1:-1], trace.prompt_tokens, side="left")
    columns = np.searchsorted(OUTPUT_EDGES[1:-1], trace.output_tokens, side="left")
    counts = np.bincount(rows * wide + columns, minlength=len(edges))
    large = np.flatnonzero(counts >= min(LEAST, counts.max(initial=0)))
    at = np.array([divmod(int(b), wide) for b in range(len(edges))])
    nearest = [int(np.argmin(np.abs(at[large] - at[b]).sum(axis=1))) for b in range(len(edges))]
    return np.array(nearest, dtype=np.int64)[rows * wide + columns], [edges[int(b)] for b in large]


def solve_mix(buckets: Sequence[Bucket], prices: Floats, rate: float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
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
    shares = np.clip(found.x[: rows * types].reshape(rows, types), 0.0, 1.0)
    return np.rint(found.x[rows * types :]).astype(np.int64), shares / shares.sum(axis=1, keepdims=True)


def _alone(buckets: Sequence[Bucket], prices: Floats, rate: float, which: int) -> float | None:
    """Price of one type alone; None: some bucket cannot be served by it."""
    if not all(bucket.rates[which] for bucket in buckets):
        return None
    need = sum(rate * bucket.share / bucket.rates[which] for bucket in buckets)
    return float(prices[which] * np.ceil(need - 1e-9))


def _single(scenario: Scenario, gpu: str) -> Scenario:
    return replace(scenario, hardware=HardwareSpec(gpu=gpu), cluster=replace(scenario.cluster, replicas=1, groups=()))


def _poisson(trace: Trace, rows: Ints, seed: int) -> Trace:
    """``SAMPLE`` requests of these rows, drawn again where there are fewer, as independent arrivals."""
    rng = streams(seed).stream("planning.melange")
    picked = np.sort(rng.choice(rows, SAMPLE, replace=len(rows) < SAMPLE))
    times = arrivals.Poisson(1.0).times(SAMPLE, rng)
    return Trace(times, trace.prompt_tokens[picked], trace.output_tokens[picked], source=trace.source)


def _sustains(scenario: Scenario, trace: Trace, seed: int, *, guess: float) -> float:
    bench = _Played(scenario, trace)
    found = sustained(bench.probe, 1, (seed,), guess=guess, tolerance=TOLERANCE, confidence=CONFIDENCE).rate
    # A short run of short requests ends before a queue shows; no load is carried faster than the steps allow.
    return min(found, highest_rate(bench.groups, roles_of(scenario), trace))


def _simulated(
    scenario: Scenario,
    gpus: Sequence[str],
    counts: NDArray[np.int64],
    assigned: NDArray[np.float64],
    trace: Trace,
    which: Ints,
    rate: float,
) -> float:
    """Requests/s that the mix sustains, each request on a type drawn by its bucket's shares."""
    draws = streams(scenario.seed).stream("planning.melange.assigned").random(len(trace))
    bound = np.cumsum(assigned, axis=1)[which]
    types = np.minimum((draws[:, None] >= bound).sum(axis=1), len(gpus) - 1).astype(np.int32)
    groups = tuple(
        GroupSpec(name=gpu, replicas=int(count), hardware=HardwareSpec(gpu=gpu), serves=gpu)
        for gpu, count in zip(gpus, counts, strict=True)
        if count
    )
    cluster = replace(scenario.cluster, replicas=1, groups=groups)
    labelled = replace(trace, model=Labels(types, tuple(gpus)))
    return _sustains(replace(scenario, cluster=cluster), labelled, scenario.seed, guess=rate)
