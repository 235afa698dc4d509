"""The engine knows the longest context and the sum of squares of its batch at any step, without looking at each request."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from simulator.cluster import simulate
from simulator.cost.interface import Line
from simulator.replica.records import SimulationRecords
from simulator.scheduling import EngineArgs
from traces.trace import Trace


class UnevenCost:
    """A decode step takes its longest context and its sum of squares, so that any error shows in the clock; both are
    held for ``valid_steps``, as prices may."""

    sliding_window: int | None = None
    uneven = True

    def __init__(self, valid_steps: int) -> None:
        self.valid_steps = valid_steps

    def decode(  # noqa: PLR0917
        self, num_decodes: int, context: int, windowed: int, growing: int, longest: int = 0, squares: int = 0
    ) -> Line:
        assert longest <= context <= num_decodes * longest
        assert longest * longest <= squares <= longest * context
        assert num_decodes * squares >= context * context
        return Line(longest / 256 + squares / 65536, 0.0, self.valid_steps)

    def mixed(  # noqa: PLR0917
        self, num_decodes: int, context: int, windowed: int, chunks: Sequence[tuple[int, int]], num_sampled: int,
        longest: int = 0, squares: int = 0,
    ) -> float:  # fmt: skip
        assert num_decodes or longest == squares == 0
        return longest / 256 + squares / 65536 + sum(new for new, _ in chunks) / 1024


def by_hand(prompts: list[int], outputs: list[int]) -> list[float]:
    """Everybody is prefilled in the first step, then decodes until its output is done."""
    clock = sum(prompts) / 1024
    length = dict(enumerate(prompts))
    left = {i: n - 1 for i, n in enumerate(outputs)}
    finish = {i: clock for i, n in left.items() if n == 0}
    while running := [i for i in left if left[i] > 0]:
        lengths = [length[i] + 1 for i in running]
        clock += max(lengths) / 256 + sum(n * n for n in lengths) / 65536
        for i in running:
            length[i] += 1
            left[i] -= 1
            if not left[i]:
                finish[i] = clock
    return [finish[i] for i in range(len(prompts))]


requests = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 60)), min_size=1, max_size=12)


@settings(max_examples=150, deadline=None)
@given(requests=requests)
def test_a_step_knows_its_longest_context_and_its_squares(requests: list[tuple[int, int]]) -> None:
    prompts, outputs = [p for p, _ in requests], [o for _, o in requests]
    trace = Trace(np.zeros(len(prompts)), np.array(prompts), np.array(outputs))
    args = EngineArgs(block_size=4, enable_prefix_caching=False, async_scheduling=False)
    records = simulate(trace, args, UnevenCost(1), num_gpu_blocks=2000)
    assert records.requests.finish == pytest.approx(by_hand(prompts, outputs), rel=1e-12)


@settings(max_examples=150, deadline=None)
@given(
    requests=requests,
    blocks=st.integers(30, 120),
    budget=st.integers(8, 64),
    valid_steps=st.integers(1, 9),
    stages=st.sampled_from([1, 1, 2]),
    async_scheduling=st.booleans(),
)
def test_spans_are_steps_with_preemptions_too(
    requests: list[tuple[int, int]], blocks: int, budget: int, valid_steps: int, stages: int, async_scheduling: bool
) -> None:
    """What has left stays in a heap until it comes to the top; who comes back is there twice."""

    def once(step_mode: bool) -> SimulationRecords:
        trace = Trace(
            np.arange(len(requests), dtype=np.float64) * 0.05,
            np.array([p for p, _ in requests]),
            np.array([o for _, o in requests]),
        )
        args = EngineArgs(
            block_size=4,
            max_num_batched_tokens=budget,
            enable_prefix_caching=False,
            pipeline_parallel_size=stages,
            async_scheduling=async_scheduling,
        )
        return simulate(trace, args, UnevenCost(valid_steps), num_gpu_blocks=blocks, step_mode=step_mode)

    spans, steps = once(False).requests, once(True).requests
    assert np.array_equal(spans.finish, steps.finish)
    assert np.array_equal(spans.first_token, steps.first_token)
    event(f"preempted: {bool(spans.preemptions.sum())}")


def test_a_thousand_short_requests_beside_a_long_one_leave_nothing_behind() -> None:
    """The long one stays on top of the heap, where nothing else is ever taken off."""
    n = 1000
    trace = Trace(np.linspace(0.0, 1.0, n), np.array([30_000] + [20] * (n - 1)), np.array([8_000] + [3] * (n - 1)))
    cost = Watched(1)
    simulate(trace, EngineArgs(max_num_seqs=8, enable_prefix_caching=False), cost, num_gpu_blocks=3000)
    assert cost.longest > 30_000


class Watched(UnevenCost):
    longest = 0

    def decode(  # noqa: PLR0917
        self, num_decodes: int, context: int, windowed: int, growing: int, longest: int = 0, squares: int = 0
    ) -> Line:
        self.longest = max(self.longest, longest)
        super().decode(num_decodes, context, windowed, growing, longest, squares)
        return Line(1e-3, 0.0, 1 << 40)
