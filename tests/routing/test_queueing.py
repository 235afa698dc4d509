"""Routers against queueing theory, and what they are known to do to latency, hits and shares in a whole cluster.

An engine that runs one request at a time with steps of equal length, and answers of geometric length, is a server with
exponential service, near enough: its variance is one step in a hundred smaller.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from scipy.sparse import lil_matrix
from scipy.sparse.linalg import spsolve

from simulator.cluster.plan import ClusterPlan, Group, RouterPlan
from simulator.cluster.prediction import LinearPredictor
from simulator.cluster.simulation import Simulation
from simulator.cost.analytic import FixedCost, LinearCost
from simulator.replica.records import SimulationRecords
from simulator.routing import Fleet
from simulator.scheduling import EngineArgs
from tests.cluster.test_many_replicas import cluster as caching_cluster
from tests.cluster.test_many_replicas import trace as conversations
from tests.oracles.theory import batch_means
from traces.trace import Labels, Trace

STEPS = 100  # per request on average
SERVER = Group(
    EngineArgs(max_num_seqs=1, max_num_batched_tokens=1 << 40, enable_prefix_caching=False, async_scheduling=False),
    FixedCost(1.0 / STEPS, 0.0),
    1 << 40,
)
BATCHING = EngineArgs(max_num_seqs=32, max_num_batched_tokens=2048, enable_prefix_caching=False, async_scheduling=True)
COST = LinearCost(0.005, 2e-5, 1e-4, 1e-8, 1e-9)


def serve(
    trace: Trace, groups: tuple[Group, ...], router: str, *, interval: float = 0.05, **options: Any
) -> SimulationRecords:
    return Simulation(trace, ClusterPlan(groups, RouterPlan(router, options, interval)), seed=5).run()


def responses(router: str, servers: int, load: float, n: int, **options: Any) -> np.ndarray[Any, Any]:
    """E2E of ``n`` requests of mean service 1 s, Poisson at ``load`` per server."""
    rng = np.random.default_rng([servers, n])
    arrival = np.cumsum(rng.exponential(1 / (load * servers), n))
    trace = Trace(arrival, np.ones(n), rng.geometric(1 / STEPS, n))
    records = serve(trace, (replace(SERVER, count=servers),), router, **options)
    return np.asarray(records.requests.finish - records.requests.arrival)


def assert_mean(values: np.ndarray[Any, Any], theory: float, wrong: float) -> None:
    """The mean is ``theory`` within its 99.9 % interval and 2 %; the interval tells it from ``wrong``."""
    found = batch_means(values, bias=0.02 * theory)
    assert found.holds(theory), f"measured {found}, theory {theory}"
    assert not found.holds(wrong), f"measured {found} cannot be told from {wrong}"


def mm1(load: float) -> float:
    return 1 / (1 - load)


def erlang_mm1(load: float, servers: int) -> float:
    """Mean response of E_n/M/1, what round robin makes of Poisson arrivals (Kleinrock, Queueing Systems I, 6.4)."""
    sigma = 0.5
    for _ in range(500):
        sigma = (servers * load / (servers * load + 1 - sigma)) ** servers
    return 1 / (1 - sigma)


def supermarket(load: float) -> float:
    """Mean response with two choices among very many servers: ``sum load**(2**i - 2)`` (Mitzenmacher 2001, theorem 1)."""
    return float(sum(load ** (2.0**i - 2) for i in range(1, 12)))


@cache
def shorter_of_two(load: float, longest: int = 45) -> float:
    """Mean response of join the shorter queue, two M/M/1 servers: its Markov chain, cut at ``longest``, solved."""
    size = longest + 1
    matrix = lil_matrix((size * size, size * size))
    for one in range(size):
        for two in range(size):
            state, moves = one * size + two, []
            first = one <= two
            if one < longest and first:
                moves.append(((one + 1) * size + two, 2 * load))
            if two < longest and not first:
                moves.append((one * size + two + 1, 2 * load))
            if one:
                moves.append(((one - 1) * size + two, 1.0))
            if two:
                moves.append((one * size + two - 1, 1.0))
            for other, rate in moves:
                matrix[other, state] += rate
                matrix[state, state] -= rate
    matrix[0, :] = 1
    right = np.zeros(size * size)
    right[0] = 1
    found = spsolve(matrix.tocsc(), right).reshape(size, size)
    number = np.add.outer(np.arange(size), np.arange(size))
    return float((found * number).sum() / (2 * load))


def test_random_makes_every_replica_a_queue_of_its_own() -> None:
    assert_mean(responses("random", 4, 0.6, 60_000), mm1(0.6), erlang_mm1(0.6, 4))


def test_round_robin_smooths_arrivals_as_theory_says() -> None:
    assert_mean(responses("round-robin", 4, 0.7, 60_000), erlang_mm1(0.7, 4), mm1(0.7))


def test_two_choices_are_enough() -> None:
    """Mitzenmacher's table 1: 100 servers at 0.8 take 1.96 services with two choices, where random takes 5."""
    values = responses("power-of-two", 100, 0.8, 50_000)
    assert_mean(values, supermarket(0.8), supermarket(0.85))
    three = responses("power-of-two", 100, 0.8, 25_000, choices=3)
    assert batch_means(three).mean < 0.9 * batch_means(values).mean


def test_join_the_shorter_queue_is_its_markov_chain() -> None:
    exact = shorter_of_two(0.7)
    assert 1 / (1 - 0.7**2) < exact < erlang_mm1(0.7, 2)  # one queue for both is better still
    assert_mean(responses("least-requests", 2, 0.7, 80_000), exact, erlang_mm1(0.7, 2))


def test_stale_metrics_make_a_herd() -> None:
    """All requests between two reports go to the replica that was the emptiest: worse than not looking at all."""
    rng = np.random.default_rng(0)
    n = 4000
    trace = Trace(np.cumsum(rng.exponential(1 / 120, n)), rng.integers(50, 400, n), rng.integers(20, 150, n))
    group = (Group(BATCHING, COST, 4000, count=4),)

    def ttft(router: str, interval: float) -> float:
        records = serve(trace, group, router, interval=interval)
        return float(np.mean(records.requests.first_token - records.requests.arrival))

    fresh, old, stale = (ttft("least-kv", interval) for interval in (0.0, 0.5, 4.0))
    assert fresh < ttft("random", 0.0) < old / 3
    assert stale > 3 * old


@pytest.mark.parametrize("router", ["session-affinity", "weighted", "predicted-latency"])
def test_conversations_find_their_prefix_again(router: str) -> None:
    requests = conversations(400, 40.0)

    def hits(name: str) -> int:
        return int(Simulation(requests, caching_cluster(4, name)).run().requests.cached_tokens.sum())

    assert hits(router) > 1.25 * hits("round-robin")
    if router == "weighted":
        plan = caching_cluster(4, "weighted", prefix=0.0)
        assert Simulation(requests, plan).run().requests.cached_tokens.sum() < hits(router)


def test_a_mixed_fleet_shares_by_weight_and_by_predicted_latency() -> None:
    """Two replicas four times as fast as the other two, close to what they can do together."""
    rng = np.random.default_rng(2)
    n = 3000
    trace = Trace(np.cumsum(rng.exponential(1 / 60, n)), rng.integers(200, 600, n), rng.integers(1, 8, n))
    slow = LinearCost(0.02, 8e-5, 4e-4, 4e-8, 4e-9)
    groups = (Group(BATCHING, COST, 4000, count=2, weight=4.0), Group(BATCHING, slow, 4000, count=2, weight=1.0))

    def run(router: str) -> tuple[float, float]:
        requests = serve(trace, groups, router).requests
        return float(np.mean(requests.replica < 2)), float(np.mean(requests.first_token - requests.arrival))

    blind_share, blind = run("round-robin")
    weighted_share, weighted = run("capacity-weighted")
    predicted_share, predicted = run("predicted-latency")
    assert blind_share == 0.5
    assert weighted_share == pytest.approx(0.8, abs=0.001)
    assert predicted_share > 0.7
    assert weighted < blind / 2
    assert predicted < weighted  # it sees queues as well


def test_adapters_stay_together() -> None:
    rng = np.random.default_rng(3)
    n = 1500
    trace = Trace(
        np.cumsum(rng.exponential(1 / 60, n)),
        rng.integers(50, 300, n),
        rng.integers(10, 100, n),
        adapter=Labels(rng.integers(0, 12, n).astype(np.int32), tuple("abcdefghijkl")),
    )
    assert trace.adapter is not None

    def at_once(router: str) -> float:
        """Different adapters in flight on a replica, on average over its admissions."""
        requests = serve(trace, (Group(BATCHING, COST, 4000, count=4),), router).requests
        counts = []
        for replica in range(4):
            mine = np.flatnonzero(requests.replica == replica)
            for row in mine[::5]:
                here = mine[
                    (requests.arrival[mine] <= requests.arrival[row]) & (requests.finish[mine] > requests.arrival[row])
                ]
                counts.append(len(set(trace.adapter.codes[here].tolist())))  # type: ignore[union-attr]
        return float(np.mean(counts))

    assert at_once("lora-affinity") < 0.75 * at_once("least-requests")


def test_reserved_replicas_keep_chats_quick_in_a_flood_of_batch_work() -> None:
    rng = np.random.default_rng(4)
    n = 1200
    batch = rng.random(n) < 0.7
    trace = Trace(
        np.cumsum(rng.exponential(1 / 80, n)),
        np.where(batch, 1800, 100),
        np.where(batch, 200, 30),
        slo_class=Labels(batch.astype(np.int32), ("chat", "batch")),
    )
    group = (Group(BATCHING, COST, 4000, count=4),)

    def chat_ttft(router: str, **options: Any) -> float:
        requests = serve(trace, group, router, **options).requests
        return float(np.percentile((requests.first_token - requests.arrival)[~batch], 95))

    assert chat_ttft("slo-class", urgent="chat", reserved=0.25, spill=False) < chat_ttft("least-requests") / 5


def test_a_predicted_ttft_is_what_an_idle_engine_does() -> None:
    """Prompts of one to many chunks, one at a time: the prediction is the engine's own time, within 5 %."""
    prompts = np.array([40, 400, 2000, 5000, 20_000])
    trace = Trace(np.arange(5) * 60.0, prompts, np.full(5, 2))
    group = Group(BATCHING, COST, 4000)
    requests = Simulation(trace, ClusterPlan((group,))).run().requests
    predictor = LinearPredictor((group,), (0,))
    fleet = Fleet(1, weight=[1.0], num_blocks=[3999])
    predicted = [float(predictor.ttft(fleet, int(prompt))[0]) for prompt in prompts]
    np.testing.assert_allclose(requests.first_token - requests.arrival, predicted, rtol=0.05)
