"""Layers with a sliding window read each context up to the window: the engine keeps that sum exactly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.cluster import simulate
from simulator.cluster.plan import single
from simulator.cluster.simulation import Simulation
from simulator.cost.interface import Line
from simulator.replica.records import SimulationRecords
from simulator.scheduling import EngineArgs
from tests.scheduling.invariants import nobody_is_left
from traces.trace import Trace


class WindowCost:
    """A second per token of KV read inside the window (and 1/1024 per token of prompt): any error shows in the clock."""

    def __init__(self, window: int) -> None:
        self.sliding_window: int | None = window

    def decode(self, num_decodes: int, context: int, windowed: int, growing: int) -> Line:
        return Line(float(windowed), float(growing), 1 << 40)

    def mixed(
        self, num_decodes: int, context: int, windowed: int, chunks: Sequence[tuple[int, int]], num_sampled: int
    ) -> float:
        return windowed + sum(new for new, _ in chunks) / 1024


def run(prompts: list[int], outputs: list[int], window: int, **options: object) -> SimulationRecords:
    trace = Trace(
        arrival=np.zeros(len(prompts)), prompt_tokens=np.array(prompts), output_tokens=np.array(outputs), source="test"
    )
    step_mode = bool(options.pop("step_mode", False))
    args = EngineArgs(block_size=4, enable_prefix_caching=False, **options)  # type: ignore[arg-type]
    return simulate(trace, args, WindowCost(window), num_gpu_blocks=2000, step_mode=step_mode)


def by_hand(prompts: list[int], outputs: list[int], window: int) -> list[float]:
    """Everybody is prefilled in the first step, then decodes until its output is done."""
    clock = sum(prompts) / 1024
    length = dict(enumerate(prompts))
    left = {i: n - 1 for i, n in enumerate(outputs)}
    finish = {i: clock for i, n in left.items() if n == 0}
    while running := [i for i in left if left[i] > 0]:
        clock += sum(min(length[i] + 1, window) for i in running)
        for i in running:
            length[i] += 1
            left[i] -= 1
            if not left[i]:
                finish[i] = clock
    return [finish[i] for i in range(len(prompts))]


requests = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 60)), min_size=1, max_size=8)


@settings(max_examples=150, deadline=None)
@given(requests=requests, window=st.integers(1, 50))
def test_a_step_reads_each_context_up_to_the_window(requests: list[tuple[int, int]], window: int) -> None:
    prompts, outputs = [p for p, _ in requests], [o for _, o in requests]
    records = run(prompts, outputs, window, async_scheduling=False)
    assert records.requests.finish == pytest.approx(by_hand(prompts, outputs, window), rel=1e-12)


def test_a_request_that_comes_back_at_once_crosses_the_window_once() -> None:
    """It gives way in the step in which the other one ends and computes itself anew in the next: as far into its
    decoding as it would have been, had it stayed."""
    trace = Trace(np.zeros(2), np.array([1, 2]), np.array([8, 14]))
    args = EngineArgs(block_size=4, enable_prefix_caching=False, async_scheduling=False)
    built = Simulation(trace, single(args, WindowCost(16), 5))
    requests = built.run().requests
    assert requests.preemptions.tolist() == [0, 1]
    assert requests.finish[1] > requests.finish[0]
    nobody_is_left(built.replicas[0].engine.state)


@settings(max_examples=100, deadline=None)
@given(
    requests=requests,
    window=st.integers(1, 50),
    blocks=st.integers(30, 200),
    budget=st.integers(8, 64),
    async_scheduling=st.booleans(),
)
def test_spans_end_where_a_context_reaches_the_window(
    requests: list[tuple[int, int]], window: int, blocks: int, budget: int, async_scheduling: bool
) -> None:
    def once(step_mode: bool) -> SimulationRecords:
        trace = Trace(
            arrival=np.arange(len(requests)) * 50.0,
            prompt_tokens=np.array([p for p, _ in requests]),
            output_tokens=np.array([o for _, o in requests]),
            source="test",
        )
        args = EngineArgs(
            block_size=4,
            max_num_batched_tokens=budget,
            enable_prefix_caching=False,
            async_scheduling=async_scheduling,
        )
        return simulate(trace, args, WindowCost(window), num_gpu_blocks=blocks, step_mode=step_mode)

    spans, steps = once(False).requests, once(True).requests
    assert np.array_equal(spans.finish, steps.finish)
    assert np.array_equal(spans.first_token, steps.first_token)
    assert np.array_equal(spans.preemptions, steps.preemptions)
