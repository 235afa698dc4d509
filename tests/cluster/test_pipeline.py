"""Pipeline parallelism: as many batches in flight as stages."""

from __future__ import annotations

import numpy as np
import pytest

from simulator.cluster import simulate
from simulator.cost.analytic import FixedCost, LinearCost
from simulator.metrics import analyse
from simulator.metrics.token_times import gaps_by_request, span_seconds, tokens_made
from simulator.replica.engine import Observer
from simulator.replica.records import SimulationRecords, Status
from simulator.scheduling import EngineArgs, EngineState, Step
from traces.trace import Trace

STAGE_S = 0.01


def serve(
    trace: Trace,
    stages: int,
    cost: FixedCost | LinearCost | None = None,
    *,
    max_num_seqs: int = 64,
    budget: int = 4096,
    observer: Observer | None = None,
) -> SimulationRecords:
    args = EngineArgs(
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=budget,
        enable_prefix_caching=False,
        async_scheduling=False,
        pipeline_parallel_size=stages,
    )
    return simulate(trace, args, cost or FixedCost(STAGE_S, 0.0), 100_000, observer=observer)


def lone(output: int, prompt: int = 10) -> Trace:
    return Trace(np.zeros(1), np.array([prompt]), np.array([output]))


@pytest.mark.parametrize("stages", [2, 3, 5])
def test_a_lone_request_waits_for_every_stage_for_each_token(stages: int) -> None:
    """A pipeline does nothing for latency: a token passes all stages before the next one starts."""
    requests = serve(lone(20), stages).requests
    assert requests.first_token[0] == pytest.approx(stages * STAGE_S)
    assert requests.finish[0] == pytest.approx(20 * stages * STAGE_S)


@pytest.mark.parametrize("stages", [2, 3, 5])
def test_a_lone_request_takes_as_long_as_on_one_gpu_with_all_the_layers(stages: int) -> None:
    """Stages that cost a share each add up to the whole."""
    split = serve(lone(30, 500), stages, LinearCost(0.02 / stages, 6e-5 / stages, 3e-4 / stages, 6e-7 / stages))
    whole = serve(lone(30, 500), 1, LinearCost(0.02, 6e-5, 3e-4, 6e-7))
    assert split.requests.finish[0] == pytest.approx(whole.requests.finish[0], rel=1e-9)
    assert split.requests.first_token[0] == pytest.approx(whole.requests.first_token[0], rel=1e-9)


@pytest.mark.parametrize("stages", [2, 4])
def test_a_full_pipeline_gives_a_batch_per_stage_time(stages: int) -> None:
    """The token budget deals the prompts out, a group of 16 per batch: each request makes a token every ``stages`` stage
    times, a batch leaves every stage time, and the last stage never pauses once it is reached."""
    groups, output = 16, 200
    n = groups * stages
    trace = Trace(np.zeros(n), np.full(n, 8), np.full(n, output))
    records = serve(trace, stages, budget=groups * 8)
    steps = records.steps
    busy = float(span_seconds(steps).sum())
    assert busy / (records.end - steps.start[0]) > 0.98
    gaps = gaps_by_request(analyse(records).ranges, analyse(records).clock, n)
    np.testing.assert_allclose(np.median(np.concatenate(gaps)), stages * STAGE_S, rtol=1e-9)
    assert records.end == pytest.approx((output * stages + stages - 1) * STAGE_S, rel=1e-9)


def test_throughput_grows_with_stages_when_there_is_work_for_all() -> None:
    """The same model on 1, 2 and 4 GPUs, each stage with its share of the layers. Bubbles between batches of unequal
    size keep it below the ideal."""
    rng = np.random.default_rng(0)
    trace = Trace(np.zeros(400), rng.integers(50, 400, 400), rng.integers(20, 60, 400))
    ends = {
        stages: serve(trace, stages, LinearCost(0.0, 1e-4 / stages, 1e-3 / stages, 0.0), budget=512).end
        for stages in (1, 2, 4)
    }
    assert 1.5 < ends[1] / ends[2] <= 2
    assert 2.2 < ends[1] / ends[4] <= 4


class Batches:
    """Remembers every planned batch: when, and the prompt tokens of each request."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, dict[int, tuple[int, int]]]] = []

    def settled(self, now: float, state: EngineState) -> None: ...

    def planned(self, now: float, begin: float, step: Step, state: EngineState) -> None:
        chunks = {request.row: chunk for request, chunk in zip(step.requests, step.chunks, strict=True)}
        self.seen.append((now, chunks))


def test_chunks_of_a_long_prompt_follow_each_other_through_the_stages() -> None:
    """The next chunk does not wait for the one before to leave the pipeline: 1,000 tokens in chunks of 100 through
    4 stages take 10 + 3 stage times, not 40."""
    watch = Batches()
    requests = serve(lone(1, 1000), 4, budget=100, observer=watch).requests
    assert requests.first_token[0] == pytest.approx((10 + 3) * STAGE_S)
    assert [chunks[0] for _, chunks in watch.seen] == [(100, 100 * k) for k in range(10)]


def test_uneven_batches_wait_for_each_other_stage_by_stage() -> None:
    """By hand: a second per token, two stages, budget 4. A (4 tokens) is in stage 1 from 0 to 4, in stage 2 from 4 to 8.
    B (2 tokens) follows: in stage 1 from 4 to 6, in stage 2 when A has left it, from 8 to 10."""
    trace = Trace(np.zeros(2), np.array([4, 2]), np.array([1, 1]))
    records = serve(trace, 2, FixedCost(0.0, 1.0), budget=4)
    assert records.requests.finish.tolist() == pytest.approx([8, 10])
    assert records.steps.start.tolist() == pytest.approx([4, 8])


def test_an_arrival_is_seen_when_a_batch_comes_out() -> None:
    """vLLM's loop has nothing more to schedule after A and waits for its result: B, there since 1 s, enters at 8 s."""
    trace = Trace(np.array([0.0, 1.0]), np.array([4, 2]), np.array([1, 1]))
    requests = serve(trace, 2, FixedCost(0.0, 1.0)).requests
    assert requests.scheduled.tolist() == pytest.approx([0, 8])
    assert requests.finish.tolist() == pytest.approx([8, 12])


@pytest.mark.parametrize("stages", [2, 3])
@pytest.mark.parametrize("blocks", [120, 4000])
def test_tokens_are_conserved_and_rows_of_the_last_stage_never_overlap(stages: int, blocks: int) -> None:
    rng = np.random.default_rng(stages)
    n = 250
    trace = Trace(np.cumsum(rng.exponential(0.02, n)), rng.integers(1, 900, n), rng.integers(1, 100, n))
    args = EngineArgs(
        max_num_seqs=48, max_num_batched_tokens=256, enable_prefix_caching=False, pipeline_parallel_size=stages
    )
    records = simulate(trace, args, LinearCost(0.004, 2e-5, 1e-4, 1e-8), blocks)
    requests, steps = records.requests, records.steps
    assert (requests.preemptions.sum() > 0) == (blocks == 120)
    assert (requests.status == Status.FINISHED).all()
    np.testing.assert_array_equal(tokens_made(analyse(records).ranges, n), requests.output_tokens)
    ends = steps.start + span_seconds(steps)
    assert (steps.start[1:] >= ends[:-1] - 1e-9).all()
    assert np.isin(np.round(requests.finish, 9), np.round(ends, 9)).all()  # tokens come when a batch leaves


def microbatches(count: int, each: int, stages: int, output: int, cost: FixedCost | LinearCost) -> SimulationRecords:
    """So many microbatches of equal requests, all there from the start, through policy static."""
    n = count * each
    trace = Trace(np.zeros(n), np.full(n, 100), np.full(n, output))
    args = EngineArgs(policy="static", max_model_len=400, max_num_seqs=each * stages, pipeline_parallel_size=stages)
    return simulate(trace, args, cost, 100_000)


@pytest.mark.parametrize("stages", [2, 4])
def test_static_microbatches_fill_a_pipeline_when_prompts_take_as_long_as_tokens(stages: int) -> None:
    records = microbatches(stages, 3, stages, 20, FixedCost(STAGE_S, 0.0))
    assert records.end == pytest.approx((20 * stages + stages - 1) * STAGE_S)
    assert records.steps.num_decodes.max() == 3
    assert (records.steps.num_prefills.max(), records.steps.num_prefills.sum()) == (3, 3 * stages)


@pytest.mark.parametrize("stages", [2, 4])
def test_long_prompts_leave_bubbles_in_a_static_pipeline(stages: int) -> None:
    """A stage would be busy for as long as all batches take on it; tokens that wait behind prompts make it longer."""
    rng = np.random.default_rng(0)
    count, each, prompt_s, token_s = 10 * stages, 3, 0.05, 0.01
    output = np.repeat(rng.integers(10, 40, count), each)
    trace = Trace(np.zeros(count * each), np.full(count * each, 100), output)
    args = EngineArgs(policy="static", max_model_len=400, max_num_seqs=each * stages, pipeline_parallel_size=stages)
    records = simulate(trace, args, LinearCost(token_s, (prompt_s - token_s) / 300, 0.0, 0.0), 100_000)
    busy = float(span_seconds(records.steps).sum())
    assert busy == pytest.approx(count * prompt_s + float((output[::each] - 1).sum()) * token_s)
    assert records.end > 1.15 * busy
    even = simulate(trace, args, FixedCost(token_s, 0.0), 100_000)
    assert even.end < 1.15 * float(span_seconds(even.steps).sum())


def test_static_microbatches_end_with_all_their_tokens() -> None:
    rng = np.random.default_rng(2)
    trace = Trace(np.cumsum(rng.exponential(0.05, 60)), rng.integers(10, 200, 60), rng.integers(1, 60, 60))
    args = EngineArgs(policy="static", max_model_len=400, max_num_seqs=9, pipeline_parallel_size=3)
    records = simulate(trace, args, LinearCost(0.005, 2e-5, 1e-4, 1e-8), 200)
    assert (records.requests.status == Status.FINISHED).all()
    np.testing.assert_array_equal(tokens_made(analyse(records).ranges, 60), trace.output_tokens)
    assert records.steps.num_decodes.max() <= 3


def test_microbatches_keep_every_stage_busy_where_vllm_gathers_decodes_in_one_batch() -> None:
    """Eight requests come one by one while others run: as one batch, each token takes four stages' time."""
    trace = Trace(np.arange(8) * 0.2, np.full(8, 10), np.full(8, 400))
    ends = {}
    for policy in ("vllm", "microbatches"):
        args = EngineArgs(policy=policy, max_num_seqs=8, enable_prefix_caching=False, pipeline_parallel_size=4)
        records = simulate(trace, args, FixedCost(STAGE_S, 0.0), 100_000)
        ends[policy] = int(records.steps.num_decodes.max())
        np.testing.assert_array_equal(tokens_made(analyse(records).ranges, 8), trace.output_tokens)
    assert ends == {"vllm": 8, "microbatches": 2}
