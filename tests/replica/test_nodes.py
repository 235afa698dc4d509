"""Layers of one model on nodes of unlike GPUs, and requests on routes of their own through them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from functools import cache, partial
from itertools import pairwise
from math import inf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.cluster.plan import ClusterPlan, Group
from simulator.cluster.simulation import Simulation
from simulator.cost.calibrated import cost_model
from simulator.cost.nodes import COORDINATOR, Load, Node, Wires, hops, max_flow, tokens_per_s, way_s
from simulator.cost.placement import Deployment
from simulator.cost.step import OperatorCost
from simulator.hardware.gpu import gpu
from simulator.metrics import analyse
from simulator.metrics.token_times import gaps_by_request, pooled_gaps
from simulator.model.catalogue import model
from simulator.replica.nodes import NodesEngine, NodesPlan
from simulator.replica.records import SimulationRecords
from simulator.replica.routes import FlowRoutes, QueueRoutes, Routes, SwarmRoutes
from simulator.scheduling import EngineArgs
from tests.scheduling import invariants
from traces.trace import Trace

MODEL = model("meta-llama/Llama-2-7b-hf")
LAYERS = MODEL.num_layers
ROW = MODEL.hidden_size * 2.0  # bytes of a token between nodes
LATENCY_S = 0.002
LOAD = Load(100, 50)


@cache
def cost(card: str, first: int, end: int) -> OperatorCost:
    return cost_model(MODEL, gpu(card), None, Deployment(dtype="float16", layers=(first, end)))


def node(
    card: str, first: int, end: int, *, kv_tokens: int = 100_000, bandwidth: float = 1e9, region: str = ""
) -> Node:
    return Node(card, 1, first, end, region, kv_tokens * (end - first), cost(card, first, end), bandwidth)


def plan_of(
    nodes: list[Node], *, routing: str = "flow", wires: Wires | None = None, expected: int = 50, high_water: float = 0.9
) -> NodesPlan:
    wires = wires or Wires(LATENCY_S)
    around = way_s(nodes, LOAD, LAYERS)
    rates = [tokens_per_s(one, LOAD, around) for one in nodes]
    ways = hops(nodes, LAYERS)
    flow = max_flow(nodes, rates, wires, ROW, LAYERS)
    kinds: dict[str, Callable[[], Routes]] = {
        "flow": partial(FlowRoutes, nodes, ways, LAYERS, flow.edges),
        "swarm": partial(SwarmRoutes, nodes, ways, LAYERS),
        "shortest-queue": partial(QueueRoutes, nodes, ways, LAYERS, rates),
    }
    return NodesPlan(tuple(nodes), LAYERS, wires, kinds[routing], ROW, high_water, expected, flow.tokens_per_s)


def serve(
    trace: Trace, plan: NodesPlan, *, budget: int = 512, max_num_seqs: int = 64, horizon_s: float | None = None,
    step_mode: bool = False, copies: int = 1,
) -> tuple[SimulationRecords, NodesEngine]:  # fmt: skip
    args = EngineArgs(
        max_num_batched_tokens=budget, max_num_seqs=max_num_seqs, enable_prefix_caching=False, max_model_len=4096
    )
    slots = sum(one.kv_slots for one in plan.nodes)
    group = Group(args, plan.nodes[0].cost, slots // (LAYERS * 16) + 1, 4096, count=copies, nodes=plan)
    simulation = Simulation(trace, ClusterPlan((group,)), horizon_s=horizon_s, step_mode=step_mode)
    records = simulation.run()
    engine = simulation.replicas[0].engine
    assert isinstance(engine, NodesEngine)
    return records, engine


def lone(output: int, prompt: int = 100) -> Trace:
    return Trace(np.zeros(1), np.array([prompt]), np.array([output]))


def test_a_lone_request_takes_the_time_of_its_nodes_and_links() -> None:
    """To the first node, through two nodes and the link between, and back; then the same for each token."""
    nodes = [node("A10", 0, 20), node("L4", 20, 32)]
    records, _ = serve(lone(3), plan_of(nodes))
    prompt = sum(one.cost.mixed(0, 0, 0, [(100, 0)], 1) for one in nodes)
    around = 3 * LATENCY_S + 4.0 / 1e9
    first = prompt + around + 100 * 4.0 / 1e9 + 100 * ROW / 1e9
    assert records.requests.first_token[0] == pytest.approx(first, rel=1e-9)
    finish = first
    for context in (101, 102):
        finish += sum(one.cost.decode(1, context, 0, 0).first for one in nodes) + around + 4.0 / 1e9 + ROW / 1e9
    assert records.requests.finish[0] == pytest.approx(finish, rel=1e-9)


def test_layers_on_two_equal_nodes_cost_what_they_cost_on_one_but_for_the_engine_around() -> None:
    """GPU seconds add up; what an engine adds to a step comes twice."""
    whole, (low, high) = cost("A10", 0, 32), (cost("A10", 0, 16), cost("A10", 16, 32))
    both = low.tokens_s(64, 0) + high.tokens_s(64, 64)
    assert both == pytest.approx(whole.tokens_s(64, 64), rel=1e-12)
    assert whole.with_layers(16, 32).tokens_s(64, 64) == high.tokens_s(64, 64)


def test_a_prompt_longer_than_a_batch_goes_through_in_chunks_one_behind_the_other() -> None:
    nodes = [node("A10", 0, 16, bandwidth=inf), node("A10", 16, 32, bandwidth=inf)]
    records, _ = serve(lone(1, 1024), plan_of(nodes, wires=Wires(0.0)), budget=256)
    chunks = [(256, done) for done in range(0, 1024, 256)]
    low = [nodes[0].cost.mixed(0, 0, 0, [chunk], chunk[1] == 768) for chunk in chunks]
    high = [nodes[1].cost.mixed(0, 0, 0, [chunk], chunk[1] == 768) for chunk in chunks]
    left = right = 0.0
    for a, b in zip(low, high, strict=True):
        left += a
        right = max(left, right) + b
    assert records.requests.finish[0] == pytest.approx(right, rel=1e-9)
    assert right < sum(low) + sum(high)


def test_messages_between_regions_wait_for_the_link_of_their_two_nodes() -> None:
    """1,000 prompt tokens of 8 KiB over 1 MB/s: 8.2 s, and the second prompt's come after the first's."""
    nodes = [node("A10", 0, 16, region="west"), node("A10", 16, 32, region="east")]
    wires = Wires(0.001, region_bandwidth=1e6, region_latency_s=0.05, coordinator="west")
    trace = Trace(np.zeros(2), np.array([500, 500]), np.array([1, 1]))
    records, _ = serve(trace, plan_of(nodes, wires=wires), budget=500)
    first, second = np.sort(records.requests.first_token)
    assert first == pytest.approx(500 * ROW / 1e6, rel=0.1)
    assert second - first == pytest.approx(500 * ROW / 1e6, rel=0.01)


def test_the_flow_is_that_of_the_narrowest_cut() -> None:
    """Three nodes after two: the two are the cut; a slow link between regions is a narrower one."""
    nodes = [node("A10", 0, 16), node("A10", 0, 16), *(node("A10", 16, 32, region="far") for _ in range(3))]
    wide = max_flow(nodes, [10.0, 20.0, 30.0, 30.0, 30.0], Wires(0.0), ROW, LAYERS)
    assert wide.tokens_per_s == pytest.approx(30.0)
    thin = Wires(0.0, region_bandwidth=2 * ROW)
    assert max_flow(nodes, [10.0, 20.0, 30.0, 30.0, 30.0], thin, ROW, LAYERS).tokens_per_s == pytest.approx(12.0)
    out: dict[int, float] = defaultdict(float)
    for (a, b), flow in wide.edges.items():
        out[a] += flow
        out[b] -= flow
    assert all(abs(value) < 1e-9 for i, value in out.items() if i != COORDINATOR)  # what comes in goes out
    slow_nics = [node("A10", 0, 16, bandwidth=3 * ROW), node("A10", 16, 32)]
    assert max_flow(slow_nics, [10.0, 10.0], Wires(0.0), ROW, LAYERS).tokens_per_s == pytest.approx(3.0)


def test_a_node_decodes_what_its_kv_holds_times_its_share_of_the_way() -> None:
    """Two equal halves: each has half of the requests at a time."""
    nodes = [node("A10", 0, 16, kv_tokens=15_000), node("A10", 16, 32, kv_tokens=15_000)]
    load = Load(100, 50, kv_share=0.8)
    known = Load(100, 50, decodes=40)  # 15,000 x 0.8 / 150 requests, half of them here
    rate = tokens_per_s(nodes[0], load, way_s(nodes, load, LAYERS))
    assert rate == pytest.approx(tokens_per_s(nodes[0], known, 1.0), rel=0.02)


def test_routes_follow_the_flow() -> None:
    """Of two first nodes with a third of each other's capacity, one gets three requests for each of the other's."""
    nodes = [node("A10", 0, 16), node("A10", 0, 16), node("A10", 16, 32)]
    ways = hops(nodes, LAYERS)
    flow = max_flow(nodes, [10.0, 30.0, 100.0], Wires(0.0), ROW, LAYERS)
    routes = FlowRoutes(nodes, ways, LAYERS, flow.edges)

    class Free:
        queued_tokens = 0

        def takes(self, tokens: int) -> bool:
            return tokens > 0

    found = [routes.find(10, [Free()] * 3) for _ in range(40)]
    firsts = [route[0].node for route in found if route is not None]
    assert Counter(firsts) == {0: 10, 1: 30}
    assert all(firsts[i : i + 4].count(0) == 1 for i in range(0, 40, 4))  # in turns, not in runs


def test_a_node_may_be_entered_at_a_later_layer_and_computes_from_there() -> None:
    nodes = [node("A10", 0, 20), node("L4", 16, 32)]
    assert hops(nodes, LAYERS) == {0: (1,), 1: (COORDINATOR,), COORDINATOR: (0,)}
    records, engine = serve(lone(2), plan_of(nodes))
    prompt = nodes[0].cost.mixed(0, 0, 0, [(100, 0)], 1) + cost("L4", 20, 32).mixed(0, 0, 0, [(100, 0)], 1)
    assert records.requests.first_token[0] == pytest.approx(prompt + 3 * LATENCY_S, rel=0.02)
    assert engine.stations[1].used == 0


def test_full_nodes_are_kept_off_and_nobody_is_preempted_where_answers_are_as_expected() -> None:
    nodes = [node("A10", 0, 32, kv_tokens=400), node("A10", 0, 32, kv_tokens=1200)]
    trace = Trace(np.zeros(40), np.full(40, 100), np.full(40, 50))
    records, engine = serve(trace, plan_of(nodes, expected=50))
    assert not records.requests.preemptions.any()
    invariants.check(records, trace, engine.state)


def test_longer_answers_than_expected_preempt_who_came_last_and_are_computed_again() -> None:
    nodes = [node("A10", 0, 16, kv_tokens=600), node("A10", 16, 32, kv_tokens=500)]
    trace = Trace(np.zeros(12), np.full(12, 60), np.full(12, 150))
    records, engine = serve(trace, plan_of(nodes, expected=1, high_water=1.0))
    assert records.requests.preemptions.any()
    assert records.tokens_recomputed > 0
    assert not records.requests.preemptions[0]
    invariants.check(records, trace, engine.state)


def test_gaps_between_tokens_are_those_of_each_request() -> None:
    trace = Trace(np.array([0.0, 0.05, 0.1]), np.array([50, 400, 20]), np.array([20, 5, 9]))
    records, _ = serve(trace, plan_of([node("A10", 0, 16), node("T4", 16, 32)]))
    found = analyse(records)
    gaps = gaps_by_request(found.ranges, found.clock, 3)
    assert [len(own) for own in gaps] == [19, 4, 8]
    for own, first, finish in zip(gaps, records.requests.first_token, records.requests.finish, strict=True):
        assert sum(own) == pytest.approx(finish - first, rel=1e-9)
    pooled, times = pooled_gaps(found.ranges, found.clock, np.ones(3, dtype=bool))
    assert (pooled > 0).all()
    assert float(pooled @ times) == pytest.approx(sum(map(sum, gaps)), rel=1e-9)


def test_stops_at_a_horizon_with_the_tokens_made_by_then() -> None:
    trace = Trace(np.zeros(4), np.full(4, 100), np.full(4, 1000))
    nodes = [node("A10", 0, 16), node("T4", 16, 32)]
    whole, _ = serve(trace, plan_of(nodes))
    cut, engine = serve(trace, plan_of(nodes), horizon_s=2.0)
    invariants.check(cut, trace, engine.state, drained=False)
    made = cut.requests.last_token_step - cut.requests.first_token_step
    assert (made > 5).all()
    np.testing.assert_array_equal(cut.token_ends[0][: made[0]], whole.token_ends[0][: made[0]])


CUTS = st.lists(st.integers(1, LAYERS - 1), max_size=3, unique=True).map(sorted)


@st.composite
def clusters(draw: st.DrawFn) -> list[Node]:
    """Stages of one to three nodes of any kind, in two regions; some nodes begin before the stage does."""
    edges = [0, *draw(CUTS), LAYERS]
    nodes = []
    for first, end in pairwise(edges):
        for _ in range(draw(st.integers(1, 3))):
            early = max(first - draw(st.sampled_from([0, 0, 2])), 0)
            card, region = draw(st.sampled_from(["A10", "T4", "L4"])), draw(st.sampled_from(["a", "b"]))
            nodes.append(node(card, early, end, kv_tokens=draw(st.sampled_from([400, 900, 4000])), region=region))
    return nodes


@settings(max_examples=25, deadline=None)
@given(
    nodes=clusters(),
    routing=st.sampled_from(["flow", "swarm", "shortest-queue"]),
    sizes=st.lists(st.tuples(st.integers(1, 200), st.integers(1, 60)), min_size=1, max_size=25),
    gap=st.sampled_from([0.0, 0.01, 0.3]),
    expected=st.sampled_from([1, 30]),
    budget=st.sampled_from([16, 100, 512]),
    copies=st.integers(1, 2),
)
def test_whatever_the_nodes_every_token_is_made_once(  # noqa: PLR0917
    nodes: list[Node], routing: str, sizes: list[tuple[int, int]], gap: float, expected: int, budget: int, copies: int
) -> None:
    prompts, outputs = np.array(sizes).T
    trace = Trace(np.arange(len(sizes), dtype=np.float64) * gap, prompts, outputs)
    wires = Wires(0.001, region_bandwidth=5e6, region_latency_s=0.02, coordinator="a")
    plan = plan_of(nodes, routing=routing, wires=wires, expected=expected)
    records, engine = serve(trace, plan, budget=budget, max_num_seqs=8, copies=copies)
    invariants.ends_once(records, trace, drained=True)
    invariants.clock_never_runs_back(records)
    invariants.nobody_is_left(engine.state)
    invariants.every_token_is_made_once(records)
    if copies == 1:
        invariants.computed_is_owed(records, engine.state)
    for station in engine.stations:
        assert not (station.used or station.expected or station.queue or station.batch or station.here)
    steps, _ = serve(trace, plan, budget=budget, max_num_seqs=8, step_mode=True, copies=copies)
    np.testing.assert_array_equal(steps.requests.finish, records.requests.finish)
    for replica, ends in records.token_ends.items():
        np.testing.assert_array_equal(steps.token_ends[replica], ends)
