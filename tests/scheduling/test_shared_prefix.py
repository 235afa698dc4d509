"""Attention that reads shared prefixes once: who shares, what it saves, where it saves nothing, and spans are steps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simulator.cluster.plan import single
from simulator.cluster.simulation import Simulation
from simulator.core.errors import ModelError
from simulator.cost.placement import Deployment
from simulator.cost.roofline import Roofline
from simulator.cost.shared_prefix import SharedPrefixCost, check_sharing
from simulator.cost.step import OperatorCost
from simulator.hardware.gpu import gpu
from simulator.kv.prefix import BlockTable, PrefixCache
from simulator.model.catalogue import model
from simulator.planning.bounds import highest_rate
from simulator.scenario.load import load
from simulator.scenario.run import run
from simulator.scenario.setup import build
from simulator.scenario.trace import make_trace
from simulator.scheduling import EngineArgs, Request
from simulator.scheduling.shared_prefix import SharingState
from tests.scheduling.invariants import check
from tests.scheduling.test_span_is_step import same_requests, same_steps, traces
from traces.prefix import from_rows
from traces.trace import Trace

A100 = Roofline(gpu("A100-SXM-80GB"))
LLAMA = OperatorCost(model("meta-llama/Llama-2-13b-hf"), A100, Deployment())
SMALL = OperatorCost(model("Qwen/Qwen3-0.6B"), A100, Deployment())
SLOW = OperatorCost(SMALL.model, Roofline(replace(gpu("A100-SXM-80GB"), memory_bandwidth=2e8)), Deployment())
BLOCK = 16


def sharing(*groups: tuple[int, int]) -> SharedPrefixCost:
    return SharedPrefixCost(LLAMA, lambda: groups)


class TestPrice:
    """64 requests over 6,000 shared and 400 own tokens each."""

    def test_the_prefix_is_read_once(self) -> None:
        n, prefix, own = 64, 6000, 400
        plain = LLAMA.decode(n, n * (prefix + own), 0, 0).first
        apart = LLAMA.decode(n, n * own, 0, 0).first
        once = sharing((n, prefix)).decode(n, n * (prefix + own), 0, 0).first
        ((shape, layers),) = LLAMA.attention_shapes
        floor = layers * max(
            prefix * shape.bytes_per_context / A100.gpu.memory_bandwidth,
            n * prefix * shape.flops_per_context / A100.gpu.peak("bf16")[1],
        )
        assert plain > 4 * once
        assert once >= apart + floor  # the own tokens, and the prefix as fast as the GPU can at best
        assert once <= apart + 3 * floor + layers * 20e-6

    def test_flops_are_not_saved(self) -> None:
        """Where so many share that the kernel is bound by compute, twice the requests take twice the time."""
        few, many = (sharing((n, 8192))._prefix_s(n, 8192) for n in (2048, 4096))
        assert many == pytest.approx(2 * few, rel=0.15)
        alone, two = (sharing((n, 8192))._prefix_s(n, 8192) for n in (1, 8))
        assert two < 1.2 * alone  # bound by bytes: seven more requests are nearly free

    @pytest.mark.parametrize("group", [(2, 16), (1, 6000)])
    def test_short_prefixes_and_single_requests_gain_nothing(self, group: tuple[int, int]) -> None:
        assert sharing(group).saved_s(8, 8 * 2000) == 0.0
        assert sharing(group).decode(8, 16_000, 0, 0).first == LLAMA.decode(8, 16_000, 0, 0).first

    def test_nobody_shares_and_nothing_changes(self) -> None:
        assert sharing().decode(8, 16_000, 0, 0) == LLAMA.decode(8, 16_000, 0, 0)
        assert sharing().mixed(8, 16_000, 0, [(100, 0)], 9) == LLAMA.mixed(8, 16_000, 0, [(100, 0)], 9)

    def test_mixed_steps_save_as_much(self) -> None:
        cost, context = sharing((32, 4096)), 32 * 4500
        plain, once = (c.mixed(32, context, 0, [(512, 0)], 32) for c in (LLAMA, cost))
        assert plain - once == pytest.approx(cost.saved_s(32, context))

    def test_other_attention_is_refused(self) -> None:
        for name in ("openai/gpt-oss-20b", "deepseek-ai/DeepSeek-V3"):
            with pytest.raises(ModelError, match="shared prefixes"):
                check_sharing(OperatorCost(model(name), Roofline(gpu("H100-SXM")), Deployment(8)))


def prompts(*ids: list[int], gap_s: float = 0.2) -> Trace:
    n = len(ids)
    length = np.array([len(x) * BLOCK + 3 for x in ids])
    return Trace(
        np.arange(n, dtype=np.float64) * np.float64(gap_s), length, np.full(n, 2000), prefix=from_rows(list(ids), BLOCK)
    )


def play(trace: Trace, kind: str = "groups") -> Simulation:
    args = EngineArgs(shared_prefix_attention=kind, max_model_len=8192, enable_prefix_caching=True)
    return Simulation(trace, single(args, SMALL, 4000), horizon_s=float(trace.arrival[-1]) + 0.5)


class TestWhoShares:
    def groups(self, trace: Trace, kind: str = "groups") -> list[tuple[int, int]]:
        run = play(trace, kind)
        run.run()
        state = run.replicas[0].engine.state
        assert isinstance(state, SharingState)
        return sorted(state.shared())

    def test_what_all_of_a_group_hold(self) -> None:
        one = [[1, 2, 3, 4], [1, 2, 3, 5], [1, 2, 6, 7]]
        assert self.groups(prompts(*one)) == [(3, 2 * BLOCK)]
        assert self.groups(prompts(*one, [9, 8], [9, 8], [11, 12])) == [(2, 2 * BLOCK), (3, 2 * BLOCK)]

    def test_instances_of_the_same_blocks_are_not_shared(self) -> None:
        assert self.groups(prompts([1, 2, 3], [1, 2, 3], gap_s=0.0)) == [(2, 3 * BLOCK)]  # blocks are found at once
        state = SharingState(EngineArgs(shared_prefix_attention="groups"), PrefixCache(100, BLOCK))
        for row in range(3):
            request = Request(row, 0.0, 51, 10, table=BlockTable((1, 2, 3)))
            request.computed, request.cached_tokens, request.order = 51, 16 * (row == 2), row
            state.join(request, 9)
        assert state.shared() == [(2, 16)]  # the second computed what the first did, the third hit one block

    def test_the_batch_shares_or_nobody(self) -> None:
        long = list(range(20))
        assert self.groups(prompts(*[[*long, 100 + i] for i in range(9)]), "batch") == [(9, 20 * BLOCK)]
        assert self.groups(prompts(*[[*long, 100 + i] for i in range(9)], [500]), "batch") == []
        assert self.groups(prompts(*[[*long, 100 + i] for i in range(5)]), "batch") == []  # fewer than 8
        assert self.groups(prompts(*[[1, 100 + i] for i in range(9)]), "batch") == []  # fewer than 256 tokens

    def test_best_of_n_answers_share_their_prompt(self) -> None:
        prompt = list(range(100))
        trace = prompts(*[prompt for _ in range(8)], gap_s=0.05)
        assert self.groups(trace) == [(8, 100 * BLOCK)]
        shared, plain = (play(trace, kind).run().steps for kind in ("groups", "none"))
        assert shared.num_steps.sum() > 1.1 * plain.num_steps.sum()  # in the same time


def test_sharing_pays_on_the_slow_gpu() -> None:
    assert SharedPrefixCost(SLOW, lambda: [(8, 32)]).saved_s(8, 400) > 0.0


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_spans_are_steps(data: st.DataObject) -> None:
    """On a GPU whose memory is so slow that sharing a block already pays."""
    trace = data.draw(traces(4))
    args = EngineArgs(
        shared_prefix_attention=data.draw(st.sampled_from(["groups", "batch"])),
        policy=data.draw(st.sampled_from(["vllm", "srpt"])),
        block_size=4, max_num_seqs=data.draw(st.integers(1, 12)), max_num_batched_tokens=64, max_model_len=110,
        async_scheduling=data.draw(st.booleans()), enable_prefix_caching=True,
    )  # fmt: skip
    blocks = data.draw(st.integers(30, 300))
    users = data.draw(st.sampled_from([None, 3]))
    runs = [Simulation(trace, single(args, SLOW, blocks), step_mode=m, closed_loop_users=users) for m in (False, True)]
    spans, steps = (one.run() for one in runs)
    same_requests(spans, steps)
    same_steps(spans.steps, steps.steps)
    for records, played in zip((spans, steps), runs, strict=True):
        check(records, trace, played.replicas[0].engine.state)


def test_plans_do_not_rule_it_out(tmp_path: Path) -> None:
    """The bound by which searches prune designs lies above what sharing reaches."""
    path = tmp_path / "scenario.yaml"
    path.write_text(
        "model: meta-llama/Llama-2-13b-hf\n"
        "hardware: A100-SXM-80GB\n"
        "engine: {max_model_len: 4096, max_num_seqs: 32, shared_prefix_attention: groups}\n"
        "workload: {synthetic: {num_requests: 64, arrivals: {process: at_once}, lengths: {prompt: 20, output: 200},\n"
        "  sessions: {turns: 1, shared_prefix_tokens: 3000}}}\n"
    )
    shared, plain = (load(path, extra) for extra in ([], ["engine.shared_prefix_attention=none"]))
    trace = make_trace(shared.workload, shared.seed)
    rate = 64 / np.nanmax(run(shared, trace=trace).records.requests.finish)
    assert (
        highest_rate([build(shared)], ["both"], trace)
        > rate
        > 2 * 64 / np.nanmax(run(plain, trace=trace).records.requests.finish)
    )
