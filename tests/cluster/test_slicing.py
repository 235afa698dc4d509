"""Answers made slice by slice: nothing is lost on the way back to the router, and what a slice costs is counted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.cluster.plan import ClusterPlan, Group, RouterPlan
from simulator.cluster.simulation import Simulation
from simulator.core.errors import PolicyError
from simulator.cost.analytic import FixedCost
from simulator.metrics import analyse
from simulator.metrics.fleet import replica_columns
from simulator.metrics.token_times import tokens_made
from simulator.replica.records import SimulationRecords, Status
from simulator.scheduling import EngineArgs
from tests.cluster.test_disaggregation import computed_is_owed_together
from tests.cluster.test_many_replicas import LINEAR, same, trace
from tests.scheduling.invariants import check_pool, clock_never_runs_back, ends_once, nobody_is_left
from traces.trace import Trace

ARGS = EngineArgs(policy="slices", max_num_seqs=8, max_model_len=640, options={"slice_tokens": 16})


def sliced(count: int, *, args: EngineArgs = ARGS, blocks: int = 400, router: str = "max-min") -> ClusterPlan:
    return ClusterPlan((Group(args, LINEAR, blocks, count=count),), RouterPlan(router))


def checked(built: Simulation, requests: Trace) -> SimulationRecords:
    records = built.run()
    ends_once(records, requests, drained=True)
    clock_never_runs_back(records)
    for replica in built.replicas:
        nobody_is_left(replica.engine.state)
        check_pool(replica.engine.state.pool)
    made = tokens_made(analyse(records).ranges, len(requests))
    finished = records.requests.status == Status.FINISHED
    np.testing.assert_array_equal(made[finished], requests.output_tokens[finished])
    return records


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(1, 4),
    blocks=st.sampled_from([60, 200]),
    tokens=st.sampled_from([1, 2, 16, 500]),
    router=st.sampled_from(["max-min", "round-robin", "least-requests", "least-kv"]),
    stages=st.sampled_from([1, 1, 3]),
    users=st.sampled_from([None, None, 9]),
)
def test_nothing_is_lost_and_spans_are_steps(
    seed: int, count: int, blocks: int, tokens: int, router: str, stages: int, users: int | None
) -> None:
    requests = trace(50, 80.0, seed=seed)
    args = replace(ARGS, options={"slice_tokens": tokens}, pipeline_parallel_size=stages)
    plan = sliced(count, args=args, blocks=blocks, router=router)
    runs = []
    for mode in (False, True):
        built = Simulation(requests, plan, step_mode=mode, closed_loop_users=users)
        runs.append(checked(built, requests))
        computed_is_owed_together(runs[-1], built)
    same(*runs)
    back = np.maximum(-(-runs[0].requests.output_tokens // tokens) - 1, 0)
    np.testing.assert_array_equal(runs[0].requests.preemptions, back)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), until=st.floats(0.05, 3.0))
def test_a_horizon_cuts_spans_and_steps_alike(seed: int, until: float) -> None:
    requests = trace(50, 80.0, seed=seed)
    runs = [Simulation(requests, sliced(2), step_mode=mode, horizon_s=until).run() for mode in (False, True)]
    same(*runs)
    made = [tokens_made(analyse(records).ranges, len(requests)) for records in runs]
    np.testing.assert_array_equal(made[0], made[1])
    assert (made[0] <= requests.output_tokens).all()


def test_a_slice_as_long_as_every_answer_is_static_batching() -> None:
    requests = replace(trace(60, 80.0), output_tokens=np.full(60, 40))
    one, other = (
        Simulation(requests, sliced(2, args=args, router="round-robin")).run()
        for args in (replace(ARGS, options={"slice_tokens": 600}), replace(ARGS, policy="static", options={}))
    )
    same(one, other)


def test_slices_by_hand() -> None:
    """100 tokens of prompt, 5 of answer in slices of 2, a step takes 10 ms and a prompt no longer: five steps, two of
    which compute the context again."""
    requests = Trace(np.zeros(1), np.array([100]), np.array([5]))
    args = replace(ARGS, options={"slice_tokens": 2})
    built = Simulation(requests, ClusterPlan((Group(args, FixedCost(0.01, 0.0), 400),)))
    records = checked(built, requests)
    assert records.requests.finish[0] == pytest.approx(0.05)
    assert records.requests.preemptions[0] == 2
    assert records.tokens_recomputed == 101 + 103
    assert records.steps.prefill_tokens.sum() == 100 + 102 + 104


def test_long_and_short_answers_even_out() -> None:
    """Who gets the long answers is not known when they are sent; slices send them on."""
    rng = np.random.default_rng(1)
    n = 240
    requests = Trace(np.zeros(n), np.full(n, 64), np.where(rng.random(n) < 0.1, 500, 20))
    ends = {}
    for policy, router in (("static", "round-robin"), ("slices", "max-min")):
        options = {"slice_tokens": 32} if policy == "slices" else {}
        args = replace(ARGS, policy=policy, options=options)
        records = Simulation(requests, sliced(4, args=args, router=router)).run()
        busy = replica_columns(records)["busy_s"]
        ends[policy] = records.end, float(busy.std() / busy.mean())
    assert ends["slices"][0] < ends["static"][0] / 1.5
    assert ends["slices"][1] < ends["static"][1] / 2


def test_what_does_not_go_together_is_said() -> None:
    with pytest.raises(PolicyError, match="slice_tokens"):
        Simulation(trace(5), sliced(2, args=replace(ARGS, options={"slice_tokens": 0})))
