"""The verdict against systems whose fate queueing theory knows."""

from __future__ import annotations

import numpy as np
import pytest

from simulator.metrics.stability import assess
from simulator.replica.records import RequestRecords, SimulationRecords, Status, StepRecords
from tests.metrics.toy_engine import ToyConfig, ToyRequest, random_requests, run_toy


def queue_run(
    rate: float, count: int, *, servers: int = 1, seed: int = 0, horizon: float = np.inf
) -> SimulationRecords:
    """M/M/c with mean service 1 s, first come first served; only the columns that the verdict reads."""
    rng = np.random.default_rng(seed)
    arrival = np.cumsum(rng.exponential(1 / rate, count))
    service = rng.exponential(1.0, count)
    free = np.zeros(servers)
    scheduled = np.empty(count)
    for i, (t, s) in enumerate(zip(arrival, service, strict=True)):
        k = int(np.argmin(free))
        scheduled[i] = max(t, free[k])
        free[k] = scheduled[i] + s
    kept = arrival <= horizon
    return records_of(arrival[kept], scheduled[kept], (scheduled + service)[kept], min(horizon, float(free.max())))


def records_of(arrival: np.ndarray, scheduled: np.ndarray, finish: np.ndarray, end: float) -> SimulationRecords:
    n = len(arrival)
    scheduled = np.where(scheduled > end, np.nan, scheduled)
    finish = np.where(finish > end, np.nan, finish)
    status = np.where(np.isnan(finish), Status.IN_FLIGHT, Status.FINISHED).astype(np.int64)
    one, none = np.ones(n, dtype=np.int64), np.zeros(0, dtype=np.int64)
    requests = RequestRecords(
        arrival, scheduled, finish, finish, one, one, 0 * one, 0 * one, status, 0 * one, -one, -one,
        np.zeros((0, 4)), finish,
    )  # fmt: skip
    empty = np.zeros(0)
    steps = StepRecords(
        none, empty, empty, empty, none, none, none, none, none, empty, none, none, none, none
    )  # fmt: skip
    return SimulationRecords(requests, steps, end, (1,), 16, 0, 0)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("rate", "servers"), [(0.5, 1), (6.0, 8), (60.0, 80)])
def test_moderate_load_is_stable(rate: float, servers: int, seed: int) -> None:
    assert assess(queue_run(rate, 3000, servers=servers, seed=seed)).verdict == "stable"


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("rate", "servers"), [(1.25, 1), (10.0, 8), (100.0, 80)])
def test_a_quarter_too_much_is_overloaded_drained_or_cut(rate: float, servers: int, seed: int) -> None:
    drained = assess(queue_run(rate, 3000, servers=servers, seed=seed))
    cut = assess(queue_run(rate, 3000, servers=servers, seed=seed, horizon=2500 / rate))
    assert (drained.verdict, cut.verdict) == ("overloaded", "overloaded")
    assert drained.queue_growth > 100


@pytest.mark.parametrize("seed", range(8))
def test_slightly_too_much_is_never_called_stable(seed: int) -> None:
    assert assess(queue_run(1.04, 20_000, seed=seed)).verdict != "stable"


@pytest.mark.parametrize("seed", range(4))
def test_near_saturation_is_never_called_overloaded(seed: int) -> None:
    assert assess(queue_run(0.9, 20_000, seed=seed)).verdict != "overloaded"


def test_a_burst_that_is_worked_off_is_backlogged() -> None:
    quiet = queue_run(0.5, 400)
    arrival = np.sort(np.concatenate([quiet.requests.arrival, np.full(60, 200.0)]))
    finish, free = np.empty(460), 0.0
    for i, t in enumerate(arrival):
        free = finish[i] = max(free, t) + 0.8
    assert assess(records_of(arrival, finish - 0.8, finish, free)).verdict == "backlogged"


def test_everything_at_once_is_a_backlog_if_it_had_to_wait() -> None:
    run = run_toy([ToyRequest(i, 0.0, 10, 30) for i in range(40)])
    assert assess(run.records).verdict == "backlogged"
    assert assess(run.records).offered_request_per_s is None


def test_a_run_shorter_than_its_requests_has_not_warmed_up() -> None:
    arrival = np.linspace(0, 2, 200)
    verdict = assess(records_of(arrival, arrival, arrival + 10.0, 12.0))
    assert verdict.verdict == "backlogged"
    assert "too short" in verdict.reason


def test_one_request_alone_is_stable_and_nothing_finished_is_not() -> None:
    assert assess(run_toy([ToyRequest(0, 0.0, 10, 10)]).records).verdict == "stable"
    cut = run_toy([ToyRequest(0, 0.0, 10, 1000)], ToyConfig(horizon=1.0))
    assert assess(cut.records).verdict == "backlogged"


def test_a_run_that_ends_before_the_first_arrival_was_offered_nothing() -> None:
    late = np.asarray([5.0, 6.0])
    found = assess(records_of(late, late, late + 1.0, end=1.0))
    assert (found.verdict, found.reason) == ("stable", "No request arrived before the end of the run.")


def test_the_toy_engine_overloaded_says_so() -> None:
    run = run_toy(random_requests(1, 250, rate=30.0))
    assert assess(run.records).verdict == "overloaded"
