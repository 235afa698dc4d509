"""Several replicas: each is what it would be alone with its requests, and nothing is lost between them."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.cluster.plan import ClusterPlan, Group, RouterPlan
from simulator.cluster.simulation import Simulation, simulate
from simulator.core.errors import PolicyError
from simulator.cost.analytic import FixedCost, LinearCost
from simulator.kv.prefix import PrefixCache
from simulator.metrics import analyse
from simulator.metrics.token_times import tokens_made
from simulator.replica.records import SimulationRecords, Status
from simulator.routing import ROUTERS
from simulator.scheduling import EngineArgs
from tests.scheduling.invariants import clock_never_runs_back, ends_once, held_ids, nobody_is_left
from traces.prefix import from_rows
from traces.trace import Labels, Trace

LINEAR = LinearCost(0.005, 2e-5, 1e-4, 1e-8, 1e-9)
ARGS = EngineArgs(max_num_seqs=16, max_num_batched_tokens=512, enable_prefix_caching=True, async_scheduling=True)


def trace(n: int = 240, rate: float = 60.0, *, seed: int = 0) -> Trace:
    """Twenty conversations whose prompts begin alike, five adapters, two priorities."""
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, (20, 29), (n, 2))
    blocks = [[100 * int(s) + k for k in range(int(b) + 1)] for s, b in drawn]
    prompt = np.array([16 * len(row) for row in blocks]) + rng.integers(1, 16, n)
    prefix = from_rows(blocks, 16)
    return Trace(
        np.cumsum(rng.exponential(1 / rate, n)),
        prompt,
        rng.integers(1, 90, n),
        prefix=prefix,
        session=drawn[:, 0],
        priority=drawn[:, 0] % 2,
        adapter=Labels((drawn[:, 1] % 6 - 1).astype(np.int32), ("a", "b", "c", "d", "e")),
    )


def cluster(count: int, router: str = "round-robin", *, blocks: int = 400, **options: object) -> ClusterPlan:
    interval = float(options.pop("metrics_interval_s", 0.05))  # type: ignore[arg-type]
    return ClusterPlan((Group(ARGS, LINEAR, blocks, count=count),), RouterPlan(router, options, interval))  # type: ignore[arg-type]


def same(one: SimulationRecords, other: SimulationRecords) -> None:
    for field in fields(one.requests):
        mine, theirs = getattr(one.requests, field.name), getattr(other.requests, field.name)
        np.testing.assert_array_equal(mine, theirs, err_msg=field.name)


def test_round_robin_is_as_many_engines_with_every_nth_request() -> None:
    whole = trace()
    together = Simulation(whole, cluster(3)).run()
    for k in range(3):
        rows = np.arange(k, len(whole), 3)
        alone = simulate(whole.select(rows), ARGS, LINEAR, 400)
        for name in ("scheduled", "first_token", "finish", "cached_tokens", "preemptions", "first_token_step"):
            np.testing.assert_array_equal(getattr(together.requests, name)[rows], getattr(alone.requests, name))
        assert (together.requests.replica[rows] == k).all()


@pytest.mark.parametrize("router", ROUTERS.names())
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(2, 5),
    rate=st.sampled_from([20.0, 150.0]),
    interval=st.sampled_from([0.0, 0.05, 1.0]),
    users=st.sampled_from([None, None, 9]),
)
def test_every_request_ends_once_with_all_its_tokens_whoever_routes(
    router: str, seed: int, count: int, rate: float, interval: float, users: int | None
) -> None:
    requests = trace(80, rate, seed=seed)
    runs = []
    for step_mode in (False, True):
        plan = cluster(count, router, blocks=120, metrics_interval_s=interval)
        built = Simulation(requests, plan, closed_loop_users=users, step_mode=step_mode, seed=seed)
        records = built.run()
        ends_once(records, requests, drained=True)
        clock_never_runs_back(records)
        for replica in built.replicas:
            nobody_is_left(replica.engine.state)
        made = tokens_made(analyse(records).ranges, len(requests))
        finished = records.requests.status == Status.FINISHED
        np.testing.assert_array_equal(made[finished], requests.output_tokens[finished])
        runs.append(records)
    same(*runs)  # spans are steps, whatever routers look at in between


def test_least_requests_evens_out_what_round_robin_piles_up() -> None:
    """Every third request is fifty times as long: round robin gives them all to one replica of three."""
    n = 300
    output = np.where(np.arange(n) % 3 == 0, 200, 4)
    requests = Trace(np.arange(n) / 60.0, np.full(n, 64), output)
    worst = {
        router: np.nanmax(Simulation(requests, cluster(3, router)).run().requests.first_token - requests.arrival)
        for router in ("round-robin", "least-requests")
    }
    assert worst["least-requests"] < worst["round-robin"] / 3


def test_prefix_aware_finds_the_caches_that_round_robin_misses() -> None:
    requests = trace(400, 40.0)
    hits = {
        router: Simulation(requests, cluster(4, router)).run().requests.cached_tokens.sum()
        for router in ("round-robin", "prefix-aware")
    }
    assert hits["prefix-aware"] > 1.3 * hits["round-robin"]


def test_the_published_index_is_what_the_caches_hold() -> None:
    requests = trace(300, 80.0)
    built = Simulation(requests, cluster(3, "prefix-aware", blocks=150))  # small: blocks are evicted all the time
    built.run()
    assert built.around.blocks is not None
    built.around.fleet.refresh(1e9)
    for replica in built.replicas:
        pool = replica.engine.state.pool
        assert isinstance(pool, PrefixCache)
        held = held_ids(pool)
        assert held == {block for block, mask in built.around.blocks._masks.items() if mask >> replica.index & 1}


def test_long_requests_go_where_they_fit() -> None:
    long = np.random.default_rng(0).random(40) < 0.5
    requests = Trace(np.arange(40) / 10.0, np.where(long, 1000, 50), np.full(40, 5))
    groups = (Group(ARGS, LINEAR, 30, name="small", count=2), Group(ARGS, LINEAR, 300, name="large"))
    records = Simulation(requests, ClusterPlan(groups, RouterPlan("round-robin"))).run()
    assert (records.requests.status == Status.FINISHED).all()
    assert set(records.requests.replica[requests.prompt_tokens == 1000].tolist()) == {2}
    assert set(records.requests.replica[requests.prompt_tokens == 50].tolist()) == {0, 1, 2}


def test_wrong_routers_and_options_are_errors_of_the_user() -> None:
    with pytest.raises(PolicyError, match="round-robin"):
        Simulation(trace(10), cluster(2, "round_robin"))
    with pytest.raises(PolicyError, match="hit_threshold"):
        Simulation(trace(10), cluster(2, "prefix-aware", hit_treshold=0.5))
    with pytest.raises(PolicyError, match="from 0 to 1"):
        Simulation(trace(10), cluster(2, "prefix-aware", hit_threshold=2.0))


def test_a_seed_decides_and_nothing_else() -> None:
    runs = [Simulation(trace(), cluster(4, "prefix-aware"), seed=3).run() for _ in range(2)]
    same(*runs)


@pytest.mark.parametrize("router", ROUTERS.names())
@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(2, 5),
    rate=st.sampled_from([20.0, 150.0]),
    stages=st.sampled_from([1, 1, 2]),
    ties=st.booleans(),
    horizon_s=st.sampled_from([None, 0.8]),
)
def test_events_of_their_own_change_nothing(
    router: str, seed: int, count: int, rate: float, stages: int, ties: bool, horizon_s: float | None
) -> None:
    """Replicas that catch up when a router looks, or compute at a stretch, do what those with an event per span do."""
    requests = trace(80, rate, seed=seed)
    if ties:  # with each other, and with the ends of steps
        requests = replace(requests, arrival=np.floor(requests.arrival * 64) / 64)
    args = replace(ARGS, pipeline_parallel_size=stages, async_scheduling=bool(seed % 2))
    group = Group(args, FixedCost(2.0**-6, 0.0) if ties else LINEAR, 120, count=count)
    plan = ClusterPlan((group,), RouterPlan(router))
    runs = [
        Simulation(requests, plan, seed=seed, watched=watched, horizon_s=horizon_s).run() for watched in (False, True)
    ]
    same(*runs)
    assert runs[0].num_events <= runs[1].num_events
