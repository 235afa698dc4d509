"""Slices of a GPU: as documented, adding up to the whole, and priced as a slower GPU of the same kind."""

from __future__ import annotations

import pytest

from simulator.core.errors import HardwareError
from simulator.cost.calibrated import cost_model
from simulator.cost.calibration import describe, find
from simulator.cost.flash_attention import blocks_of
from simulator.cost.memory import memory_plan
from simulator.cost.placement import Deployment
from simulator.cost.shapes import attention_shape
from simulator.hardware.gpu import GIB, gpu, gpus
from simulator.hardware.mig import PROFILES
from simulator.model.catalogue import model

# nvidia-smi mig -lgip of an A100 40 GB and an H100: usable GiB, multiprocessors of the whole GPU, of the slice.
LISTED = [
    ("A100-SXM-40GB/1g.5gb", 4.75, 108, 14),
    ("A100-SXM-40GB/2g.10gb", 9.75, 108, 28),
    ("A100-SXM-40GB/3g.20gb", 19.62, 108, 42),
    ("A100-SXM-40GB/7g.40gb", 39.5, 108, 98),
    ("H100-SXM/1g.10gb", 9.75, 132, 16),
    ("H100-SXM/3g.40gb", 39.5, 132, 60),
]


@pytest.mark.parametrize(("name", "gib", "whole", "multiprocessors"), LISTED)
def test_a_slice_is_what_nvidia_smi_lists(name: str, gib: float, whole: int, multiprocessors: int) -> None:
    found = gpu(name)
    assert found.name == name
    assert found.memory_bytes / GIB == pytest.approx(gib, abs=0.25)  # cudaMemGetInfo shows less than nvidia-smi
    assert whole * found.compute_share == pytest.approx(multiprocessors)


def test_names_say_their_memory_and_are_found_however_written() -> None:
    for whole, profiles in PROFILES.items():
        for name in profiles:
            found = gpu(f"{whole}/{name}")
            assert found.memory_bytes / 1e9 == pytest.approx(float(name.split(".")[1][:-2]), rel=0.13)
            assert found.memory_bandwidth <= gpus()[whole].memory_bandwidth
    assert gpu("h100/MIG-3g.40gb") == gpu("NVIDIA H100-SXM/3G.40GB")


def test_what_fills_a_gpu_costs_as_much() -> None:
    whole = gpu("H100-SXM")
    assert whole.price_per_hour is not None
    for slices in (["1g.10gb"] * 7, ["3g.40gb"] * 2, ["1g.20gb"] * 4, ["7g.80gb"]):
        parts = [gpu(f"H100-SXM/{name}") for name in slices]
        assert sum(part.price_per_hour or 0 for part in parts) == pytest.approx(whole.price_per_hour)
        assert sum(part.memory_bytes for part in parts) <= whole.memory_bytes
        assert sum(part.peak_flops["bf16"] for part in parts) <= whole.peak_flops["bf16"] * 1.001


@pytest.mark.parametrize("card", ["H100-SXM", "A100-SXM-80GB"])
def test_a_slice_is_slower_as_far_as_what_binds_it(card: str) -> None:
    """A decode goes with the slice's half of the bandwidth, a prompt with its multiprocessors."""
    served = model("Qwen/Qwen3-0.6B")
    whole, part = gpu(card), gpu(f"{card}/3g.40gb")
    kernels = [cost_model(served, g, find(g), Deployment()) for g in (whole, part)]
    decodes = [c.decode(64, 64 * 8000, 0, 0).increment for c in kernels]  # per token of context: KV reads
    assert decodes[1] / decodes[0] == pytest.approx(2.0, rel=0.15)
    prompts = [c.mixed(0, 0, 0, [(8192, 0)], 1) for c in kernels]
    assert prompts[1] / prompts[0] == pytest.approx(1.0 / part.compute_share, rel=0.2)


def test_a_borrowed_calibration_says_so() -> None:
    part = gpu("H100-SXM/2g.20gb")
    found = find(part)
    assert found is not None
    assert found.ceilings.multiprocessors == 32
    assert found.transferred_from is not None and "H100-SXM" in found.transferred_from
    assert "H100-SXM" in str(describe(part, found, {}))
    shape = attention_shape(model("Qwen/Qwen3-0.6B").layers[0].attention, 1, "bfloat16", 2.0)
    blocks, whole = blocks_of(gpu("A100-SXM-80GB/3g.40gb"), shape), blocks_of(gpu("A100-SXM-80GB"), shape)
    assert blocks is not None and whole is not None
    assert blocks.slots / whole.slots == pytest.approx(42 / 108)


def test_what_does_not_exist_is_answered_with_what_does() -> None:
    with pytest.raises(HardwareError, match=r"3g\.40gb"):
        gpu("H100-SXM/3g.41gb")
    with pytest.raises(HardwareError, match="H100-SXM"):
        gpu("L40S/1g.6gb")
    with pytest.raises(HardwareError, match=r"cluster\.replicas"):
        memory_plan(model("Qwen/Qwen3-0.6B"), gpu("H100/3g.40gb"), tp=2)
    with pytest.raises(HardwareError, match="does not fit"):
        memory_plan(model("Llama-3.1-8B"), gpu("H100/1g.10gb"))
