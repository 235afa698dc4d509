"""Vectorised token times against a list of every token of every request."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.metrics.analysis import analyse
from simulator.metrics.stats import counted_percentiles, describe, describe_counted
from simulator.metrics.token_times import exceeds_itl, gaps_by_request, pooled_gaps, tokens_made, tokens_of
from simulator.replica.records import Status
from tests.metrics.toy_engine import ToyConfig, ToyRun, random_requests, run_toy

TIGHT = ToyConfig(num_gpu_blocks=40, max_num_seqs=6)  # KV short: preempts


def run(seed: int, config: ToyConfig = TIGHT, *, count: int = 60, replicas: int = 1) -> ToyRun:
    return run_toy(random_requests(seed, count, rate=8.0), config, replicas=replicas, reject=(3,))


@pytest.mark.parametrize("replicas", [1, 3])
@pytest.mark.parametrize("seed", range(6))
def test_pooled_gaps_are_every_gap_between_tokens(seed: int, replicas: int) -> None:
    toy = run(seed, replicas=replicas)
    found = analyse(toy.records)
    finished = toy.records.requests.status == Status.FINISHED
    gaps, counts = pooled_gaps(found.ranges, found.clock, finished)
    assert sorted(np.repeat(gaps, counts).tolist()) == sorted(toy.gaps(toy.finished()))


def test_the_toy_runs_do_preempt_and_do_merge_steps_into_spans() -> None:
    """Otherwise the comparisons above would prove little."""
    toy = run(0)
    assert sum(r.preemptions for r in toy.requests) > 5
    assert sum(len(r.extra) for r in toy.requests) > 3
    assert len(toy.records.steps.start) < len(toy.steps)
    assert toy.records.tokens_recomputed > 0


@pytest.mark.parametrize("seed", range(4))
def test_percentiles_equal_numpy_on_the_expanded_list(seed: int) -> None:
    toy = run(seed)
    found = analyse(toy.records)
    everyone = np.ones(len(toy.requests), dtype=bool)
    got = describe_counted(*pooled_gaps(found.ranges, found.clock, everyone))
    want = describe(np.array(toy.gaps()))
    assert got == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_a_request_is_late_exactly_when_one_of_its_gaps_is(seed: int) -> None:
    toy = run(seed)
    found = analyse(toy.records)
    for limit in np.percentile(toy.gaps(), [1, 50, 90, 99, 100]):
        want = [any(g > limit for g in toy.gaps([r])) for r in toy.requests]
        assert exceeds_itl(found.ranges, found.clock, float(limit), len(want)).tolist() == want


@pytest.mark.parametrize("seed", range(4))
def test_tokens_are_all_there_with_their_times_and_owners(seed: int) -> None:
    toy = run(seed, replicas=2)
    found = analyse(toy.records)
    made = tokens_made(found.ranges, len(toy.requests))
    assert made.tolist() == [len(r.tokens) for r in toy.requests]
    times, counts = tokens_of(found.ranges, found.clock, np.ones(len(made), dtype=bool))
    assert sorted(np.repeat(times, counts).tolist()) == sorted(t for r in toy.requests for t in r.tokens)
    lists = gaps_by_request(found.ranges, found.clock, len(made))
    assert lists == [toy.gaps([r]) for r in toy.requests]


def test_a_horizon_in_the_middle_of_everything_keeps_the_tokens_made_so_far() -> None:
    toy = run(1, ToyConfig(num_gpu_blocks=40, max_num_seqs=6, horizon=4.0))
    found = analyse(toy.records)
    in_flight = [r for r in toy.requests if r.status == Status.IN_FLIGHT]
    assert any(r.tokens for r in in_flight)
    assert tokens_made(found.ranges, len(toy.requests)).tolist() == [len(r.tokens) for r in toy.requests]


def test_a_range_named_twice_counts_once() -> None:
    """An engine may file the last range of a preempted request and leave it in its columns as well."""
    toy = run(0)
    requests = toy.records.requests
    k = int(np.flatnonzero(requests.last_token_step - requests.first_token_step > 2)[0])
    row = [k, requests.first_token_step[k], requests.last_token_step[k], requests.range_start[k], requests.replica[k]]
    twice = np.vstack([requests.extra_ranges, row])
    from dataclasses import replace

    found = analyse(replace(toy.records, requests=replace(requests, extra_ranges=twice)))
    assert tokens_made(found.ranges, len(toy.requests)).tolist() == [len(r.tokens) for r in toy.requests]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 1e6, allow_nan=False), st.integers(0, 5)), min_size=1, max_size=60),
    st.lists(st.floats(0, 100), min_size=1, max_size=5),
)
def test_counted_percentiles_are_numpys(pairs: list[tuple[float, int]], wanted: list[float]) -> None:
    values, counts = np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs], dtype=np.int64)
    expanded = np.repeat(values, counts)
    got = counted_percentiles(values, counts, wanted)
    if len(expanded):
        np.testing.assert_allclose(got, np.percentile(expanded, wanted), rtol=1e-12, atol=1e-12)
    else:
        assert np.isnan(got).all()


def test_large_samples_take_the_bucket_path_and_stay_exact() -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.lognormal(-4, 1, 150_000), np.zeros(100), [-0.0], np.full(2000, 0.02)])
    counts = rng.integers(0, 30, len(values))
    wanted = [0, 0.01, 1, 25, 50, 90, 95, 99, 99.9, 100]
    np.testing.assert_allclose(
        counted_percentiles(values, counts, wanted), np.percentile(np.repeat(values, counts), wanted), rtol=1e-12
    )
