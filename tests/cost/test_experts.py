"""Experts spread over ranks: who is busiest, what balancing recovers, and what a wave of ranks costs."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.core.errors import HardwareError, ModelError
from simulator.cost.analytic import LinearCost
from simulator.cost.experts import balance, eplb_placement, expert_loads, linear_placement, rank_loads
from simulator.cost.interface import Line
from simulator.cost.memory import memory_plan
from simulator.cost.overhead import EngineOverhead
from simulator.cost.placement import Deployment
from simulator.cost.roofline import Roofline
from simulator.cost.step import OperatorCost
from simulator.cost.wave import Batch, OperatorWaveCost, SlowestRank, slowest, wave_cost
from simulator.hardware.gpu import gpu
from simulator.model.catalogue import model
from simulator.model.weights import layer_linears

NAME = "Qwen/Qwen3-30B-A3B"
DEEPSEEK = "deepseek-ai/DeepSeek-V3"
EAGER = EngineOverhead(graph_sizes=(), cpu_step_s=0.0, cpu_per_sequence_s=0.0, launch_s=0.0)


def cost(name: str = NAME, overhead: EngineOverhead | None = None, **deployment: object) -> OperatorCost:
    d = Deployment(**{"enable_expert_parallel": True} | deployment)  # type: ignore[arg-type]
    return OperatorCost(model(name), Roofline(gpu("H200-SXM")), d, overhead)


def decodes(n: int, context: int = 1000) -> Batch:
    return Batch(n, n * context, num_sampled=n)


def prompt(tokens: int) -> Batch:
    return Batch(chunks=[(tokens, 0)], num_sampled=1)


class TestPlacement:
    @given(experts=st.integers(4, 96), top_k=st.integers(1, 8), skew=st.floats(0, 3), layer=st.integers(0, 9))
    @settings(max_examples=60, deadline=None)
    def test_a_token_visits_top_k_experts_each_once_at_most(
        self, experts: int, top_k: int, skew: float, layer: int
    ) -> None:
        loads = expert_loads(experts, min(top_k, experts), skew, layer)
        assert loads.sum() == pytest.approx(min(top_k, experts))
        assert (loads <= 1 + 1e-9).all()
        assert (loads > 0).all()

    def test_popularity_is_zipfs(self) -> None:
        loads = np.sort(expert_loads(100, 1, 1.0))[::-1]
        np.testing.assert_allclose(loads[0] / loads, np.arange(1, 101))

    @given(skew=st.floats(0, 2.5), ranks=st.sampled_from([2, 4, 8]), spare=st.integers(0, 4), layer=st.integers(0, 9))
    @settings(max_examples=60, deadline=None)
    def test_every_expert_has_a_place_and_no_rank_more_than_its_own(
        self, skew: float, ranks: int, spare: int, layer: int
    ) -> None:
        loads = expert_loads(64, 8, skew, layer)
        placement = eplb_placement(loads, 64 + spare * ranks, ranks)
        assert placement.shape == (ranks, 64 // ranks + spare)
        assert set(placement.ravel().tolist()) == set(range(64))
        for found in (placement, linear_placement(64, ranks, spare * ranks)):
            assert rank_loads(loads, found).sum() == pytest.approx(8)

    def test_the_most_visited_experts_are_copied(self) -> None:
        """By hand: loads 6, 3, 2, 1 in four and two more places on two ranks. 6 splits to 3, then one of the threes."""
        loads = np.array([1.0, 6.0, 2.0, 3.0])
        placement = eplb_placement(loads, 6, 2)
        assert np.bincount(placement.ravel()).tolist() == [1, 3, 1, 1]
        np.testing.assert_allclose(np.sort(rank_loads(loads, placement)), [6.0, 6.0])  # 2 + 2 + 2 and 3 + 2 + 1

    def test_balancing_recovers_most_of_what_skew_costs_and_nothing_where_there_is_none(self) -> None:
        layers = tuple(range(58))
        even = balance(256, 8, 0.0, 8, 0, layers, eplb=False)
        assert even.busiest == 1.0 == balance(256, 8, 0.0, 8, 0, layers, eplb=True).busiest
        by_skew = [balance(256, 8, s, 8, 0, layers, eplb=False).busiest for s in (0.0, 0.3, 0.6, 0.9, 1.2)]
        assert all(a < b for a, b in pairwise(by_skew))
        for skew in (0.6, 0.9, 1.2):
            linear = balance(256, 8, skew, 8, 0, layers, eplb=False).busiest
            packed = balance(256, 8, skew, 8, 0, layers, eplb=True).busiest
            copied = balance(256, 8, skew, 8, 32, layers, eplb=True).busiest
            assert copied <= packed < linear
            assert copied - 1 < 0.02 * (linear - 1)

    def test_more_ranks_are_harder_to_keep_even(self) -> None:
        layers = tuple(range(58))
        found = [balance(256, 8, 0.8, ranks, 0, layers, eplb=False).busiest for ranks in (2, 8, 32, 64)]
        assert all(a < b for a, b in pairwise(found))


class TestPrice:
    def test_skew_slows_and_balancing_recovers(self) -> None:
        def seconds(**options: object) -> float:
            return cost(NAME, None, data_parallel_size=8, **options).mixed(0, 0, 0, [(4096, 0)], 1)

        even, skewed = seconds(), seconds(expert_skew=1.0)
        balanced = seconds(expert_skew=1.0, enable_eplb=True, num_redundant_experts=16)
        assert skewed > 1.2 * even
        assert balanced < even + 0.1 * (skewed - even)

    def test_expert_parallelism_over_tensor_parallel_ranks_has_a_busiest_one_too(self) -> None:
        plain, skewed = (cost(tensor_parallel_size=4, expert_skew=s).mixed(0, 0, 0, [(8192, 0)], 1) for s in (0, 1.0))
        assert skewed > 1.1 * plain

    @pytest.mark.parametrize("dp", [1, 2, 8])
    @pytest.mark.parametrize("graphs", [True, False])
    def test_a_balanced_wave_costs_what_the_cost_model_says(self, dp: int, graphs: bool) -> None:
        """``OperatorCost`` speaks of ranks that all have the same batch; a wave of such ranks must agree."""
        single = cost(data_parallel_size=dp, overhead=None if graphs else EAGER)
        wave = OperatorWaveCost(single)
        for n in (1, 3, 64, 300):
            line, lone = wave.decode([decodes(n)] * dp, balanced=True), single.decode(n, n * 1000, 0, 0)
            assert line.first == pytest.approx(lone.first, rel=1e-9)
            assert line.increment == pytest.approx(lone.increment, rel=1e-9)
        for tokens in (20, 512, 640, 4096):
            batch = Batch(7, 7000, chunks=[(tokens - 7, 0)], num_sampled=8)
            lone_s = single.mixed(7, 7000, 0, [(tokens - 7, 0)], 8)
            assert wave.mixed([batch] * dp, balanced=True) == pytest.approx(lone_s, rel=1e-9)

    def test_the_price_of_experts_is_that_of_all_tokens_wherever_they_are(self) -> None:
        """Moving prompt tokens between ranks changes the slowest rank's own part, not the experts'."""
        wave = OperatorWaveCost(cost(data_parallel_size=2, overhead=EAGER))
        even = wave.shared_s(1000, 2000, balanced=True)
        assert wave.shared_s(1900, 2000, balanced=True) == even
        assert wave.shared_s(1000, 4000, balanced=True) > 1.5 * even
        apart = wave.mixed([prompt(1900), prompt(100)], balanced=True)
        together = wave.mixed([prompt(1000), prompt(1000)], balanced=True)
        assert apart > together

    def test_a_wave_lasts_as_long_as_its_slowest_rank(self) -> None:
        wave = OperatorWaveCost(cost(data_parallel_size=4))
        long, short = Batch(8, 8 * 30_000, num_sampled=8), decodes(8, 100)
        all_long = wave.decode([long] * 4, balanced=True)
        assert wave.decode([short, long, short, short], balanced=True) == all_long
        assert wave.decode([short] * 4, balanced=True).first < all_long.first
        # Ranks without work run the same graph for nothing.
        assert wave.decode([long, Batch(), Batch(), Batch()], balanced=True) == all_long

    def test_cuda_graphs_pad_every_rank_to_the_largest(self) -> None:
        """Up to the largest captured size a rank with 200 decodes makes all compute 200; above it each has its own."""
        wave = OperatorWaveCost(cost(data_parallel_size=4))
        one, all_of_them = [decodes(200), *[decodes(1)] * 3], [decodes(200)] * 4
        assert wave.decode(one, balanced=True).first == wave.decode(all_of_them, balanced=True).first
        beyond = [[decodes(600), *[decodes(1)] * 3], [decodes(600)] * 4]
        apart, together = (wave.decode(batches, balanced=True).first for batches in beyond)
        assert apart < together

    def test_backends_of_the_exchange(self) -> None:
        """Gathering sends everything everywhere; DeepEP sends a token where its experts are: less, with many ranks."""
        prices = {
            name: cost(DEEPSEEK, data_parallel_size=8, all2all_backend=name).mixed(0, 0, 0, [(4096, 0)], 1)
            for name in ("allgather_reducescatter", "deepep_high_throughput", "deepep_low_latency")
        }
        assert prices["deepep_high_throughput"] < prices["allgather_reducescatter"]
        assert prices["deepep_high_throughput"] < prices["deepep_low_latency"]  # a token once per rank, or per expert

    def test_the_exchange_by_hand(self) -> None:
        """1,000 tokens from each of four ranks, bytes over the link and nothing else."""
        card = gpu("H200-SXM")
        single = cost(data_parallel_size=4, all2all_backend="deepep_low_latency", overhead=EAGER)
        layers = single.expert_layers(eplb=False)
        (layer,) = layers.values()
        sent = [price.bytes for _, price in layer.exchange(layer.rows(1000, 4000))]
        each = 1000 * 8 * 3 / 4 * 2048 * 2.0  # tokens x experts x the three other ranks' share x hidden x bf16
        np.testing.assert_allclose(sent, [each, each])
        gathered = cost(data_parallel_size=4, overhead=EAGER).expert_layers(eplb=False)[next(iter(layers))]
        sent = [price.bytes for _, price in gathered.exchange(gathered.rows(1000, 4000))]
        np.testing.assert_allclose(sent, [4000 * 2048 * 2.0 * 3 / 4] * 2)
        assert layer.exchange(1000)[0][1].seconds > each / 4 / card.link.bandwidth

    def test_moving_experts_takes_the_time_of_their_weights(self) -> None:
        wave = OperatorWaveCost(cost(data_parallel_size=4, expert_skew=1.0, enable_eplb=True))
        experts = sum(x.parameters for x in layer_linears(model(NAME), model(NAME).layers[0]) if x.role == "expert")
        whole_s = 48 * experts * 2.0 / gpu("H200-SXM").link.bandwidth
        assert 0.5 * whole_s / 4 < wave.rebalance_s < 2.0 * whole_s / 4  # most of a rank's quarter, at 65 % of the link
        assert OperatorWaveCost(cost(data_parallel_size=4)).rebalance_s == 0.0

    def test_before_the_first_balancing_experts_lie_in_order(self) -> None:
        wave = OperatorWaveCost(cost(data_parallel_size=4, expert_skew=1.0, enable_eplb=True, num_redundant_experts=8))
        batch = [prompt(2048)] * 4
        assert wave.mixed(batch, balanced=False) > 1.1 * wave.mixed(batch, balanced=True)


lines = st.lists(
    st.builds(Line, st.floats(0.001, 1.0), st.floats(0, 1e-3), st.integers(1, 5000)), min_size=1, max_size=6
)


@given(lines)
@settings(max_examples=300, deadline=None)
def test_the_slowest_line_is_the_maximum_for_as_long_as_it_says(found: list[Line]) -> None:
    top = slowest(found)
    assert 1 <= top.valid_steps <= min(line.valid_steps for line in found)
    for step in {0, 1, top.valid_steps // 2, top.valid_steps - 1} - {-1}:
        if step < top.valid_steps:
            largest = max(line.first + line.increment * step for line in found)
            assert top.first + top.increment * step == pytest.approx(largest, rel=1e-9)


def test_a_plain_cost_is_shared_by_nobody() -> None:
    plain = LinearCost(0.01, 1e-4, 1e-3, 1e-6)
    found = wave_cost(plain)
    assert isinstance(found, SlowestRank)
    assert found.decode([decodes(3), Batch(), decodes(5)], balanced=True) == plain.decode(5, 5000, 0, 0)
    assert found.mixed([prompt(500), decodes(3)], balanced=True) == plain.mixed(0, 0, 0, [(500, 0)], 1)


class TestMemory:
    def test_attention_is_repeated_and_experts_are_shared(self) -> None:
        """DeepSeek-V3 on eight H200: with tp = 8 a rank holds an eighth of everything, with dp = 8 all of attention."""
        served, card = model(DEEPSEEK), gpu("H200-SXM")
        plans = {
            n: memory_plan(
                served, card, enable_expert_parallel=True, max_model_len=16384, max_num_seqs=256,
                max_num_batched_tokens=8192, **{n: 8},  # type: ignore[arg-type]
            )
            for n in ("tp", "data_parallel_size")
        }  # fmt: skip
        tp, dp = plans["tp"], plans["data_parallel_size"]
        assert tp.num_gpus == dp.num_gpus == 8
        experts = sum(
            x.parameters for layer in served.layers for x in layer_linears(served, layer) if x.role == "expert"
        )
        assert dp.weight_bytes > tp.weight_bytes
        assert dp.weight_bytes == pytest.approx(experts / 8 + (671e9 - experts) * 1.1, rel=0.1)
        # Every rank's cache is smaller, but MLA's is the same on all tensor-parallel ranks: eight of them hold more.
        assert tp.num_gpu_blocks > dp.num_gpu_blocks
        assert 8 * dp.num_gpu_blocks > 3 * tp.num_gpu_blocks

    def test_redundant_experts_take_memory(self) -> None:
        def blocks(redundant: int) -> int:
            return memory_plan(
                model(NAME), gpu("H200-SXM"), data_parallel_size=4, enable_expert_parallel=True, max_model_len=8192,
                num_redundant_experts=redundant,
            ).weight_bytes  # fmt: skip

        each = sum(x.parameters for x in layer_linears(model(NAME), model(NAME).layers[0]) if x.role == "expert") / 128
        assert blocks(8) - blocks(0) == pytest.approx(48 * 2 * each * 2, rel=1e-6)


REFUSED = [
    ("llama-3.1-8b", {"data_parallel_size": 2}, r"cluster\.replicas: 2"),
    (NAME, {"data_parallel_size": 2, "pipeline_parallel_size": 2}, "pipeline_parallel_size: 1"),
    (NAME, {"data_parallel_size": 3, "enable_expert_parallel": True}, "num_redundant_experts: 1"),
    (NAME, {"expert_skew": 1.0, "tensor_parallel_size": 2}, "enable_expert_parallel: true"),
    (NAME, {"expert_skew": 1.0, "enable_expert_parallel": True}, "more than one rank"),
    (NAME, {"data_parallel_size": 2, "enable_expert_parallel": True, "num_redundant_experts": 2}, "enable_eplb: true"),
    (NAME, {"tensor_parallel_size": 2, "all2all_backend": "deepep_low_latency"}, "data_parallel_size above 1"),
]


@pytest.mark.parametrize(("name", "options", "remedy"), REFUSED)
def test_what_cannot_be_is_answered_with_what_can(name: str, options: dict[str, object], remedy: str) -> None:
    with pytest.raises((ModelError, HardwareError), match=remedy):
        OperatorCost(model(name), Roofline(gpu("H200-SXM")), replace(Deployment(), **options))  # type: ignore[arg-type]
