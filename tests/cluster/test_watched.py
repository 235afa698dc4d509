"""A replica with an event per span and one that catches up when a request comes leave the same records, bit for bit."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.cluster import simulate
from simulator.cluster.plan import single
from simulator.cluster.simulation import Simulation
from simulator.cost.analytic import FixedCost, LinearCost
from simulator.cost.interface import StepCost
from simulator.replica.engine import Engine
from simulator.replica.records import SimulationRecords
from simulator.scheduling import EngineArgs
from traces.trace import Trace

LINEAR = LinearCost(0.005, 2e-5, 1e-4, 1e-8, 1e-9)


BINARY = FixedCost(2.0**-6, 0.0)  # every step ends at a float that arrivals can hit exactly


def watched(
    trace: Trace, args: EngineArgs, num_gpu_blocks: int, cost: StepCost = LINEAR
) -> tuple[SimulationRecords, list[float]]:
    """As if somebody waited for the finishes; also returns when they were reported."""
    built = Simulation(trace, single(args, cost, num_gpu_blocks))
    built.replicas[0].watched = True
    reported: list[float] = []
    built.replicas[0].engine.on_finish = lambda request, time: reported.append(time)
    if isinstance(built.replicas[0].engine, Engine):
        built.replicas[0].engine.eager = True
    return built.run(), reported


def assert_same(one: SimulationRecords, other: SimulationRecords) -> None:
    for field in fields(one.requests):
        mine, theirs = getattr(one.requests, field.name), getattr(other.requests, field.name)
        np.testing.assert_array_equal(mine, theirs, err_msg=field.name)
    assert one.end == other.end
    assert one.tokens_recomputed == other.tokens_recomputed
    assert one.steps.num_steps.sum() == other.steps.num_steps.sum()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    rate=st.sampled_from([5.0, 30.0, 200.0]),
    blocks=st.sampled_from([70, 150, 3000]),
    seqs=st.sampled_from([1, 4, 64]),
    stages=st.sampled_from([1, 1, 1, 2, 3]),
    async_scheduling=st.booleans(),
    ties=st.booleans(),
)
def test_watching_changes_nothing(
    seed: int, rate: float, blocks: int, seqs: int, stages: int, async_scheduling: bool, ties: bool
) -> None:
    rng = np.random.default_rng(seed)
    n = 60
    arrival = np.cumsum(rng.exponential(1 / rate, n))
    if ties:  # with each other, and with the ends of steps
        arrival = np.floor(arrival * 16) / 16
    trace = Trace(arrival, rng.integers(1, 600, n), rng.integers(1, 90, n))
    args = EngineArgs(
        max_num_seqs=seqs,
        max_num_batched_tokens=512,
        enable_prefix_caching=False,
        async_scheduling=async_scheduling,
        pipeline_parallel_size=stages,
    )
    cost = BINARY if ties else LINEAR
    seen, reported = watched(trace, args, blocks, cost)
    assert_same(seen, simulate(trace, args, cost, blocks))
    # Finishes are told in order of time, each once.
    np.testing.assert_array_equal(reported, np.sort(seen.requests.finish))


def test_an_unwatched_replica_needs_one_event_per_arrival() -> None:
    trace = Trace(np.linspace(0, 20, 200), np.full(200, 100), np.full(200, 50))
    args = EngineArgs(enable_prefix_caching=False)
    unseen = simulate(trace, args, LINEAR, 4000)
    seen, _ = watched(trace, args, 4000)
    assert unseen.num_events == 200
    assert seen.num_events > 2 * unseen.num_events
    assert_same(seen, unseen)
