"""RAGCache's order: who has the most cached for what it must compute goes first, and nobody is passed for ever."""

from __future__ import annotations

import numpy as np
import pytest

from simulator.cluster.plan import single
from simulator.cluster.simulation import Simulation
from simulator.core.errors import PolicyError
from simulator.cost.analytic import LinearCost
from simulator.scheduling import POLICIES, EngineArgs
from traces.prefix import from_rows
from traces.trace import Trace

COST = LinearCost(0.01, 1e-3, 1e-5, 0.0, 0.0)


def order(rows: list[list[int]], *, policy: str = "ragcache", window: int = 32) -> list[int]:
    """Requests of one engine that serves one at a time, in the order in which they are admitted."""
    n = len(rows)
    args = EngineArgs(
        policy=policy,
        max_num_seqs=1,
        max_num_batched_tokens=512,
        enable_prefix_caching=True,
        async_scheduling=False,
        options={"window": window} if policy == "ragcache" else {},
    )
    prompt = np.full(n, 16 * len(rows[0]) + 1)
    trace = Trace(np.linspace(0.0, 0.001, n), prompt, np.full(n, 2), prefix=from_rows(rows, 16))
    records = Simulation(trace, single(args, COST, 200)).run()
    return [int(row) for row in np.argsort(records.requests.scheduled, kind="stable")]


A, B = [1, 2, 3, 4], [5, 6, 7, 8]


def test_requests_for_what_is_cached_go_before_others() -> None:
    assert order([A, B, A, B, A], policy="vllm") == [0, 1, 2, 3, 4]
    assert order([A, B, A, B, A]) == [0, 2, 4, 1, 3]


def test_more_cached_goes_first() -> None:
    assert order([A, B, [1, 2, 9, 9], [1, 2, 3, 10]]) == [0, 3, 2, 1]


def test_one_is_passed_window_times_at_most() -> None:
    assert order([A, B, A, A, A, A], window=2) == [0, 2, 3, 1, 4, 5]


def test_without_a_cache_there_is_nothing_to_go_by() -> None:
    with pytest.raises(PolicyError, match="nothing is"):
        POLICIES.get("ragcache")(EngineArgs(policy="ragcache", enable_prefix_caching=False))
