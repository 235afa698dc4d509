"""Metrics on the real engine's records: the same sums from requests and from steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from simulator.cluster import simulate
from simulator.cost.interface import Line
from simulator.metrics import analyse, littles_law, summarize
from simulator.metrics.token_times import pooled_gaps, tokens_made
from simulator.replica.records import SimulationRecords, Status
from simulator.scheduling.args import EngineArgs
from traces.trace import Trace


class _Price:
    """A step costs 10 ms, more with context and prompt tokens."""

    sliding_window = None

    def decode(self, num_decodes: int, context: int, windowed: int, growing: int) -> Line:
        return Line(0.01 + 1e-7 * context, 1e-7 * num_decodes, 1 << 30)

    def mixed(
        self, num_decodes: int, context: int, windowed: int, chunks: Sequence[tuple[int, int]], num_sampled: int
    ) -> float:
        return 0.01 + 1e-7 * context + 3e-5 * sum(new for new, _ in chunks)


def serve(num_gpu_blocks: int, *, async_scheduling: bool, step_mode: bool = False) -> SimulationRecords:
    rng = np.random.default_rng(0)
    n = 400
    trace = Trace(np.cumsum(rng.exponential(0.06, n)), rng.integers(1, 800, n), rng.integers(1, 150, n))
    args = EngineArgs(
        max_num_seqs=64, max_num_batched_tokens=1024, enable_prefix_caching=False, async_scheduling=async_scheduling
    )
    return simulate(trace, args, _Price(), num_gpu_blocks, step_mode=step_mode)


@pytest.mark.parametrize("async_scheduling", [False, True])
@pytest.mark.parametrize("num_gpu_blocks", [300, 4000])
def test_every_token_is_found_again_preempted_or_not(num_gpu_blocks: int, async_scheduling: bool) -> None:
    records = serve(num_gpu_blocks, async_scheduling=async_scheduling)
    requests = records.requests
    assert (requests.preemptions.sum() > 0) == (num_gpu_blocks == 300)
    assert (requests.status == Status.FINISHED).all()
    found = analyse(records)
    np.testing.assert_array_equal(tokens_made(found.ranges, len(requests.arrival)), requests.output_tokens)
    assert (
        pooled_gaps(found.ranges, found.clock, np.ones(400, dtype=bool))[1].sum() == (requests.output_tokens - 1).sum()
    )
    last = np.zeros(400)
    np.maximum.at(last, found.ranges.request, found.ranges.end_time)
    np.testing.assert_allclose(last, requests.finish, rtol=0, atol=1e-9)


def test_littles_law_is_exact_for_the_synchronous_engine() -> None:
    assert littles_law(serve(4000, async_scheduling=False)).relative_gap < 1e-12
    assert littles_law(serve(4000, async_scheduling=True)).relative_gap < 0.03  # it knows of a finish a step late


def test_spans_and_single_steps_give_one_summary() -> None:
    spans = summarize(serve(300, async_scheduling=True))
    steps = summarize(serve(300, async_scheduling=True, step_mode=True))
    for name, stats in spans["latency"].items():
        assert stats == pytest.approx(steps["latency"][name], rel=1e-9, abs=1e-12), name
