"""Prices and sizes of LoRA adapters."""

from __future__ import annotations

import pytest

from simulator.cost.lora import LoraPrice
from simulator.cost.roofline import RooflineCost
from simulator.hardware.gpu import gpu
from simulator.model.catalogue import model

A100 = gpu("A100-SXM-80GB")
LLAMA = model("meta-llama/Llama-2-7b-hf")
COST = RooflineCost(LLAMA, A100)
ALL, ATTENTION = LoraPrice(COST, ()), LoraPrice(COST, ("qkv_proj", "o_proj"))


def test_an_adapter_is_as_large_as_published() -> None:
    """Rank 8 on q, k, v, o of a 7B model: 8 x 32 x ((4096 + 12288) + 8192) x 2 bytes. Beside 13.5 GB, 0.1 %."""
    assert ATTENTION.bytes_per_rank == 2 * 32 * (4096 + 3 * 4096 + 2 * 4096)
    assert ALL.bytes_per_rank == ATTENTION.bytes_per_rank + 2 * 32 * (4096 + 2 * 11008 + 11008 + 4096)


def test_on_several_ranks_one_of_both_matrices_is_repeated() -> None:
    two = LoraPrice(RooflineCost(LLAMA, A100, tensor_parallel_size=2), ("qkv_proj", "o_proj"))
    assert two.bytes_per_rank == 2 * 32 * ((4096 + 3 * 2048) + (2048 + 4096))


def test_launches_are_most_of_a_small_batch_and_adapters_of_a_large_one() -> None:
    """Two kernels for each of 4 matrices in 32 layers, 1.5 us each; 32 adapters of rank 16 are read at 0.7 x 2 TB/s."""
    launches = 2 * 4 * 32 * 1.5e-6
    assert ALL(1, 16) == pytest.approx(launches, rel=0.2)
    reading = 32 * 16 * ALL.bytes_per_rank / (0.7 * A100.memory_bandwidth)
    assert ALL(32, 32 * 16) - ALL(32, 16) == pytest.approx(reading * 31 / 32, rel=0.01)
    assert ALL(32, 32 * 16) == pytest.approx(2e-3, rel=0.25)  # what Punica reports a token more to take


def test_more_costs_more() -> None:
    assert ALL(1, 8) < ALL(64, 8) < ALL(64, 512) < ALL(4096, 512)
    assert ATTENTION(32, 64) < ALL(32, 64)
    assert ALL(32, 64) is ALL(32, 64)  # priced once
