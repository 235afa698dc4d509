"""Speculative decoding: what is accepted depends on the request alone, nothing is lost, and the closed form holds."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simulator.cluster.elastic import FaultPlan, GroupLife, LifePlan
from simulator.cluster.plan import ClusterPlan, Group, RouterPlan, single
from simulator.cluster.simulation import Simulation, simulate
from simulator.cluster.transfers import KvBytes
from simulator.core.errors import PolicyError
from simulator.cost.analytic import FixedCost, LinearCost
from simulator.cost.interface import StepCost
from simulator.metrics import analyse, summarize
from simulator.metrics.token_times import gaps_by_request, pooled_gaps, tokens_made, tokens_of
from simulator.replica.records import SimulationRecords, Status
from simulator.scheduling import EngineArgs, resolve
from simulator.scheduling.args import Speculation
from simulator.scheduling.speculation import Acceptance
from tests.scheduling.invariants import check_pool, clock_never_runs_back, ends_once, nobody_is_left
from tests.scheduling.test_span_is_step import WindowCost, traces
from traces.trace import Trace

RATES = (0.8, 0.64, 0.5)
SPOT = ("spot", {"mean_life_s": 0.5, "warning_s": 0.1, "mean_away_s": 0.2})
FAILS = ("failures", {"mtbf_s": 0.5, "mttr_s": 0.2})
EAGLE = Speculation("eagle", 3, RATES)


def engine(**given: object) -> EngineArgs:
    usual = {"max_num_seqs": 8, "max_num_batched_tokens": 64, "speculation": EAGLE, "enable_prefix_caching": False}
    return EngineArgs(**(usual | given))  # type: ignore[arg-type]


def same(one: SimulationRecords, other: SimulationRecords) -> None:
    for field in fields(one.requests):
        mine, theirs = getattr(one.requests, field.name), getattr(other.requests, field.name)
        np.testing.assert_array_equal(mine, theirs, err_msg=field.name)


speculations = st.sampled_from(
    [
        EAGLE,
        Speculation("ngram", 2, (0.5, 0.5)),
        Speculation("draft_model", 5, (1.0,) * 5),
        Speculation("mtp", 1, (0.0,)),
        Speculation("medusa", 3, RATES, tree_size=7),
        Speculation("eagle", 3, RATES, schedule=((1, 3), (3, 1), (5, 0))),
    ]
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    data=st.data(),
    policy=st.sampled_from(["vllm", "vllm", "sjf", "edf"]),
    speculation=speculations,
    caching=st.booleans(),
    block_size=st.sampled_from([1, 4, 16]),
    tokens=st.integers(110, 300),
    asynchronous=st.booleans(),
    window=st.sampled_from([None, 30]),
    horizon_s=st.sampled_from([None, 0.2]),
    seed=st.integers(0, 99),
)
def test_every_token_is_made_once_however_steps_are_planned(
    data: st.DataObject, policy: str, speculation: Speculation, caching: bool, block_size: int, tokens: int,
    asynchronous: bool, window: int | None, horizon_s: float | None, seed: int,
) -> None:  # fmt: skip
    trace = data.draw(traces(block_size))
    async_scheduling = None if speculation.method in {"ngram", "medusa"} else asynchronous
    args = engine(
        policy=policy, speculation=speculation, enable_prefix_caching=caching, block_size=block_size, max_model_len=110,
        async_scheduling=async_scheduling, options={"deadlines_s": "0.1, 1"} if policy == "edf" else {},
    )  # fmt: skip
    cost: StepCost = LinearCost(0.01, 1e-4, 1e-5, 1e-6) if window is None else WindowCost(window)
    blocks = -(-tokens // block_size) + 1
    runs = [
        Simulation(trace, single(args, cost, blocks), step_mode=mode, seed=seed, horizon_s=horizon_s)
        for mode in (False, True)
    ]
    spans, steps = (run.run() for run in runs)
    same(spans, steps)
    state = runs[0].replicas[0].engine.state
    ends_once(spans, trace, drained=horizon_s is None)
    clock_never_runs_back(spans)
    check_pool(state.pool)
    found = analyse(spans)
    made = tokens_made(found.ranges, len(trace))
    served = spans.requests.status == Status.FINISHED
    np.testing.assert_array_equal(made[served], trace.output_tokens[served])
    assert (made <= trace.output_tokens).all()
    gaps, times = pooled_gaps(found.ranges, found.clock, served)
    assert times.sum() == (trace.output_tokens[served] - 1).sum()
    each = gaps_by_request(found.ranges, found.clock, len(trace))
    assert [len(each[i]) for i in np.flatnonzero(served)] == (trace.output_tokens[served] - 1).tolist()
    assert sum(map(sum, each)) == pytest.approx(
        float((gaps * times).sum()) + sum(sum(each[i]) for i in np.flatnonzero(~served))
    )
    assert tokens_of(found.ranges, found.clock, served)[1].sum() == trace.output_tokens[served].sum()
    if horizon_s is None:
        nobody_is_left(state)


@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    router=st.sampled_from(["round-robin", "least-requests"]),
    users=st.sampled_from([None, 9]),
)
def test_replicas_that_catch_up_do_what_watched_ones_do(seed: int, router: str, users: int | None) -> None:
    rng = np.random.default_rng(seed)
    trace = Trace(np.cumsum(rng.exponential(1 / 60, 60)), rng.integers(1, 300, 60), rng.integers(1, 90, 60))
    args = engine(max_num_seqs=16, max_num_batched_tokens=512, enable_prefix_caching=True)
    plan = ClusterPlan((Group(args, LinearCost(0.005, 2e-5, 1e-4, 1e-8), 120, count=3),), RouterPlan(router))
    same(*(Simulation(trace, plan, seed=seed, closed_loop_users=users, watched=w).run() for w in (False, True)))


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6), moves=st.booleans())
def test_requests_go_on_where_nobody_speculates(seed: int, moves: bool) -> None:
    """A failure sends requests from a replica that speculates to one that does not, or back."""
    rng = np.random.default_rng(seed)
    trace = Trace(np.cumsum(rng.exponential(1 / 60, 60)), rng.integers(1, 300, 60), rng.integers(1, 90, 60))
    args = engine(max_num_seqs=16, max_num_batched_tokens=512, enable_prefix_caching=True)
    cost, kv = LinearCost(0.005, 2e-5, 1e-4, 1e-8), KvBytes(1e5)
    groups = (
        Group(args, cost, 300, name="a", kv=kv),
        Group(replace(args, speculation=None), cost, 300, name="b", kv=kv),
    )
    lives = tuple(GroupLife(1, 1, 1, cold_start_s=0.2, network_bytes_per_s=1e9) for _ in groups)
    policy, options = SPOT if moves else FAILS
    fault = FaultPlan(policy, options, detection_s=0.1, recovery="migrate" if moves else "finish", max_attempts=1000)
    plan = ClusterPlan(groups, RouterPlan("least-requests"), life=LifePlan(lives, None, (fault,)))
    runs = [Simulation(trace, plan, seed=seed, step_mode=mode).run() for mode in (False, True)]
    same(*runs)
    assert (runs[0].requests.status == Status.FINISHED).all()
    made = tokens_made(analyse(runs[0]).ranges, len(trace))
    np.testing.assert_array_equal(made, trace.output_tokens)


def test_without_acceptance_it_makes_the_tokens_of_an_engine_that_does_not_speculate() -> None:
    """A draft that is never accepted changes prices alone, and here it has none."""
    rng = np.random.default_rng(1)
    ticks = np.floor(np.cumsum(rng.exponential(0.05, 80)) * 64)
    arrival = np.asarray(ticks / 64, dtype=np.float64)  # sums of steps are exact
    trace = Trace(arrival, rng.integers(1, 90, 80), rng.integers(1, 40, 80))
    never = engine(speculation=Speculation("eagle", 3, (0.0,) * 3), max_num_batched_tokens=512, max_model_len=130)
    plain = replace(never, speculation=None)
    cost = FixedCost(2.0**-6, 0.0)
    same(*(simulate(trace, args, cost, 1000) for args in (never, plain)))


def test_what_is_accepted_depends_on_request_and_position_alone() -> None:
    accept = Acceptance(EAGLE, key=7)
    whole = accept.gains(5, 1, 300, 3)
    assert sum(whole) == 300
    made = 1 + sum(whole[:40])
    assert accept.gains(5, made, 301 - made, 3) == whole[40:]
    assert accept.gains(6, 1, 300, 3) != whole
    assert Acceptance(EAGLE, key=8).gains(5, 1, 300, 3) != whole
    counts = np.bincount(accept.gains(0, 1, 100_000, 3)[:-1], minlength=5)[1:]
    share = counts[::-1].cumsum()[::-1] / counts.sum()  # at least 1, 2, 3, 4 tokens
    np.testing.assert_allclose(share, [1.0, *RATES], atol=0.01)


@pytest.mark.parametrize(("alpha", "drafts", "share"), [(0.5, 3, 0.05), (0.8, 4, 0.1), (0.9, 7, 0.02), (0.7, 1, 0.3)])
def test_speedup_is_that_of_leviathan(alpha: float, drafts: int, share: float) -> None:
    """``(1 - a^(g+1)) / ((1 - a)(g c + 1))`` (arXiv:2211.17192, theorem 3.8), each draft token at ``c`` of a step."""
    trace = Trace(np.linspace(0.0, 1.9e5, 20), np.full(20, 10), np.full(20, 2001))
    seconds = []
    for speculation, step in (
        (None, 1.0),
        (Speculation("draft_model", drafts, tuple(alpha**i for i in range(1, drafts + 1))), 1.0 + share * drafts),
    ):
        args = engine(speculation=speculation, async_scheduling=False)
        records = simulate(trace, args, FixedCost(0.01 * step, 0.0), 1000, seed=1)
        seconds.append(summarize(records, trace)["latency"]["tpot_s"]["mean"])
    expected = (1 - alpha ** (drafts + 1)) / ((1 - alpha) * (drafts * share + 1))
    assert seconds[0] / seconds[1] == pytest.approx(expected, rel=0.03)


def test_itl_comes_in_bursts() -> None:
    trace = Trace(np.zeros(1), np.array([10]), np.array([9]))
    args = engine(speculation=Speculation("eagle", 3, (1.0,) * 3), async_scheduling=False)
    records = simulate(trace, args, FixedCost(0.01, 0.0), 1000)
    found = analyse(records)
    (gaps,) = gaps_by_request(found.ranges, found.clock, 1)
    np.testing.assert_allclose(gaps, [0.01, 0, 0, 0, 0.01, 0, 0, 0], atol=1e-12)
    assert records.requests.finish[0] == pytest.approx(0.03)


def test_a_large_batch_may_draft_less() -> None:
    """Eight at a time draft nothing, so they take as many steps as tokens; one alone drafts three."""
    speculation = Speculation("eagle", 3, (1.0,) * 3, schedule=((1, 3), (2, 0)))
    args = engine(speculation=speculation, async_scheduling=False)
    for n, steps in ((1, 10), (8, 40)):
        records = simulate(Trace(np.zeros(n), np.full(n, 2), np.full(n, 41)), args, FixedCost(0.01, 0.0), 1000)
        assert (records.steps.num_decodes > 0).sum() == steps


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"policy": "orca"}, "more than it plans for"),
        ({"policy": "vtc"}, "Use one of aging, edf, sjf, vllm"),
        ({"max_num_seqs": 17}, "max_num_seqs: 16"),
        ({"speculation": Speculation("ngram", 3, RATES), "async_scheduling": True}, "does not go with"),
    ],
)
def test_what_cannot_be_drafted_is_refused(given: dict[str, object], says: str) -> None:
    with pytest.raises(PolicyError, match=says):
        resolve(engine(**given))


def test_who_drafts_on_the_cpu_is_scheduled_synchronously() -> None:
    assert resolve(engine()).async_scheduling
    assert not resolve(engine(speculation=Speculation("ngram", 3, RATES))).async_scheduling
