"""A step as long as its batch makes the engine a processor-sharing queue: everybody gets one token per round.

A request of many short tokens then stays ``E[S] / (1 - rho)`` on average, whatever the distribution of its length, and
``x / (1 - rho)`` if its own length is ``x`` (Kleinrock, Queueing Systems II, 4.4).
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from simulator.cost.analytic import FixedCost
from simulator.metrics import littles_law
from simulator.metrics.token_times import span_seconds
from simulator.replica.records import SimulationRecords
from tests.oracles.theory import Floats, Ints, assert_agrees, multi_server_starts, poisson, serve
from traces.trace import Trace

N = 80_000
LOAD = 0.6
MEAN_TOKENS = 400
TOKEN_S = 1 / MEAN_TOKENS  # mean service: 1 s
SHORT, LONG = 100, 1300

KINDS = ["M/M/1-PS", "M/D/1-PS", "M/G/1-PS"]


def lengths(kind: str) -> Ints:
    rng = np.random.default_rng([7, 2])
    if kind == "M/M/1-PS":
        return rng.geometric(1 / MEAN_TOKENS, N)
    if kind == "M/D/1-PS":
        return np.full(N, MEAN_TOKENS)
    return rng.choice(np.array([SHORT, LONG]), N, p=[0.75, 0.25])  # squared coefficient of variation 1.7


@cache
def shared(kind: str, *, async_scheduling: bool) -> tuple[Trace, SimulationRecords]:
    """A prompt of one token yields the first token, so a request of ``k`` tokens is ``k`` turns."""
    output = lengths(kind)
    trace = poisson(8, LOAD, np.ones_like(output), output)
    return trace, serve(trace, FixedCost(0.0, TOKEN_S), max_num_seqs=1 << 20, async_scheduling=async_scheduling)


def rounding(*, async_scheduling: bool) -> float:
    """A request waits for the step in flight (asynchronous: and the next one), and its last token for its step's end.

    A step lasts a token time per request in it. Looked at from within, it holds ``E[n²] / E[n]`` requests on average,
    with ``n`` geometric: ``(1 + rho) / (1 - rho)``.
    """
    return (3 if async_scheduling else 2) * TOKEN_S * (1 + LOAD) / (1 - LOAD)


CASES = [(kind, False) for kind in KINDS] + [("M/M/1-PS", True)]


@pytest.mark.parametrize(("kind", "async_scheduling"), CASES)
def test_mean_sojourn_depends_on_the_mean_service_alone(kind: str, async_scheduling: bool) -> None:
    trace, records = shared(kind, async_scheduling=async_scheduling)
    assert_agrees(
        records.requests.finish - trace.arrival,
        lambda speed: 1 / (speed - LOAD),
        bias=rounding(async_scheduling=async_scheduling),
    )


@pytest.mark.parametrize("tokens", [SHORT, LONG])
def test_sojourn_is_proportional_to_ones_own_length(tokens: int) -> None:
    trace, records = shared("M/G/1-PS", async_scheduling=False)
    mine = trace.output_tokens == tokens
    sojourn = (records.requests.finish - trace.arrival)[mine]
    assert_agrees(sojourn, lambda speed: tokens * TOKEN_S / (speed - LOAD), bias=rounding(async_scheduling=False))


def test_the_queue_is_not_first_come_first_served() -> None:
    """Under FCFS the mean sojourn of these lengths would differ by half of the wait: 30 % for constant lengths."""
    (fixed, constant), (varied, two_lengths) = (shared(k, async_scheduling=False) for k in ("M/D/1-PS", "M/G/1-PS"))
    for trace, records in ((fixed, constant), (varied, two_lengths)):
        service = trace.output_tokens * TOKEN_S
        fcfs = multi_server_starts(trace.arrival, service, 1) + service - trace.arrival
        ours = records.requests.finish - trace.arrival
        assert abs(fcfs.mean() / ours.mean() - 1) > 0.1


@pytest.mark.parametrize(("kind", "async_scheduling"), CASES)
def test_busy_periods_are_those_of_any_queue_that_wastes_nothing(kind: str, async_scheduling: bool) -> None:
    """Work in the system does not depend on the order of service: both idle at the same instants, to rounding."""
    trace, records = shared(kind, async_scheduling=async_scheduling)
    service = trace.output_tokens * TOKEN_S
    ends = busy_period_ends(trace.arrival, multi_server_starts(trace.arrival, service, 1) + service)
    finish = np.maximum.accumulate(records.requests.finish)
    np.testing.assert_allclose(busy_period_ends(trace.arrival, finish), ends, rtol=1e-11)
    assert float(span_seconds(records.steps).sum()) == pytest.approx(service.sum(), rel=1e-9)


def busy_period_ends(arrival: Floats, everyone_done: Floats) -> Floats:
    """When the system is empty: the last finish before an arrival that comes later."""
    idle = np.append(arrival[1:], np.inf) > everyone_done
    return everyone_done[idle]


def test_number_in_system_is_that_of_mm1() -> None:
    _, records = shared("M/M/1-PS", async_scheduling=False)
    assert littles_law(records).l_running == pytest.approx(LOAD / (1 - LOAD), rel=0.06)
    assert LOAD / (0.95 - LOAD) > 1.06 * LOAD / (1 - LOAD)
