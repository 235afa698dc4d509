"""Whole steps of real models on every GPU with a calibration: never impossible, never absurd, faster on faster GPUs.

Each operator is held to physics elsewhere (``test_calibrated.py``). What a step adds up from them can still be absurd
where a table timed something else than a kernel, or where a shape, a format or a dimension borrowed what does not fit.
"""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import pytest

from simulator.cost.breakdown import Row, breakdown
from simulator.cost.calibrated import cost_model
from simulator.cost.calibration import find, shipped
from simulator.cost.placement import Deployment
from simulator.cost.step import OperatorCost
from simulator.hardware.gpu import gpu
from simulator.model.catalogue import model

GPUS = sorted(name for name in shipped() if gpu(name).vendor != "any")
MODELS = [  # fp8, experts in mxfp4 behind windows, experts and products in fp8 blocks, MLA
    ("nvidia/Llama-3.1-70B-Instruct-FP8", 4),
    ("openai/gpt-oss-120b", 2),
    ("MiniMaxAI/MiniMax-M2.5", 8),
    ("deepseek-ai/DeepSeek-V3", 8),
]
CONTEXT = 2000
STEPS: dict[str, tuple[int, tuple[tuple[int, int], ...]]] = {
    "1 decode": (1, ()),
    "32 decodes": (32, ()),
    "256 decodes": (256, ()),
    "2,048 new": (0, ((2048, 0),)),
    "32 decodes and 1,024 new over 8,192": (32, ((1024, 8192),)),
}
# Between GPUs of a node the tables time whatever links that machine had: the L40S had no peer-to-peer copies.
LINKS = ("all_reduce", "all_gather")
# Faster on paper from left to right, in FLOP/s, bandwidth and memory.
GENERATIONS = (("A100-SXM-80GB", "H100-SXM", "H200-SXM", "B200", "B300"), ("H200-SXM", "GB200"))
# MLA modules on all GPUs but the B200 hold some 50 us more at every size (docs/calibration.md).
MEASURED_SLOWER = ("attention decode (latent)", "attention prefill (latent)")


@cache
def cost(card: str, name: str, tp: int, *, measured: bool = True) -> OperatorCost:
    return cost_model(model(name), gpu(card), find(gpu(card)) if measured else None, Deployment(tp))


@cache
def rows(card: str, name: str, tp: int, step: str, *, measured: bool = True) -> list[Row]:
    priced = cost(card, name, tp, measured=measured)
    decodes, chunks = STEPS[step]
    windowed = decodes * min(CONTEXT, priced.sliding_window or 0)
    found = breakdown(priced, decodes, decodes * CONTEXT, chunks, windowed=windowed)
    return [r for r in found if r.operator not in LINKS]


def total(found: list[Row], *without: str) -> float:
    return sum(r.seconds for r in found if r.operator not in without)


@pytest.mark.parametrize(("name", "tp"), MODELS)
@pytest.mark.parametrize("card", GPUS)
def test_a_step_lies_near_the_data_sheet_and_never_under_its_bandwidth(card: str, name: str, tp: int) -> None:
    for step in STEPS:
        measured, sheet = rows(card, name, tp, step), rows(card, name, tp, step, measured=False)
        assert 0.5 < total(measured) / total(sheet) < 2.5, step
        for r in measured:
            if r.operator.endswith("_proj") or r.operator.startswith("attention decode"):
                assert r.seconds > 0.97 * r.bytes / gpu(card).memory_bandwidth, (step, r.operator)


@pytest.mark.parametrize(("name", "tp"), MODELS)
@pytest.mark.parametrize("generations", GENERATIONS)
def test_a_faster_gpu_is_not_slower(generations: tuple[str, ...], name: str, tp: int) -> None:
    for old, new in pairwise(generations):
        for step in STEPS:
            before, after = (total(rows(card, name, tp, step), *MEASURED_SLOWER) for card in (old, new))
            assert after < 1.1 * before, (step, old, new)


@pytest.mark.parametrize(("name", "tp"), MODELS[1:3])
@pytest.mark.parametrize("card", GPUS)
def test_a_step_grows_with_batch_context_and_chunk(card: str, name: str, tp: int) -> None:
    priced = cost(card, name, tp)
    window = priced.sliding_window or 0

    def seconds(decodes: int, context: int, new: int = 0) -> float:
        chunks = ((new, 0),) if new else ()
        return priced.mixed(decodes, decodes * context, decodes * min(context, window), chunks, decodes + len(chunks))

    for series in (
        [seconds(n, 1000) for n in (1, 2, 8, 31, 64, 200, 512)],
        [seconds(32, c) for c in (1, 100, 1000, 1001, 8000, 60_000)],
        [seconds(0, 0, new) for new in (1, 16, 100, 512, 513, 2048, 8192)],
        [seconds(16, 1000, new) for new in (1, 16, 100, 512, 513, 2048, 8192)],
    ):
        assert all(b >= a * (1 - 1e-9) for a, b in pairwise(series))
