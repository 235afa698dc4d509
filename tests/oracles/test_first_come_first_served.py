"""With one or c sequences at a time the engine is a queue that textbooks solve: M/M/1, M/D/1, M/G/1, M/M/c."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest

from simulator.cost.analytic import FixedCost, LinearCost
from simulator.metrics import littles_law
from simulator.metrics.token_times import span_seconds
from simulator.replica.records import SimulationRecords
from tests.oracles.theory import (
    Floats,
    Ints,
    assert_agrees,
    batch_means,
    erlang_c_wait,
    multi_server_starts,
    poisson,
    pollaczek_khinchine_wait,
    serve,
)
from traces.trace import Trace

N = 100_000
LOAD = 0.7
MEAN_TOKENS = 1000


def geometric(seed: int, mean: float, n: int = N) -> Ints:
    """Token counts without memory: the whole-number exponential distribution."""
    return np.random.default_rng([seed, 2]).geometric(1 / mean, n)


@dataclass(frozen=True)
class Queue:
    """A single-server queue; service times in tokens of a millisecond."""

    tokens: Ints  # drawn
    sizes: Floats  # distribution: tokens, with
    weights: Floats  # probabilities


def queue(kind: str) -> Queue:
    if kind == "M/M/1":
        sizes = np.arange(1.0, 60 * MEAN_TOKENS)
        share = 1 / MEAN_TOKENS
        return Queue(geometric(1, MEAN_TOKENS), sizes, share * (1 - share) ** (sizes - 1))
    if kind == "M/D/1":
        return Queue(np.full(N, MEAN_TOKENS), np.array([1000.0]), np.array([1.0]))
    sizes, weights = np.array([400.0, 2800.0]), np.array([0.75, 0.25])  # squared coefficient of variation 1.08
    drawn = np.random.default_rng([3, 2]).choice(sizes, N, p=weights).astype(np.int64)
    return Queue(drawn, sizes, weights)


@cache
def single_server(kind: str, *, by_prompt: bool, async_scheduling: bool) -> tuple[Trace, SimulationRecords]:
    """Service is one prefill step as long as the prompt, or one step of a millisecond per output token."""
    tokens, ones = queue(kind).tokens, np.ones(N, dtype=np.int64)
    lengths = (tokens, ones) if by_prompt else (ones, tokens)
    trace = poisson(4, LOAD * 1000 / MEAN_TOKENS, *lengths)
    cost = LinearCost(0.0, 1e-3, 0.0, 0.0) if by_prompt else FixedCost(1e-3, 0.0)
    return trace, serve(trace, cost, max_num_seqs=1, async_scheduling=async_scheduling)


MODES = [
    pytest.param(kind, by_prompt, async_scheduling, id=f"{kind}-{'prompt' if by_prompt else 'output'}-{mode}")
    for kind in ("M/M/1", "M/D/1", "M/G/1")
    for by_prompt in (True, False)
    for async_scheduling, mode in ((False, "sync"), (True, "async"))
    if by_prompt != async_scheduling or kind == "M/M/1"  # half of the table is enough: each path is exact below
]


@pytest.mark.parametrize(("kind", "by_prompt", "async_scheduling"), MODES)
def test_each_request_starts_when_lindley_says(kind: str, by_prompt: bool, async_scheduling: bool) -> None:
    """Asynchronous scheduling changes nothing with one sequence: there is no step to overlap with."""
    trace, records = single_server(kind, by_prompt=by_prompt, async_scheduling=async_scheduling)
    service = queue(kind).tokens * 1e-3
    starts = multi_server_starts(trace.arrival, service, 1)
    np.testing.assert_allclose(records.requests.scheduled, starts, rtol=1e-11)
    np.testing.assert_allclose(records.requests.finish, starts + service, rtol=1e-11)


@pytest.mark.parametrize(("kind", "by_prompt", "async_scheduling"), MODES)
def test_mean_wait_is_that_of_pollaczek_and_khinchine(kind: str, by_prompt: bool, async_scheduling: bool) -> None:
    trace, records = single_server(kind, by_prompt=by_prompt, async_scheduling=async_scheduling)
    of = queue(kind)

    def theory(speed: float) -> float:
        return pollaczek_khinchine_wait(LOAD, of.sizes * 1e-3 / speed, of.weights)

    assert_agrees(records.requests.scheduled - trace.arrival, theory)


def test_waits_of_mm1_are_exponential_above_zero() -> None:
    """P(W > t) = rho exp(-(mu - lambda) t); at t = 0, an arrival finds the server busy as often as anybody (PASTA)."""
    trace, records = single_server("M/M/1", by_prompt=False, async_scheduling=False)
    wait = records.requests.scheduled - trace.arrival
    for later in (0.0, 1.0, 4.0):
        share = (wait > later + 1e-6).astype(np.float64)
        assert_agrees(share, lambda speed, t=later: LOAD / speed * float(np.exp(-(speed - LOAD) * t)))  # type: ignore[misc]


@pytest.mark.parametrize(("kind", "by_prompt", "async_scheduling"), MODES)
def test_the_server_is_busy_for_exactly_the_work_it_was_given(
    kind: str, by_prompt: bool, async_scheduling: bool
) -> None:
    _, records = single_server(kind, by_prompt=by_prompt, async_scheduling=async_scheduling)
    busy = float(span_seconds(records.steps).sum())
    assert busy == pytest.approx(float(queue(kind).tokens.sum()) * 1e-3, rel=1e-9)
    # Of the ratio of two sums of N terms, each with a standard deviation up to its mean: 4 standard errors.
    assert busy / records.end == pytest.approx(LOAD, rel=4 * (2 / N) ** 0.5)
    assert 4 * (2 / N) ** 0.5 < 0.05


SERVERS, STEP_S, OUTPUT = 5, 0.01, 400  # a service is 400 steps, 4 s: what a step rounds is small
MMC_RATE = 0.8 * SERVERS / (STEP_S * OUTPUT)


@cache
def many_servers(*, async_scheduling: bool) -> tuple[Trace, SimulationRecords]:
    """A step takes as long whoever is in it: ``max_num_seqs`` servers that do not disturb each other."""
    output = geometric(5, OUTPUT)
    trace = poisson(6, MMC_RATE, np.ones_like(output), output)
    return trace, serve(trace, FixedCost(STEP_S, 0.0), max_num_seqs=SERVERS, async_scheduling=async_scheduling)


@pytest.mark.parametrize("async_scheduling", [False, True])
def test_each_request_starts_within_a_step_of_kiefer_and_wolfowitz(async_scheduling: bool) -> None:
    """Starts of a FCFS queue never come earlier when arrivals or services grow. A request that arrives within a step
    waits for its end, so its start lies between that of the ideal queue and one step later. Asynchronous scheduling
    sees an arrival up to two steps late and holds the sequence of a finished request for one step more."""
    trace, records = many_servers(async_scheduling=async_scheduling)
    started = records.requests.scheduled
    steps, late = trace.output_tokens, 2 if async_scheduling else 1
    ideal = multi_server_starts(trace.arrival, steps * STEP_S, SERVERS)
    held = steps + 1 if async_scheduling else steps
    worst = multi_server_starts(trace.arrival + late * STEP_S, held * STEP_S, SERVERS)
    # An asynchronous engine plans a step when the one before it begins: up to a step before it runs.
    assert (started - ideal).min() > (-STEP_S if async_scheduling else 0) - 1e-6
    assert (started - worst).max() < 1e-6


@pytest.mark.parametrize("async_scheduling", [False, True])
def test_mean_wait_of_mmc_is_erlangs(async_scheduling: bool) -> None:
    trace, records = many_servers(async_scheduling=async_scheduling)
    held = OUTPUT + async_scheduling

    def theory(speed: float) -> float:
        return erlang_c_wait(MMC_RATE, held * STEP_S / speed, SERVERS)

    assert_agrees(records.requests.scheduled - trace.arrival, theory, bias=(1 + async_scheduling) * STEP_S)


def test_servers_of_mmc_are_as_busy_as_the_offered_load() -> None:
    _, records = many_servers(async_scheduling=False)
    assert littles_law(records).l_running == pytest.approx(0.8 * SERVERS, rel=4 * (2 / N) ** 0.5)


def test_intervals_are_neither_blind_nor_paranoid() -> None:
    """The oracles' own oracle: over 200 seeds of a known process, 95 % intervals hold the mean about 95 times in 100."""
    held = 0
    for seed in range(200):
        noise = np.random.default_rng(seed).normal(size=4000)
        found = batch_means(np.convolve(noise, np.ones(5), "same"), level=0.95)
        held += found.holds(0.0)
    assert 180 <= held <= 198  # binomial(200, 0.95): 190 ± 3.1, three standard deviations
