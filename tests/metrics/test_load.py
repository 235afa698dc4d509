"""Closed loops are known by their records; waiting is exact at every instant, not only where spans begin."""

from __future__ import annotations

import heapq

import numpy as np
import pytest

from simulator.metrics import summarize
from simulator.metrics.load import closed_loop_users, waiting_over_time
from simulator.metrics.stability import assess
from simulator.replica.records import SimulationRecords
from tests.metrics.test_stability import queue_run, records_of
from tests.metrics.toy_engine import ToyConfig, ToyRun, random_requests, run_toy


def closed_loop(users: int, servers: int, count: int, *, think: float = 0.0, seed: int = 0) -> SimulationRecords:
    """Users that wait for their answer (and think) before a server with mean service 1 s, first come first served."""
    rng = np.random.default_rng(seed)
    coming = [0.0] * users
    free = [0.0] * servers
    rows = []
    for _ in range(count):
        arrival = heapq.heappop(coming)
        scheduled = max(arrival, heapq.heappop(free))
        finish = scheduled + rng.exponential(1.0)
        heapq.heappush(free, finish)
        heapq.heappush(coming, finish + think)
        rows.append((arrival, scheduled, finish))
    arrival, scheduled, finish = np.array(rows).T
    return records_of(arrival, scheduled, finish, float(finish.max()))


def toy(rate: float, **config: int) -> ToyRun:
    return run_toy(random_requests(1, 150, rate=rate), ToyConfig(**config))


def test_a_closed_loop_is_told_from_open_arrivals() -> None:
    assert closed_loop_users(closed_loop(12, 4, 200)) == 12
    assert closed_loop_users(closed_loop(1, 4, 200)) == 1
    assert closed_loop_users(closed_loop(12, 4, 200, think=0.1)) is None
    assert closed_loop_users(closed_loop(12, 4, 12)) is None  # all at once: nobody has come back yet
    assert closed_loop_users(queue_run(0.8, 300)) is None


def test_a_long_queue_of_a_closed_loop_is_no_overload() -> None:
    found = assess(closed_loop(60, 4, 900))
    assert (found.verdict, found.closed_loop_users) == ("stable", 60)
    assert found.offered_request_per_s is None
    assert "60 users each send the next request when the last one has ended" in found.reason
    short = assess(closed_loop(60, 4, 90))
    assert short.verdict == "backlogged"
    assert "first wave" in short.reason


@pytest.mark.parametrize("blocks", [2000, 40], ids=["roomy", "preempting"])
@pytest.mark.parametrize("rate", [4.0, 30.0])
def test_waiting_is_the_queue_at_every_instant(rate: float, blocks: int) -> None:
    run = toy(rate, num_gpu_blocks=blocks, max_num_seqs=16)
    assert bool(run.records.steps.preempted.any()) == (blocks == 40)
    arrivals = np.sort([r.arrival for r in run.requests])
    area = 0.0  # step by step: who the plan left behind, and who arrives while the step runs
    for step in run.steps:
        end = step.start + step.seconds
        area += step.waiting * step.seconds + sum(end - t for t in arrivals[(arrivals > step.start) & (arrivals < end)])
    found = waiting_over_time(run.records, (0.0, run.records.end))
    assert found["mean"] == pytest.approx(area / run.records.end, rel=1e-9)


def test_waiting_obeys_littles_law_in_the_summary() -> None:
    summary = summarize(toy(6.0, num_gpu_blocks=2000).records)
    waited = summary["latency"]["queue_time_s"]
    expected = waited["mean"] * waited["count"] / summary["window"]["duration_s"]
    assert waited["mean"] > 0
    assert summary["engine"]["waiting_requests"]["mean"] == pytest.approx(expected, rel=1e-9)


def test_the_window_cuts_the_waiting() -> None:
    records = queue_run(0.9, 400)
    halves = [waiting_over_time(records, w)["mean"] for w in ((0, records.end / 2), (records.end / 2, records.end))]
    whole = waiting_over_time(records, (0.0, records.end))["mean"]
    assert all(half is not None for half in halves)
    assert np.mean([float(half) for half in halves if half is not None]) == pytest.approx(whole)


def test_latencies_that_grow_with_the_run_are_marked() -> None:
    over = summarize(run_toy(random_requests(1, 250, rate=30.0)).records)["stability"]
    assert not over["latency_is_steady"]
    assert over["mean_ttft_of_last_tenth_s"] > 5 * over["mean_ttft_of_first_tenth_s"]
    calm = summarize(toy(2.0, num_gpu_blocks=2000, max_num_seqs=32).records)["stability"]
    assert calm["latency_is_steady"]
    assert calm["mean_ttft_of_last_tenth_s"] < 3 * calm["mean_ttft_of_first_tenth_s"]
