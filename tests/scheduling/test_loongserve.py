"""LoongServe: groups of instances per iteration. Nothing is lost, the best split is found, KV stays where it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import product
from math import inf
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simpy.events import Event

from simulator.cluster.clock import PLAN
from simulator.cluster.plan import single
from simulator.cluster.simulation import Simulation
from simulator.core.errors import UserError
from simulator.cost.context_parallel import ContextParallelCost, ElasticCosts
from simulator.cost.overhead import EngineOverhead
from simulator.cost.placement import Deployment
from simulator.cost.roofline import Roofline
from simulator.cost.step import OperatorCost
from simulator.hardware.gpu import gpu
from simulator.model.config import load_config
from simulator.replica.elastic import ElasticEngine
from simulator.replica.records import SimulationRecords
from simulator.scenario import load, run
from simulator.scheduling import EngineArgs, Request
from simulator.scheduling.elastic import Instances
from simulator.scheduling.loongserve import _batches
from tests.scheduling.invariants import check
from traces.trace import Trace

LWM = Path(__file__).resolve().parents[2] / "scenarios" / "survey" / "models" / "lwm-7b-1m.json"
ARGS = EngineArgs(
    policy="loongserve", tensor_parallel_size=2, prefill_context_parallel_size=4, max_num_seqs=64,
    max_num_batched_tokens=400_000, max_model_len=400_000,
)  # fmt: skip


@cache
def cost(instances: int = 4) -> OperatorCost:
    kind = ContextParallelCost if instances > 1 else OperatorCost
    deployment = Deployment(2, prefill_context_parallel_size=instances)
    return kind(load_config(LWM), Roofline(gpu("A100-SXM-80GB")), deployment, EngineOverhead(async_scheduling=False))


def trace_of(rows: Sequence[tuple[float, int, int]]) -> Trace:
    arrival, prompt, output = (np.array(column) for column in zip(*sorted(rows), strict=True))
    return Trace(arrival.astype(float), prompt, output)


def played(
    rows: Sequence[tuple[float, int, int]], args: EngineArgs = ARGS, tokens: int = 800_000, **options: object
) -> tuple[SimulationRecords, ElasticEngine]:
    """rows: (arrival, prompt, output). tokens: of KV on all instances. The invariants hold."""
    args = replace(args, options=options)
    trace = trace_of(rows)
    blocks = tokens // args.block_size + 1
    simulation = Simulation(trace, single(args, cost(args.prefill_context_parallel_size), blocks))
    records = simulation.run()
    engine = simulation.replicas[0].engine
    assert isinstance(engine, ElasticEngine)
    check(records, trace, engine.state)
    return records, engine


def ttft(records: SimulationRecords) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.asarray(records.requests.first_token - records.requests.arrival)


rows = st.lists(
    st.tuples(
        st.floats(0, 5),
        st.one_of(st.integers(1, 3000), st.integers(1, 60_000)),
        st.one_of(st.just(1), st.integers(1, 40)),
    ),
    min_size=1,
    max_size=25,
)


@settings(max_examples=60, deadline=None)
@given(rows, st.sampled_from([70_000, 100_000, 800_000]), st.sampled_from([1, 2, 4]), st.sampled_from([1, 16]))
def test_nothing_is_lost(some: list[tuple[float, int, int]], tokens: int, instances: int, block_size: int) -> None:
    """With memory for anything and for hardly the longest prompt, on one instance and on several."""
    args = replace(ARGS, prefill_context_parallel_size=instances, block_size=block_size, max_num_seqs=12)
    played(some, args, tokens)


@settings(max_examples=20, deadline=None)
@given(rows, st.lists(st.floats(0, 10), max_size=20))
def test_looking_at_it_changes_nothing(some: list[tuple[float, int, int]], looks: list[float]) -> None:
    records, _ = played(some)
    args, blocks = ARGS, 800_000 // ARGS.block_size + 1
    simulation = Simulation(trace_of(some), single(args, cost(), blocks), step_mode=True)
    engine = simulation.replicas[0].engine

    def settle(event: Event) -> None:
        del event
        engine.settle(simulation.clock.now)

    for look in looks:
        simulation.clock.at(look, PLAN, settle)
    again = simulation.run()
    for name in ("first_token", "finish", "scheduled"):
        np.testing.assert_array_equal(getattr(again.requests, name), getattr(records.requests, name))


@pytest.mark.parametrize("users", [None, 3])
def test_a_horizon_stops_it_in_the_middle(users: int | None) -> None:
    """With prompts, decodes and a queue under way; finishes that somebody waits for come when they happen."""
    rng = np.random.default_rng(3)
    trace = Trace(np.cumsum(rng.exponential(0.05, 60)), rng.integers(1, 30_000, 60), rng.integers(1, 60, 60))
    blocks = 120_000 // ARGS.block_size + 1
    whole, cut = (
        Simulation(trace, single(ARGS, cost(), blocks), closed_loop_users=users, horizon_s=horizon)
        for horizon in (None, 3.21)
    )
    all_of_it, part = whole.run(), cut.run()
    check(part, trace, cut.replicas[0].engine.state, drained=False)
    check(all_of_it, trace, whole.replicas[0].engine.state)
    done = np.isfinite(part.requests.finish)
    assert 0 < done.sum() < 60
    np.testing.assert_array_equal(part.requests.finish[done], all_of_it.requests.finish[done])


def view(prices: dict[int, tuple[float, float, float]], capacity: int = 10**6) -> Instances:
    def price(size: int, tokens: int, squares: int) -> float:
        a, b, c = prices[size]
        return a + b * tokens + c * squares

    return Instances(len(prices), (), capacity, 10**6, inf, True, price, lambda d, n: 1.0 / d, lambda n: n * 1e-6)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(1, 50_000), min_size=1, max_size=6), st.integers(1, 4), st.integers(30_000, 200_000))
def test_the_best_split_is_found(lengths: list[int], instances: int, capacity: int) -> None:
    prices = {k: (0.002 + 0.001 * k, 1e-5 / k, 3e-10 / k) for k in range(1, instances + 1)}
    x = view(prices, capacity)
    requests = [Request(i, 0.0, n, 1) for i, n in enumerate(lengths)]
    latency, batches = _batches(requests, instances, x)
    ordered = sorted(lengths, reverse=True)
    least = inf
    for cuts in product([False, True], repeat=len(ordered) - 1):  # every way to cut the sorted lengths into runs
        runs, start = [], 0
        for i, cut in enumerate([*cuts, True]):
            if cut:
                runs.append(ordered[start : i + 1])
                start = i + 1
        for sizes in product(range(1, instances + 1), repeat=len(runs)):
            if sum(sizes) <= instances and all(sum(r) <= k * capacity for r, k in zip(runs, sizes, strict=True)):
                each = [
                    len(r) * x.prefill_s(k, sum(r), sum(n * n for n in r)) for r, k in zip(runs, sizes, strict=True)
                ]
                least = min(least, sum(each))
    assert latency == pytest.approx(least)
    if batches:
        assert sorted(r.row for group, _ in batches for r in group) == list(range(len(lengths)))
        assert sum(size for _, size in batches) <= instances


def test_a_long_prompt_takes_all_instances_and_decodes_on_one() -> None:
    prices = ElasticCosts(cost())
    records, engine = played([(0.0, 100_000, 50)])
    prefill = prices.on(4).mixed(0, 0, 0, [(100_000, 0)], 1)
    assert ttft(records)[0] == pytest.approx(prefill + prices.keep_seconds(100_000, 4, 1))
    step = (records.requests.finish[0] - records.requests.first_token[0]) / 49
    assert step == pytest.approx(prices.on(1).decode(1, 100_025, 0, 0).first, rel=0.01)
    assert engine._idle == 4


def test_scaling_down_hardly_costs_anything() -> None:
    """LoongServe measures 2 % at most for what stays on one instance instead of on those that computed it."""
    down, stays = (ttft(played([(0.0, 100_000, 2)], scale_down=flag)[0])[0] for flag in (True, False))
    assert 1.0 < down / stays < 1.02


def test_scaling_up_costs_little_for_small_batches_and_helps_large_ones() -> None:
    prices = ElasticCosts(cost())
    assert 1.0 < prices.decode_step(2, 4, 4 * 500) / prices.decode_step(1, 4, 4 * 500) < 1.1
    assert prices.decode_step(4, 1024, 1024) < 0.6 * prices.decode_step(1, 1024, 1024)


def test_short_prompts_share_an_instance_beside_a_long_one() -> None:
    rows = [(0.0, 60_000, 2), *[(0.0, 500 + 10 * i, 2) for i in range(3)]]
    records, _ = played(rows, tipping_tokens=60_000)
    long = int(np.argmax(records.requests.prompt_tokens))
    others = np.delete(ttft(records), long)
    assert np.ptp(others) == pytest.approx(0.0, abs=1e-9)  # one batch
    assert others.max() < 0.2 * ttft(records)[long]


def test_decodes_go_on_beside_a_prompt_and_wait_where_it_needs_their_memory() -> None:
    """A prompt that four instances are just enough for pauses the decodes on one of them."""
    start = [(0.0, 5000, 800)]
    beside = played([*start, (0.5, 100_000, 2)])[0]
    pausing = played([*start, (0.5, 390_000, 2)], tokens=400_000)[0]

    def longest_gap(records: SimulationRecords) -> float:
        ends = (records.steps.start + records.steps.step)[records.steps.num_decodes > 0]
        return float(np.diff(ends).max())

    assert longest_gap(beside) < 0.05
    assert longest_gap(pausing) > 0.9 * ttft(pausing)[1]


def test_an_instance_is_freed_for_prompts_when_moving_its_kv_is_cheap() -> None:
    """Two waves of prompts leave KV on several instances; the third finds all but one of them free again."""
    first = [(0.0, 2000 + i, 300) for i in range(4)]
    records, _ = played([*first, (0.6, 80_000, 2)], tipping_tokens=1)
    prices = ElasticCosts(cost())
    assert ttft(records)[4] < prices.on(3).mixed(0, 0, 0, [(80_000, 0)], 1) * 1.05


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["engine.max_num_batched_tokens=8192"], "computes prompts whole"),
        (["engine.enable_prefix_caching=true"], "enable_prefix_caching is not modelled"),
        (["engine.options.tipping_tokens=0"], "tipping_tokens"),
        (["hardware.power_cap_w=300"], "power caps"),
        (["engine.watermark=0.1"], "watermark"),
    ],
)
def test_what_does_not_go_together_is_told(tmp_path: Path, settings: list[str], words: str) -> None:
    text = f"""
model: {{config: {LWM}}}
hardware: A100-SXM-80GB
engine: {{policy: loongserve, tensor_parallel_size: 2, prefill_context_parallel_size: 4, max_model_len: 200000,
  max_num_batched_tokens: 200000}}
workload: {{synthetic: {{num_requests: 5, arrivals: {{process: at_once}}, lengths: {{prompt: 1000, output: 10}}}}}}
"""
    path = tmp_path / "s.yaml"
    path.write_text(text)
    if words == "computes prompts whole":
        assert run(load(path)).summary["requests"]["finished"] == 5
    with pytest.raises(UserError, match=words):
        run(load(path, settings))
