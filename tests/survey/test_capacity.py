from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.cluster.simulation import simulate
from simulator.core.errors import UserError
from simulator.cost.analytic import FixedCost
from simulator.planning.search import highest_rate
from simulator.scheduling import EngineArgs
from simulator.survey.expression import md1_wait
from traces import transforms
from traces.trace import Trace

SERVICE_S = 0.1


def one_at_a_time(rate: float, gaps: np.ndarray) -> float:
    """Mean wait of a server that computes one prompt of one token a step: M/D/1."""
    trace = Trace(np.cumsum(gaps), np.ones(len(gaps)), np.ones(len(gaps)))
    args = EngineArgs(max_num_seqs=1, max_num_batched_tokens=1, enable_prefix_caching=False, async_scheduling=False)
    records = simulate(transforms.to_rate(trace, rate), args, FixedCost(SERVICE_S, 0.0), 100)
    return float((records.requests.scheduled - records.requests.arrival).mean())


def test_the_highest_rate_of_a_single_server_is_that_of_queueing_theory() -> None:
    """M/D/1: wait = rho s / (2 (1 - rho)), so the highest rho with wait <= w is 2 w / (s + 2 w)."""
    limit_s = 0.1
    gaps = np.random.default_rng(7).exponential(size=12_000)
    found = highest_rate(lambda rate: one_at_a_time(rate, gaps) <= limit_s, start=1.0, tolerance=0.01)
    expected = 2 * limit_s / (SERVICE_S + 2 * limit_s) / SERVICE_S
    assert found.rate == pytest.approx(expected, rel=0.03)
    assert found.rate < found.too_high <= found.rate * 1.01
    assert float(md1_wait(expected, SERVICE_S)) == pytest.approx(limit_s)


@given(threshold=st.floats(1e-2, 1e4), start=st.floats(1e-2, 1e3), tolerance=st.floats(1e-3, 0.5))
@settings(max_examples=80, deadline=None)
def test_it_brackets_any_threshold_from_any_start(threshold: float, start: float, tolerance: float) -> None:
    found = highest_rate(lambda rate: rate <= threshold, start=start, tolerance=tolerance, lowest=min(start, 1e-3))
    assert found.rate <= threshold < found.too_high <= found.rate * (1 + tolerance) * (1 + 1e-12)
    assert found.probes < 60


def test_no_rate_is_good_and_every_rate_is_good() -> None:
    none = highest_rate(lambda _: False, start=8.0)
    assert none.rate == 0.0 and none.too_high == pytest.approx(0.008)
    bounded = highest_rate(lambda _: True, start=1.0, highest=37.0)
    assert bounded.rate == 37.0 and bounded.too_high == math.inf


def test_a_search_without_sense_is_refused() -> None:
    with pytest.raises(UserError, match="makes no sense"):
        highest_rate(lambda _: True, start=0.0)
    with pytest.raises(UserError, match="makes no sense"):
        highest_rate(lambda _: True, start=5.0, highest=1.0)
