"""Data-parallel ranks that step together: nothing is lost, spans are steps, and the slowest rank sets the time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator import native
from simulator.cluster.plan import ClusterPlan, Group, RouterPlan, single
from simulator.cluster.simulation import Simulation
from simulator.cost.analytic import LinearCost
from simulator.cost.interface import StepCost
from simulator.cost.placement import Deployment
from simulator.cost.roofline import Roofline
from simulator.cost.step import OperatorCost
from simulator.hardware.gpu import gpu
from simulator.kv.prefix import PrefixCache
from simulator.metrics import analyse
from simulator.metrics.token_times import tokens_made
from simulator.model.catalogue import model
from simulator.replica.engine import Engine
from simulator.replica.records import SimulationRecords, Status
from simulator.replica.wave import WaveEngine
from simulator.routing import ROUTERS
from simulator.scheduling import POLICIES, EngineArgs
from tests.cluster.test_conservation import ARGS, LINEAR, conversations, mixed
from tests.scheduling.invariants import (
    check_pool,
    clock_never_runs_back,
    computed_is_owed,
    ends_once,
    every_token_is_made_once,
    held_ids,
    never_idle_with_work,
    nobody_is_left,
)
from traces.trace import Trace

BENT = LinearCost(0.005, 2e-5, 1e-4, 1e-6, 1e-9)  # contexts matter: the slowest rank changes within a span


def moe_cost(dp: int, **options: object) -> OperatorCost:
    deployment = Deployment(
        data_parallel_size=dp,
        enable_expert_parallel=dp > 1 or bool(options.get("tensor_parallel_size")),
        **options,  # type: ignore[arg-type]
    )
    return OperatorCost(model("Qwen/Qwen3-30B-A3B"), Roofline(gpu("H200-SXM")), deployment)


@dataclass(frozen=True)
class Case:
    trace: Callable[[], Trace]
    args: EngineArgs
    num_gpu_blocks: int = 4000  # of a rank
    users: int | None = None
    cost: Callable[[], StepCost] = lambda: BENT


WAVES = replace(ARGS, data_parallel_size=4, max_num_seqs=8)
CASES = {
    "sync": Case(mixed, WAVES),
    "async": Case(mixed, replace(WAVES, async_scheduling=True)),
    "two ranks": Case(mixed, replace(WAVES, data_parallel_size=2, max_num_seqs=16)),
    "preempting": Case(lambda: mixed(rate=80), WAVES, 100),
    "preempting async": Case(lambda: mixed(rate=80), replace(WAVES, async_scheduling=True), 100),
    "sessions": Case(conversations, replace(WAVES, enable_prefix_caching=True)),
    "sessions preempting": Case(conversations, replace(WAVES, enable_prefix_caching=True), 60),
    "closed loop": Case(mixed, WAVES, users=12),
    "closed loop async": Case(mixed, replace(WAVES, async_scheduling=True), users=12),
    "eplb": Case(mixed, replace(WAVES, enable_eplb=True, eplb_step_interval=40)),
    "experts": Case(
        lambda: mixed(rate=200), replace(WAVES, async_scheduling=True), cost=lambda: moe_cost(4)
    ),
    "experts eplb": Case(
        lambda: mixed(rate=200),
        replace(WAVES, async_scheduling=True, enable_eplb=True, eplb_step_interval=100),
        cost=lambda: moe_cost(4, expert_skew=1.0, enable_eplb=True, num_redundant_experts=8),
    ),
    **{f"policy {name}": Case(mixed, replace(WAVES, policy=name, max_model_len=1100)) for name in ("sglang", "sarathi", "vllm-v0", "orca", "fastgen", "static", "response-length")},
}  # fmt: skip


def simulated(case: Case, *, step_mode: bool = False) -> tuple[Simulation, SimulationRecords]:
    built = Simulation(
        case.trace(), single(case.args, case.cost(), case.num_gpu_blocks), closed_loop_users=case.users,
        step_mode=step_mode,
    )  # fmt: skip
    return built, built.run()


def same(one: SimulationRecords, other: SimulationRecords, *parts: str) -> None:
    for part in parts or ("requests",):
        for field in fields(getattr(one, part)):
            mine, theirs = (getattr(getattr(x, part), field.name) for x in (one, other))
            np.testing.assert_array_equal(mine, theirs, err_msg=field.name)


def engine_of(built: Simulation, replica: int = 0) -> WaveEngine:
    engine = built.replicas[replica].engine
    assert isinstance(engine, WaveEngine)
    return engine


def held(engine: WaveEngine) -> None:
    """Every rank has given everything back."""
    for rank in engine.ranks:
        check_pool(rank.pool)
        nobody_is_left(rank)
        assert rank.token_steps == engine.ranks[0].token_steps


@pytest.mark.parametrize("name", CASES)
def test_invariants_hold_and_spans_are_steps(name: str) -> None:
    case = CASES[name]
    built, records = simulated(case)
    ends_once(records, built.trace, drained=True)
    clock_never_runs_back(records)
    every_token_is_made_once(records)
    never_idle_with_work(records)
    engine = engine_of(built)
    held(engine)
    padded = sum(rank.tokens_padded for rank in engine.ranks)
    engine.state.tokens_padded, engine.state.caching = padded, engine.ranks[0].caching
    computed_is_owed(records, engine.state)
    if "policy" not in name:  # some preempt by design
        assert (records.requests.preemptions.sum() > 0) == ("preempting" in name)
    stepped = simulated(case, step_mode=True)[1]
    same(records, stepped)
    assert len(stepped.steps.start) >= len(records.steps.start)


@pytest.mark.parametrize("name", ["sync", "async", "experts"])
def test_ranks_share_the_work_and_keep_their_limits(name: str) -> None:
    case = CASES[name]
    built, records = simulated(case)
    ranks = case.args.data_parallel_size
    lanes = np.array([rank.admissions.__reduce__()[1][0] for rank in engine_of(built).ranks])  # admitted by each
    assert lanes.sum() == len(built.trace)
    assert lanes.max() < 1.3 * lanes.min()
    assert (records.steps.num_running <= ranks * case.args.max_num_seqs).all()
    assert records.steps.num_running.max() > case.args.max_num_seqs  # more than one rank alone could run
    assert (records.steps.free_blocks <= ranks * (case.num_gpu_blocks - 1)).all()


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    ranks=st.integers(1, 5),
    rate=st.sampled_from([5.0, 40.0, 300.0]),
    blocks=st.sampled_from([70, 1000]),
    lead=st.booleans(),
    caching=st.booleans(),
    eplb=st.booleans(),
    horizon=st.sampled_from([None, None, 1.3]),
)
def test_spans_are_steps_whatever_happens(
    seed: int, ranks: int, rate: float, blocks: int, lead: bool, caching: bool, eplb: bool, horizon: float | None
) -> None:
    rng = np.random.default_rng(seed)
    n = 60
    trace = Trace(np.cumsum(rng.exponential(1 / rate, n)), rng.integers(1, 500, n), rng.integers(1, 90, n))
    args = EngineArgs(
        max_num_seqs=6, max_num_batched_tokens=256, async_scheduling=lead, enable_prefix_caching=caching,
        data_parallel_size=ranks, enable_eplb=eplb, eplb_step_interval=17,
    )  # fmt: skip
    runs = []
    for step_mode in (False, True):
        built = Simulation(trace, single(args, BENT, blocks), step_mode=step_mode, horizon_s=horizon)
        records = built.run()
        ends_once(records, trace, drained=horizon is None)
        if horizon is None:
            made = tokens_made(analyse(records).ranges, n)
            np.testing.assert_array_equal(made, trace.output_tokens)
        runs.append(records)
    same(runs[0], runs[1])


@pytest.mark.parametrize("lead", [False, True])
@pytest.mark.parametrize("blocks", [260, 4000])
@pytest.mark.parametrize("cost", [LINEAR, BENT])
def test_one_rank_is_the_plain_engine(lead: bool, blocks: int, cost: LinearCost) -> None:
    """Bit for bit, requests and rows."""
    trace = mixed(rate=40)
    args = replace(ARGS, async_scheduling=lead)
    plain = Simulation(trace, single(args, cost, blocks))
    wave = Simulation(trace, single(args, cost, blocks))
    replica = wave.replicas[0]
    engine = replica.engine
    assert type(engine) is Engine
    replica.engine = WaveEngine([engine.state], [POLICIES.get(args.policy)(args)], cost, engine.recorder)
    same(plain.run(), wave.run(), "requests", "steps")


def test_a_step_lasts_as_long_as_its_slowest_rank() -> None:
    """Two requests on two ranks: 1,000 and 10 prompt tokens. By hand."""
    trace = Trace(np.array([0.0, 0.0]), np.array([1000, 10]), np.array([3, 5]))
    cost = LinearCost(0.010, 1e-4, 1e-3, 1e-6)
    args = replace(ARGS, data_parallel_size=2, max_num_batched_tokens=2048)
    records = Simulation(trace, single(args, cost, 4000)).run()
    prompts = 0.010 + 1000 * 1e-4  # the long prompt; the short one waits for it
    first, second = (0.010 + 1e-3 + 1e-6 * context for context in (1001, 1002))
    alone = [0.010 + 1e-3 + 1e-6 * context for context in (13, 14)]  # then only the short one is left
    np.testing.assert_allclose(records.requests.first_token, prompts, rtol=1e-12)
    assert records.requests.finish[0] == pytest.approx(prompts + first + second, rel=1e-12)
    assert records.requests.finish[1] == pytest.approx(prompts + first + second + sum(alone), rel=1e-12)


def test_an_arrival_at_an_idle_rank_waits_for_the_wave() -> None:
    trace = Trace(np.array([0.0, 0.5]), np.array([10_000, 10]), np.array([1, 1]))
    cost = LinearCost(0.0, 1e-4, 0.0, 0.0)
    args = replace(ARGS, data_parallel_size=2, max_num_batched_tokens=16384)
    records = Simulation(trace, single(args, cost, 4000)).run()
    np.testing.assert_allclose(records.requests.scheduled, [0.0, 1.0])
    np.testing.assert_allclose(records.requests.finish, [1.0, 1.001])


@pytest.mark.skipif(native.CORE == "compiled", reason="replaces a method of a compiled class")
def test_the_slowest_rank_may_change_within_a_span(monkeypatch: pytest.MonkeyPatch) -> None:
    """One rank holds a long context, the other many short ones that grow faster: the lines cross."""
    rows = 40
    trace = Trace(np.zeros(rows + 1), np.array([3000] + [16] * rows), np.full(rows + 1, 400))
    args = EngineArgs(
        max_num_seqs=64, max_num_batched_tokens=8192, enable_prefix_caching=False, async_scheduling=False,
        data_parallel_size=2,
    )  # fmt: skip
    built = Simulation(trace, single(args, LinearCost(0.005, 2e-5, 0.0, 1e-6), 9000))
    first_alone = lambda engine, now: int(len(engine.ranks[0].waiting) + len(engine.ranks[0].running) > 0)  # noqa: E731
    monkeypatch.setattr(WaveEngine, "_choose", first_alone)
    records = built.run()
    steps = records.steps
    spans = steps.num_steps > 1
    assert set(steps.increment[spans].round(12)) == {1e-6, 40e-6}  # first the long context, then the many
    ends = np.concatenate([[0.0], np.cumsum(_each(steps))])
    context = np.arange(1, 400)
    prompts = 0.005 + 3000 * 2e-5
    expected = prompts + np.cumsum(0.005 + 1e-6 * np.maximum(3000 + context, rows * (16 + context)))
    np.testing.assert_allclose(ends[2:], expected, rtol=1e-12)


def _each(steps: object) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Seconds of every step."""
    rows = zip(steps.step, steps.increment, steps.num_steps, strict=True)  # type: ignore[attr-defined]
    return np.concatenate([first + increment * np.arange(n) for first, increment, n in rows])


@pytest.mark.parametrize("router", sorted(set(ROUTERS.names()) - {"lora-affinity", "slo-class"}))  # need columns
def test_replicas_of_ranks_behind_a_router(router: str) -> None:
    trace = conversations()
    args = replace(WAVES, enable_prefix_caching=True, data_parallel_size=2)
    runs = []
    for step_mode in (False, True):
        plan = ClusterPlan((Group(args, BENT, 90, count=3),), RouterPlan(router))
        built = Simulation(trace, plan, step_mode=step_mode)
        runs.append(built.run())
        ends_once(runs[-1], trace, drained=True)
        clock_never_runs_back(runs[-1])
        for replica in built.replicas:
            held(engine_of(built, replica.index))
    same(runs[0], runs[1])
    assert (runs[0].requests.status == Status.FINISHED).all()


def test_routers_see_the_blocks_of_every_rank() -> None:
    args = replace(WAVES, enable_prefix_caching=True, data_parallel_size=2)
    plan = ClusterPlan((Group(args, BENT, 90, count=3),), RouterPlan("prefix-aware"))
    built = Simulation(conversations(), plan)
    built.run()
    assert built.around.blocks is not None
    built.around.fleet.refresh(1e9)
    for replica in built.replicas:
        found: set[int] = set()
        for rank in engine_of(built, replica.index).ranks:
            assert isinstance(rank.pool, PrefixCache)
            found |= held_ids(rank.pool)
        assert found == {block for block, mask in built.around.blocks._masks.items() if mask >> replica.index & 1}


def test_experts_move_every_so_many_steps() -> None:
    """Each move lengthens one step by the time the weights take, and the first comes after a quarter."""
    cost = moe_cost(4, expert_skew=1.0, enable_eplb=True)
    trace = Trace(np.zeros(4), np.full(4, 100), np.full(4, 401))
    args = replace(WAVES, data_parallel_size=4, enable_eplb=True, eplb_step_interval=100)
    records = Simulation(trace, single(args, cost, 4000)).run()
    seconds = _each(records.steps)
    assert len(seconds) == 401
    slow = np.flatnonzero(seconds[1:] > 5 * np.median(seconds)) + 1
    assert slow.tolist() == [25, 125, 225, 325]
    assert seconds[26] < seconds[24]  # balanced from then on
