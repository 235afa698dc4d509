"""Several models on the same GPUs: one computes at a time, in turn, and nothing is lost."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from simulator.cluster.plan import ClusterPlan, Group, RouterPlan
from simulator.cluster.simulation import Simulation
from simulator.core.errors import ScenarioError
from simulator.cost.analytic import FixedCost, LinearCost
from simulator.metrics import analyse
from simulator.metrics.token_times import tokens_made
from simulator.replica.records import SimulationRecords, Status
from simulator.scheduling import EngineArgs
from tests.scheduling.invariants import clock_never_runs_back, ends_once, nobody_is_left, span_ends
from traces.trace import Labels, Trace

Column = NDArray[Any]
LINEAR = LinearCost(0.005, 2e-5, 1e-4, 1e-8, 1e-9)
ARGS = EngineArgs(max_num_seqs=16, max_num_batched_tokens=512, enable_prefix_caching=False, async_scheduling=False)


def labelled(arrival: Column, prompt: Column, output: Column, which: Column) -> Trace:
    names = tuple("abcd"[: int(which.max()) + 1])
    return Trace(arrival, prompt, output, model=Labels(which.astype(np.int32), names))


def random_trace(n: int, models: int, rate: float, seed: int = 0) -> Trace:
    rng = np.random.default_rng(seed)
    arrival = np.cumsum(rng.exponential(1 / rate, n))
    which = rng.integers(0, models, n)
    which[0] = models - 1
    return labelled(arrival, rng.integers(1, 500, n), rng.integers(1, 60, n), which)


def together(
    models: int, *, args: EngineArgs = ARGS, count: int = 1, blocks: int = 400, cost: object = LINEAR
) -> ClusterPlan:
    """``models`` groups on the GPUs of the first."""
    groups = tuple(
        Group(args, cost, blocks, name=name, count=count, model=name, shares=None if name == "a" else "a")  # type: ignore[arg-type]
        for name in "abcd"[:models]
    )
    return ClusterPlan(groups, RouterPlan("least-requests"))


def never_at_once(records: SimulationRecords, replicas: list[int]) -> None:
    """Rows of these replicas do not overlap."""
    mine = np.isin(records.steps.replica, replicas)
    start, end = records.steps.start[mine], span_ends(records)[mine]
    assert (records.steps.num_steps[mine] >= 1).all()
    order = np.argsort(start, kind="stable")
    assert (start[order][1:] >= end[order][:-1] - 1e-9).all()


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    models=st.integers(2, 4),
    count=st.integers(1, 2),
    rate=st.sampled_from([5.0, 40.0, 200.0]),
    blocks=st.sampled_from([60, 400]),
    lead=st.booleans(),
    users=st.sampled_from([None, None, 7]),
)
def test_nothing_is_lost_and_no_two_compute_at_once(
    seed: int, models: int, count: int, rate: float, blocks: int, lead: bool, users: int | None
) -> None:
    trace = random_trace(80, models, rate, seed)
    runs = []
    for step_mode in (False, True):
        plan = together(models, args=replace(ARGS, async_scheduling=lead), count=count, blocks=blocks)
        built = Simulation(trace, plan, closed_loop_users=users, step_mode=step_mode, seed=seed)
        records = built.run()
        ends_once(records, trace, drained=True)
        clock_never_runs_back(records)
        for replica in built.replicas:
            nobody_is_left(replica.engine.state)
        finished = records.requests.status == Status.FINISHED
        made = tokens_made(analyse(records).ranges, len(trace))
        np.testing.assert_array_equal(made[finished], trace.output_tokens[finished])
        assert trace.model is not None
        np.testing.assert_array_equal(records.requests.replica[finished] // count, trace.model.codes[finished])
        runs.append(records)
    np.testing.assert_array_equal(runs[0].requests.finish, runs[1].requests.finish)


@pytest.mark.parametrize("models", [2, 3])
def test_the_gpus_do_one_thing_at_a_time_and_are_never_idle_with_work(models: int) -> None:
    trace = random_trace(150, models, 60.0)
    records = Simulation(trace, together(models)).run()
    never_at_once(records, list(range(models)))
    order = np.argsort(records.steps.start)
    ends = span_ends(records)[order]
    for end, start in zip(ends[:-1], records.steps.start[order][1:], strict=True):
        if start > end + 1e-9:  # everybody who had come had gone
            assert (records.requests.finish[trace.arrival < start - 1e-9] <= end + 1e-9).all()


def test_steps_take_turns() -> None:
    """By hand: a step is 10 ms whatever it holds. Both models have one request of 4 tokens, from time 0."""
    trace = labelled(np.zeros(2), np.full(2, 10), np.full(2, 4), np.array([0, 1]))
    records = Simulation(trace, together(2, cost=FixedCost(0.010, 0.0))).run()
    np.testing.assert_allclose(records.requests.first_token, [0.01, 0.02])
    np.testing.assert_allclose(records.requests.finish, [0.07, 0.08])


def test_a_model_alone_is_as_fast_as_on_gpus_of_its_own() -> None:
    trace = random_trace(100, 2, 30.0)
    assert trace.model is not None
    quiet = replace(trace, model=Labels(np.zeros(100, dtype=np.int32), ("a", "b")))
    shared = Simulation(quiet, together(2)).run()
    alone = Simulation(replace(quiet, model=None), ClusterPlan((Group(ARGS, LINEAR, 400),))).run()
    np.testing.assert_allclose(shared.requests.finish, alone.requests.finish, rtol=1e-12)


def test_sharing_more_gpus_absorbs_bursts_of_one_model() -> None:
    """AlpaServe's point: two models cut over both GPUs beat one GPU each when they burst in turn. Two GPUs are taken to
    be 1.8 times as fast as one."""
    rng = np.random.default_rng(1)
    bursts = np.sort(np.repeat(np.arange(20.0), 20) + rng.random(400) * 0.2)
    which = (np.arange(400) // 20) % 2
    trace = labelled(bursts, np.full(400, 400), np.full(400, 4), which)
    one, two = (LinearCost(0.004 / x, 6e-5 / x, 1e-4 / x, 0.0) for x in (1.0, 1.8))
    shared = Simulation(trace, together(2, cost=two)).run()
    own = tuple(Group(ARGS, one, 400, name=name, model=name) for name in "ab")
    apart = Simulation(trace, ClusterPlan(own, RouterPlan("least-requests"))).run()
    waits = [np.mean(r.requests.finish - trace.arrival) for r in (shared, apart)]
    assert waits[0] < 0.75 * waits[1]
    steady = labelled(np.arange(400) * 0.06, np.full(400, 400), np.full(400, 4), np.arange(400) % 2)
    loads = [
        np.mean(Simulation(steady, plan).run().requests.finish - steady.arrival)
        for plan in (together(2, cost=two), ClusterPlan(own, RouterPlan("least-requests")))
    ]
    assert loads[0] / loads[1] > waits[0] / waits[1]  # an even load gains less


@pytest.mark.parametrize(
    ("change", "remedy"),
    [
        ({"shares": "c"}, "Name one of: a"),
        ({"shares": "b"}, "Name one of: a"),
        ({"num_gpus": 2}, "same hardware"),
        ({"count": 2}, "same hardware, replicas"),
    ],
)
def test_what_cannot_share_is_told_why(change: dict[str, object], remedy: str) -> None:
    plan = together(2)
    groups = (plan.groups[0], replace(plan.groups[1], **change))  # type: ignore[arg-type]
    with pytest.raises(ScenarioError, match=remedy):
        Simulation(random_trace(10, 2, 5.0), replace(plan, groups=groups))


PIPELINED = replace(ARGS, pipeline_parallel_size=4)


@settings(max_examples=20, deadline=None)
@given(
    models=st.integers(1, 4), n=st.integers(1, 60), rate=st.sampled_from([2.0, 20.0, 400.0]), seed=st.integers(0, 99)
)
def test_models_share_the_stages_of_a_pipeline(models: int, n: int, rate: float, seed: int) -> None:
    """One batch at a time is in the last stage, whoever's it is, and every token is made once."""
    trace = random_trace(n, models, rate, seed)
    simulation = Simulation(trace, together(models, args=PIPELINED, blocks=2000))
    records = simulation.run()
    ends_once(records, trace, drained=True)
    never_at_once(records, list(range(models)))
    for replica in simulation.replicas:
        nobody_is_left(replica.engine.state)
    made = tokens_made(analyse(records).ranges, n)
    np.testing.assert_array_equal(made, trace.output_tokens)


def test_prompts_of_two_models_pass_the_stages_one_behind_the_other() -> None:
    """As if they were one model's, a batch each: three prompts through four stages take six stage times."""
    arrival, three = np.zeros(3), np.full(3, 512)
    trace = labelled(arrival, three, np.ones(3, dtype=np.int64), np.array([0, 1, 0]))
    records = Simulation(trace, together(2, args=PIPELINED, cost=FixedCost(0.01, 0.0))).run()
    np.testing.assert_allclose(np.sort(records.requests.finish), [0.04, 0.05, 0.06])


def test_a_pipeline_shared_with_nobody_who_asks_is_a_pipeline() -> None:
    trace = random_trace(40, 2, 20.0)
    alone = replace(trace, model=Labels(np.zeros(40, dtype=np.int32), ("a", "b")))
    shared = Simulation(alone, together(2, args=PIPELINED, blocks=2000)).run()
    plain = Simulation(alone, together(1, args=PIPELINED, blocks=2000)).run()
    np.testing.assert_array_equal(shared.requests.finish, plain.requests.finish)


def test_other_stages_are_not_the_same_gpus() -> None:
    groups = (
        Group(PIPELINED, LINEAR, 400, name="a", model="a"),
        Group(ARGS, LINEAR, 400, name="b", model="b", shares="a"),
    )
    with pytest.raises(ScenarioError, match="1 pipeline stages cannot be the 4"):
        Simulation(random_trace(4, 2, 1.0), ClusterPlan(groups))
