"""Contexts cut over GPUs: ring attention, shares of the KV, merged partial attention."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.core.errors import UserError
from simulator.cost.breakdown import breakdown
from simulator.cost.context_parallel import ContextParallelCost, ring_seconds
from simulator.cost.memory import memory_plan
from simulator.cost.overhead import EngineOverhead
from simulator.cost.placement import Deployment
from simulator.cost.roofline import EFFICIENCY, Roofline
from simulator.cost.step import OperatorCost
from simulator.hardware.gpu import Gpu, Link, gpu
from simulator.model.architecture import Model
from simulator.model.catalogue import model
from simulator.model.config import load_config

LWM = Path(__file__).resolve().parents[2] / "scenarios" / "survey" / "models" / "lwm-7b-1m.json"
KERNELS = EngineOverhead(gpu_gap_s=0.0, cpu_step_s=0.0, cpu_per_sequence_s=0.0, launch_s=0.0)
ETHERNET = Link("network", 12.5e9, 10e-6)  # 100 Gb/s


@cache
def lwm() -> Model:
    return load_config(LWM)


def card(link: Link | None = None) -> Gpu:
    """An H200, whose fellows are reached over ``link``."""
    found = gpu("H200-SXM")
    return found if link is None else replace(found, link=link)


def cost(pcp: int = 1, *, link: Link | None = None, layout: str = "striped", **more: object) -> OperatorCost:
    d = replace(Deployment(), prefill_context_parallel_size=pcp, context_parallel_layout=layout, **more)  # type: ignore[arg-type]
    kind = ContextParallelCost if pcp * d.decode_context_parallel_size > 1 else OperatorCost
    return kind(lwm(), Roofline(card(link)), d, KERNELS)


def prompt(priced: OperatorCost, tokens: int, computed: int = 0) -> float:
    return priced.mixed(0, 0, 0, [(tokens, computed)], 1)


def test_a_round_lasts_as_long_as_the_longer_of_computing_and_sending() -> None:
    assert ring_seconds(1, 1.0, 2.0, 99.0) == 1.0
    assert ring_seconds(4, 1.0, 2.0, 0.5) == 1.0 + 3 * 2.0
    assert ring_seconds(4, 1.0, 2.0, 5.0) == 3 * 5.0 + 2.0


def test_no_slowdown_from_flops_over_bandwidth_tokens_on_and_linear_below() -> None:
    """Ring Attention, section 3: with full blocks and as many KV heads, ``c >= FLOP/s over bandwidth``."""
    flops = card().peak("bf16")[1] * EFFICIENCY["prefill"].compute
    reached = EFFICIENCY["network"].memory
    tokens = 8192  # of a rank
    enough = flops / tokens / reached  # bandwidth at which blocks of so many tokens just hide
    free = prompt(cost(8, link=Link("nvlink", 100 * enough, 0.0), layout="contiguous"), 8 * tokens)

    def at(share: float) -> float:
        return prompt(cost(8, link=Link("nvlink", share * enough, 0.0), layout="contiguous"), 8 * tokens)

    assert 1.0 < at(1.01) / free < 1.05  # every rank's own block, half masked, hides half of a transfer
    assert at(2.01) == pytest.approx(free)
    first, second, third = at(0.25), at(0.125), at(0.0625)
    assert first > 1.5 * free
    assert third - second == pytest.approx(2 * (second - first), rel=1e-6)  # linear in the time of a transfer


@settings(max_examples=40, deadline=None)
@given(st.integers(64, 200_000), st.integers(0, 200_000), st.integers(2, 8))
def test_ranks_share_the_work_and_never_gain_more_than_their_number(new: int, computed: int, ranks: int) -> None:
    one, cut = prompt(cost(), new, computed), prompt(cost(ranks), new, computed)
    assert cut >= one / ranks * 0.999
    assert prompt(cost(ranks, layout="contiguous"), new, computed) >= cut * 0.999


def test_stripes_save_up_to_half_of_a_causal_prompt() -> None:
    """Striped Attention reports up to 1.45x; attention alone nears 2x."""
    ratios = [prompt(cost(8, layout="contiguous"), n) / prompt(cost(8), n) for n in (8192, 65536, 524288)]
    assert ratios == sorted(ratios)
    assert 1.0 < ratios[0] < 1.3
    assert 1.6 < ratios[-1] < 1.9


def test_a_long_prompt_scales_over_nvlink_and_not_over_ethernet() -> None:
    one = prompt(cost(), 131072)
    fast = [one / n / prompt(cost(n), 131072) for n in (2, 4, 8)]
    slow = [one / n / prompt(cost(n, link=ETHERNET), 131072) for n in (2, 4, 8)]
    assert fast == sorted(fast, reverse=True)
    assert 0.9 < fast[-1] < 1.0
    assert slow[-1] < 0.3


def test_as_many_ranks_hold_as_many_times_the_context() -> None:
    def longest(ranks: int) -> int:
        try:
            plan = memory_plan(lwm(), card(), prefill_context_parallel_size=ranks, max_num_seqs=16)
        except UserError as error:
            return int(re.findall(r"max_model_len: (\d+)", str(error))[-1])
        return plan.kv_tokens

    one = longest(1)
    assert [longest(n) / one for n in (2, 4, 8)] == pytest.approx([2, 4, 8], rel=0.05)


def test_decodes_read_their_share_of_the_contexts() -> None:
    long, short = (cost(1).decode(8, n, 0, 0) for n in (800_000, 8))
    attention = long.first - short.first
    cut = [cost(8).decode(8, n, 0, 0) for n in (800_000, 8)]
    assert cut[0].first - cut[1].first == pytest.approx(attention / 8)
    assert cut[1].first > short.first  # merging
    assert cut[0].increment == pytest.approx(long.increment / 8)


def test_decoding_tokens_are_spread_over_masters() -> None:
    alone = cost(4).decode(512, 512, 0, 0).first
    spread = [cost(4, context_parallel_masters=n).decode(512, 512, 0, 0).first for n in (1, 2, 4)]
    assert spread == sorted(spread, reverse=True)
    assert spread[2] < 0.6 * alone
    few = [cost(4, context_parallel_masters=n).decode(4, 4, 0, 0).first for n in (1, 4)]
    assert few[1] == pytest.approx(few[0], rel=0.02)  # bound by the weights


def test_decode_context_parallel_ranks_stop_repeating_kv() -> None:
    """Llama-3.1-70B has 8 KV heads: 16 tensor-parallel ranks keep each twice."""
    node = replace(gpu("H200-SXM"), gpus_per_node=16)
    plans = [
        memory_plan(model("llama-3.1-70b"), node, tp=16, decode_context_parallel_size=n, max_model_len=8192)
        for n in (1, 2)
    ]
    assert plans[1].num_gpus == plans[0].num_gpus == 16
    assert plans[1].kv_tokens / plans[0].kv_tokens == pytest.approx(2.0, rel=0.01)
    priced = [
        (OperatorCost if n == 1 else ContextParallelCost)(
            model("llama-3.1-70b"), Roofline(node), Deployment(16, decode_context_parallel_size=n), KERNELS
        )
        for n in (1, 2)
    ]
    long = [p.decode(64, 64 * 30_000, 0, 0).first for p in priced]
    assert 0.5 < long[1] / long[0] < 0.75
    assert priced[1].mixed(0, 0, 0, [(512, 4096)], 1) > priced[1].mixed(0, 0, 0, [(512, 0)], 1)


@pytest.mark.parametrize("chunks", [(), ((4096, 0),), ((512, 9000), (100, 0))])
@pytest.mark.parametrize("layout", ["striped", "contiguous"])
def test_the_breakdown_adds_up(chunks: tuple[tuple[int, int], ...], layout: str) -> None:
    priced = cost(4, layout=layout)
    rows = breakdown(priced, 16, 16_000, chunks)
    assert sum(row.seconds for row in rows) == pytest.approx(priced.mixed(16, 16_000, 0, chunks, 16 + len(chunks)))


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("llama-3.1-8b", {"prefill_context_parallel_size": 2, "pipeline_parallel_size": 2}, "Set both to 1"),
        ("llama-3.1-8b", {"tensor_parallel_size": 8, "decode_context_parallel_size": 2}, "1 copies of a KV head"),
        ("Qwen/Qwen3-30B-A3B", {"prefill_context_parallel_size": 2}, "decode_context_parallel_size"),
        ("mistralai/Mistral-7B-v0.1", {"prefill_context_parallel_size": 2}, "window"),
    ],
)
def test_what_cannot_be_cut_is_told_why(name: str, given: dict[str, int], words: str) -> None:
    with pytest.raises(UserError, match=words):
        OperatorCost(model(name), Roofline(card()), replace(Deployment(), **given))  # type: ignore[arg-type]
