"""Requests whose KV is bounded, or that hold blocks beside: spans are steps, and every block comes back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from simulator.cluster.plan import single
from simulator.cluster.simulation import Simulation
from simulator.cost.analytic import FixedCost
from simulator.replica.records import Status
from simulator.scheduling import EngineArgs
from simulator.scheduling.holding import Holding
from tests.scheduling.invariants import check
from tests.scheduling.test_span_is_step import WindowCost, same_requests, same_steps, traces
from traces.trace import Trace

HOLDERS: list[tuple[str, dict[str, object]]] = [
    ("vllm", {}),
    ("sjf", {"predictor": "log-normal"}),
    ("edf", {"deadlines_s": "0.1, 1"}),
    ("vtc", {}),
    ("drr", {"quantum": 20.0}),
    ("static", {}),
    ("orca", {"reservation": "max"}),
    ("orca", {"reservation": "oracle"}),
]


@pytest.mark.parametrize(("policy", "options"), HOLDERS, ids=lambda value: str(value))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_spans_are_steps(policy: str, options: dict[str, object], data: st.DataObject) -> None:
    block_size = data.draw(st.sampled_from([1, 4, 16]))
    most = data.draw(st.one_of(st.none(), st.integers(2, 90)))
    holding = Holding(most, data.draw(st.integers(0, 3)))
    args = EngineArgs(
        policy=policy,
        options=options,
        block_size=block_size,
        max_num_seqs=data.draw(st.integers(1, 8)),
        max_num_batched_tokens=data.draw(st.sampled_from([16, 64, 512])),
        max_model_len=110,
        enable_prefix_caching=False if policy not in {"static", "orca"} else None,
        async_scheduling=data.draw(st.sampled_from([None, False, True])),
    )
    blocks = -(-data.draw(st.integers(110, 250)) // block_size) + holding.extra_blocks
    trace = data.draw(traces(block_size))
    cost = FixedCost(0.01, 0.001) if most is None else WindowCost(most)
    plan = single(args, cost, blocks + 1)
    plan = replace(plan, groups=(replace(plan.groups[0], holding=holding),))
    runs = [Simulation(trace, plan, step_mode=step_mode) for step_mode in (False, True)]
    spans, steps = (run.run() for run in runs)
    same_requests(spans, steps)
    same_steps(spans.steps, steps.steps)
    for records, run in zip((spans, steps), runs, strict=True):
        check(records, trace, run.replicas[0].engine.state)
    event(f"preempted: {bool(spans.requests.preemptions.any())}")


def _run(holding: Holding | None, cost: WindowCost | FixedCost, blocks: int) -> tuple[int, int]:
    """(most requests at once, preemptions) of eight equal requests of 40 and 61 tokens, blocks of 4."""
    trace = Trace(np.zeros(8), np.full(8, 40), np.full(8, 61))
    args = EngineArgs(max_num_seqs=8, block_size=4, max_model_len=128, enable_prefix_caching=False)
    plan = single(args, cost, blocks + 1)
    plan = replace(plan, groups=(replace(plan.groups[0], holding=holding),))
    records = Simulation(trace, plan).run()
    assert (records.requests.status == Status.FINISHED).all()
    return int(records.steps.num_running.max()), int(records.requests.preemptions.sum())


def test_a_window_bounds_what_a_request_holds() -> None:
    """100 tokens take 25 blocks; 20 of them, 5: 40 blocks hold all eight at once, and nobody gives way."""
    assert _run(Holding(most_tokens=20), WindowCost(20), 40) == (8, 0)
    most, preempted = _run(None, FixedCost(0.01, 0.0), 40)
    assert most < 8
    assert preempted


def test_blocks_beside_leave_room_for_fewer() -> None:
    """10 blocks of prompt: eight fit into 100 at once, and only two with 25 more each."""
    assert _run(Holding(extra_blocks=25), FixedCost(0.01, 0.0), 100)[0] == 2
    assert _run(Holding(), FixedCost(0.01, 0.0), 100) == _run(None, FixedCost(0.01, 0.0), 100)
    assert _run(Holding(), FixedCost(0.01, 0.0), 100)[0] == 8
