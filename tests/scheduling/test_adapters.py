"""LoRA adapters in an engine: spans are steps, memory adds up, and who may join follows slots or pages."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simulator.cluster.plan import ClusterPlan, Group
from simulator.cluster.simulation import Simulation
from simulator.core.errors import ScenarioError
from simulator.cost.analytic import FixedCost, LinearCost
from simulator.cost.interface import StepCost
from simulator.replica.records import SimulationRecords
from simulator.scheduling import EngineArgs
from simulator.scheduling.adapters import AdapterState, LoraPlan, MergePlan
from tests.scheduling.invariants import clock_never_runs_back, every_token_is_made_once, nobody_is_left
from tests.scheduling.test_span_is_step import costs, same_requests, same_steps, traces
from traces.trace import Labels, Trace


def seconds(tokens: int, ranks: int) -> float:
    return 1e-4 + 1e-6 * tokens + 1e-5 * ranks


SLOTS = LoraPlan((8,), 2, 1e-3, 0.0, seconds)
MERGED = replace(SLOTS, max_loras=4, merge=MergePlan(0.5, 2, 0.02))
PAGES = LoraPlan((8, 16), None, 1e-3, 0.2, seconds)


def cluster(args: EngineArgs, cost: StepCost, blocks: int, lora: LoraPlan) -> ClusterPlan:
    return ClusterPlan((Group(args, cost, blocks, lora=lora),))


def with_adapters(trace: Trace, codes: list[int]) -> Trace:
    return replace(trace, adapter=Labels(np.array(codes, dtype=np.int32), ("a", "b", "c", "d", "e")))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    data=st.data(),
    lora=st.sampled_from(
        [
            SLOTS,
            PAGES,
            replace(SLOTS, max_loras=1),
            replace(PAGES, max_loras=2, load_s=0.004),
            MERGED,
            replace(MERGED, merge=MergePlan(0.8, 0, 0.0)),
            replace(MERGED, merge=MergePlan(0.5, 1, 0.004, pauses=True)),
            replace(MERGED, max_loras=2, merge=MergePlan(0.3, 8, 0.0, pauses=True)),
        ]
    ),
    caching=st.booleans(),
    block_size=st.sampled_from([1, 4, 16]),
    tokens=st.integers(190, 330),
    budget=st.sampled_from([16, 64, 512]),
    max_num_seqs=st.integers(1, 8),
    asynchronous=st.booleans(),
    users=st.sampled_from([None, None, 3]),
)
def test_spans_are_steps_and_nothing_is_lost(
    data: st.DataObject, lora: LoraPlan, caching: bool, block_size: int, tokens: int, budget: int, max_num_seqs: int,
    asynchronous: bool, users: int | None,
) -> None:  # fmt: skip
    plain = data.draw(traces(block_size))
    codes = data.draw(st.lists(st.integers(-1, 4), min_size=len(plain), max_size=len(plain)))
    trace = with_adapters(plain, codes)
    args = EngineArgs(
        max_num_seqs=max_num_seqs, max_num_batched_tokens=budget, max_model_len=110, block_size=block_size,
        enable_prefix_caching=caching, async_scheduling=asynchronous,
    )  # fmt: skip
    plan = cluster(args, data.draw(costs()), -(-tokens // block_size) + 1 + 4, lora)
    runs = [Simulation(trace, plan, step_mode=mode, closed_loop_users=users) for mode in (False, True)]
    spans, steps = (run.run() for run in runs)
    same_requests(spans, steps)
    same_steps(spans.steps, steps.steps)
    for run in runs:
        state = run.replicas[0].engine.state
        assert isinstance(state, AdapterState)
        adapters = state.adapters
        assert not adapters.users
        assert adapters.batch.tokens == adapters.batch.decode_s() == 0
        if lora.paged:
            assert not adapters.loaded
        nobody_is_left(state)
        clock_never_runs_back(spans)
        every_token_is_made_once(spans)


def served(codes: list[int], lora: LoraPlan, *, output: int = 11, blocks: int = 100) -> SimulationRecords:
    n = len(codes)
    trace = with_adapters(Trace(np.zeros(n), np.full(n, 10), np.full(n, output)), codes)
    args = EngineArgs(max_num_seqs=8, max_num_batched_tokens=512, async_scheduling=False, enable_prefix_caching=False)
    return Simulation(trace, cluster(args, FixedCost(0.01, 0.0), blocks, lora)).run()


FREE = replace(SLOTS, load_s=0.0, seconds=lambda tokens, ranks: 0.0 * tokens * ranks)


def test_with_one_slot_requests_pass_those_with_another_adapter() -> None:
    records = served([0, 1, 0, 1, -1], replace(FREE, max_loras=1))
    np.testing.assert_allclose(records.requests.scheduled, [0, 0.11, 0, 0.11, 0])


def test_two_slots_take_two_adapters_and_the_model_itself() -> None:
    records = served([0, 1, 2, 0, -1], FREE)
    np.testing.assert_allclose(records.requests.scheduled, [0, 0, 0.11, 0, 0])


def test_a_step_waits_for_the_adapters_it_misses_and_computes_with_each_once() -> None:
    """Two adapters of rank 8 are copied before the first step; of ten steps after it, each reads both."""
    records = served([0, 1, 0], SLOTS)
    first = 0.01 + 2 * 8e-3 + seconds(30, 16)
    assert records.requests.first_token[0] == pytest.approx(first)
    assert records.requests.finish[0] == pytest.approx(first + 10 * (0.01 + seconds(3, 16)))


def test_paged_adapters_are_fetched_while_others_compute() -> None:
    """The first adapter is waited for; the second one comes over the same link while the first request computes."""
    lora = replace(PAGES, ranks=(8,), seconds=FREE.seconds)
    records = served([0, 1], lora)
    np.testing.assert_allclose(records.requests.scheduled, [0.008, 0.018])
    assert len(records.steps.start[records.steps.num_decodes + records.steps.num_prefills == 0]) == 1


def test_pages_of_adapters_are_not_there_for_kv() -> None:
    """Adapters of 2 blocks each, prompts of one: 10 blocks hold 8 requests of one adapter, 3 with their own."""
    lora = replace(PAGES, ranks=(8,), blocks=0.25, load_s=0.0, seconds=FREE.seconds)
    for codes, together in (([0] * 8, 8), (list(range(4)), 3)):
        records = served(codes, lora, blocks=11)
        assert records.steps.num_running.max() == together


def test_what_adapters_do_not_go_with_is_refused() -> None:
    trace = with_adapters(Trace(np.zeros(1), np.ones(1, dtype=int), np.ones(1, dtype=int)), [0])
    for args in (EngineArgs(policy="sarathi"), EngineArgs(scheduling_policy="priority")):
        with pytest.raises(ScenarioError, match="engine policy vllm"):
            Simulation(trace, cluster(args, LinearCost(0.01, 1e-4, 1e-5, 1e-6), 100, SLOTS))


def test_an_adapter_that_most_ask_for_is_merged_and_costs_nothing() -> None:
    """Merged before the first step: 20 ms once, then steps of the model alone."""
    records = served([0, 0, 0], replace(MERGED, load_s=0.0))
    assert records.requests.finish[0] == pytest.approx(0.02 + 11 * 0.01)


def test_others_wait_until_those_who_passed_them_spent_their_credit() -> None:
    """Eight at a time with adapter 0; the ninth passes adapter 1 and so do two more. Then 1 and 2 come first."""
    lora = replace(FREE, max_loras=4, merge=MergePlan(0.5, 2, 0.0))
    trace = with_adapters(
        Trace(np.linspace(0.0, 0.023, 24), np.full(24, 10), np.arange(24) % 5 + 7), [0] * 8 + [1, 0, 0, 0, 2] + [0] * 11
    )
    args = EngineArgs(max_num_seqs=8, max_num_batched_tokens=512, async_scheduling=False, enable_prefix_caching=False)
    records = Simulation(trace, cluster(args, FixedCost(0.01, 0.0), 100, lora)).run()
    order = np.argsort(records.requests.scheduled, kind="stable").tolist()
    assert order[8:12] == [9, 10, 11, 13]  # the third and the fourth in one step
    assert order[12:14] == [8, 12]


def test_others_pause_while_an_adapter_is_merged() -> None:
    """Adapter 1 is at its tenth token of 100 when three requests for adapter 0 come. Their prompts run beside it; once
    they are computed it pauses for their ten other tokens and goes on with the KV it has, or all run together."""
    trace = with_adapters(
        Trace(np.array([0.0, 0.095, 0.095, 0.095]), np.full(4, 10), np.array([100, 11, 11, 11])), [1, 0, 0, 0]
    )
    args = EngineArgs(max_num_seqs=8, max_num_batched_tokens=512, async_scheduling=False, enable_prefix_caching=False)
    ends, pauses = (
        Simulation(
            trace, cluster(args, FixedCost(0.01, 0.0), 100, replace(FREE, max_loras=4, merge=MergePlan(0.6, 8, 0.0, p)))
        ).run()
        for p in (False, True)
    )
    np.testing.assert_allclose(pauses.requests.finish[1:], ends.requests.finish[1:])
    assert pauses.requests.finish[0] == pytest.approx(ends.requests.finish[0] + 10 * 0.01)
    assert pauses.tokens_recomputed == pauses.requests.preemptions.sum() == 0
    assert pauses.steps.num_decodes.max() == 3 < ends.steps.num_decodes.max()


def test_requests_that_differ_are_never_merged() -> None:
    same_requests(
        served([0, 1, 2, 0, 1, 2], replace(MERGED, load_s=0.0)),
        served([0, 1, 2, 0, 1, 2], replace(MERGED, load_s=0.0, merge=None)),
    )


@pytest.mark.parametrize("pauses", [False, True])
def test_an_adapter_left_alone_is_merged_in_spans_as_in_steps_on_replicas_that_nobody_watches(pauses: bool) -> None:
    """Four in five must ask for it: it is merged once the other one has ended, which no other event marks."""
    trace = with_adapters(Trace(np.zeros(4), np.full(4, 10), np.array([40, 40, 5, 5])), [0, 0, 1, 1])
    args = EngineArgs(max_num_seqs=8, max_num_batched_tokens=512, enable_prefix_caching=False, async_scheduling=True)
    lora = replace(SLOTS, merge=MergePlan(0.8, 2, 0.004, pauses=pauses))
    plan = ClusterPlan((Group(args, LinearCost(0.01, 1e-4, 1e-5, 1e-6), 100, count=2, lora=lora),))
    spans, steps = (Simulation(trace, plan, step_mode=mode).run() for mode in (False, True))
    same_requests(spans, steps)
