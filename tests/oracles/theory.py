"""Queueing theory to hold the simulator against, and the intervals that say how close it must come.

Sample-path recursions give what *every request* of a run must see; formulas give the mean that a long run must approach.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from heapq import heapify, heapreplace
from math import factorial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from simulator.cluster import simulate
from simulator.cost.interface import StepCost
from simulator.replica.records import SimulationRecords
from simulator.scheduling import EngineArgs
from traces.trace import Trace

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


# -- intervals ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Interval:
    """A mean and how far the true one may lie from it."""

    mean: float
    half_width: float

    def holds(self, value: float) -> bool:
        return abs(value - self.mean) <= self.half_width


def batch_means(values: Floats, *, bias: float = 0.0, batches: int = 20, level: float = 0.999) -> Interval:
    """Confidence interval of a steady-state mean by batch means (Law, Simulation Modeling and Analysis, 9.5.3).

    The first twentieth is cut as warm-up. A batch is thousands of requests long while the queues here forget after
    about ``1 / (1 - sqrt(rho))²`` services, 50 at a load of 0.75: batches are as good as independent. At 99.9 % (3.9
    standard errors for 20 batches) one false alarm is expected per thousand seeds; ours are fixed, so there is none.
    bias: known discretisation error, in units of ``values``; widens the interval.
    """
    size = (len(values) - len(values) // 20) // batches
    means = values[-size * batches :].reshape(batches, size).mean(axis=1)
    half = float(student.ppf((1 + level) / 2, batches - 1) * means.std(ddof=1) / np.sqrt(batches))
    return Interval(float(means.mean()), half + bias)


def assert_agrees(values: Floats, theory: Callable[[float], float], *, bias: float = 0.0) -> None:
    """``theory(speed)`` is the mean for a server ``speed`` times as fast. The run must agree with the true speed, and
    must tell it from one 5 % off either way: an oracle that cannot fail proves nothing."""
    found = batch_means(values, bias=bias)
    assert found.holds(theory(1.0)), f"measured {found}, theory {theory(1.0):.4f}"
    for wrong in (0.95, 1.05):
        assert not found.holds(theory(wrong)), f"measured {found} cannot tell a server {wrong} times as fast"


# -- formulas ----------------------------------------------------------------------------------------------------------


def pollaczek_khinchine_wait(rate: float, services: Floats, weights: Floats) -> float:
    """Mean wait of an M/G/1 FCFS queue, s: ``lambda E[S²] / (2 (1 - rho))`` (Kleinrock, Queueing Systems I, 5.7)."""
    mean, square = float(weights @ services), float(weights @ services**2)
    return rate * square / (2 * (1 - rate * mean))


def erlang_c_wait(rate: float, mean_service: float, servers: int) -> float:
    """Mean wait of an M/M/c FCFS queue, s (Kleinrock, Queueing Systems I, 3.5)."""
    load = rate * mean_service
    last = load**servers / factorial(servers) / (1 - load / servers)
    busy = last / (sum(load**k / factorial(k) for k in range(servers)) + last)
    return busy * mean_service / (servers - load)


def finite_source_throughput(users: int, think: float, service: float) -> float:
    """Requests/s of M/M/1 with ``users`` thinkers, by exact mean value analysis.

    Reiser and Lavenberg, J. ACM 27(2), 1980, DOI 10.1145/322186.322195.
    """
    queue = throughput = 0.0
    for n in range(1, users + 1):
        response = service * (1 + queue)
        throughput = n / (think + response)
        queue = throughput * response
    return throughput


# -- sample paths ------------------------------------------------------------------------------------------------------


def multi_server_starts(arrival: Floats, service: NDArray[np.floating[Any]], servers: int) -> Floats:
    """When each request of a G/G/c FCFS queue starts (Kiefer and Wolfowitz, Trans. AMS 78, 1955); c = 1: Lindley."""
    free = [0.0] * servers
    heapify(free)
    starts = []
    for entered, seconds in zip(arrival.tolist(), service.tolist(), strict=True):
        start = max(entered, free[0])
        heapreplace(free, start + seconds)
        starts.append(start)
    return np.asarray(starts)


# -- the engine as a queue ---------------------------------------------------------------------------------------------


def poisson(seed: int, rate: float, prompt: Ints, output: Ints) -> Trace:
    """Requests of the given lengths at Poisson times."""
    gaps = np.random.default_rng([seed, 1]).exponential(1 / rate, len(prompt))
    return Trace(np.cumsum(gaps), prompt, output)


def serve(
    trace: Trace, cost: StepCost, *, max_num_seqs: int, async_scheduling: bool, horizon_s: float | None = None
) -> SimulationRecords:
    """An engine with memory and token budget for everybody: only ``max_num_seqs`` limits it."""
    args = EngineArgs(
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=1 << 40,
        enable_prefix_caching=False,
        async_scheduling=async_scheduling,
    )
    return simulate(trace, args, cost, 1 << 40, horizon_s=horizon_s)
