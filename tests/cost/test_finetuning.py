"""Fine-tuning beside inference: what steps last and what the job gets done in them."""

from __future__ import annotations

import pytest

from simulator.cost.finetuning import Finetuning, FinetuningCost
from simulator.cost.overhead import EngineOverhead
from simulator.cost.roofline import RooflineCost
from simulator.hardware.gpu import gpu
from simulator.model.catalogue import model
from simulator.model.weights import parameters

H100 = gpu("H100-SXM")
LLAMA = model("meta-llama/Llama-3.1-8B")
PLAIN = RooflineCost(LLAMA, H100, overhead=EngineOverhead(graph_sizes=()))
JOB = Finetuning(step_s=0.04, share=None, sequence_tokens=4096)
COST = FinetuningCost(PLAIN, JOB)


def test_steps_with_room_are_filled_and_others_stay() -> None:
    line = COST.decode(32, 32_000, 0, 0)
    assert line.first == 0.04
    assert line.increment == 0.0
    busy = COST.decode(512, 4_000_000, 0, 0)
    assert busy == PLAIN.decode(512, 4_000_000, 0, 0)
    assert busy.first > 0.04
    assert COST.mixed(32, 32_000, 0, [(256, 0)], 33) == 0.04
    long = COST.mixed(32, 32_000, 0, [(8192, 0)], 33)
    assert long == PLAIN.mixed(32, 32_000, 0, [(8192, 0)], 33) > 0.04


def test_a_filled_step_holds_until_inference_alone_needs_it() -> None:
    """Contexts grow until no token of the job fits: there the line ends."""
    line = COST.decode(256, 256_000, 0, 0)
    assert 1 < line.valid_steps < 1 << 40
    last = PLAIN.decode(256, 256_000 + 256 * (line.valid_steps - 1), 0, 0).first
    assert last < 0.04
    assert COST.decode(256, 256_000 + 256 * (line.valid_steps + 1), 0, 0).first <= 0.04 + 1e-3


def test_what_fits_takes_the_rest_of_the_step() -> None:
    tokens = COST.tokens_of_step(32, 32_000, 0, 0)
    alone = PLAIN.decode(32, 32_000, 0, 0).first
    with_job = alone + COST._extra(tokens, 32, 32)
    assert with_job <= 0.04
    assert with_job == pytest.approx(0.04, rel=0.03)
    # Two passes of two FLOPs per parameter and trained token, at most at the GPU's peak.
    matrices = parameters(LLAMA).active
    assert tokens / 2 * 4 * matrices < (0.04 - 0.2 * alone) * H100.peak("bf16")[1]


def test_requests_take_from_the_job_less_than_their_own_time() -> None:
    """Decodes are bound by memory: the job computes beside them, so it loses less than the share they would need."""
    free, beside = COST.tokens_of_step(0, 0, 0, 0), COST.tokens_of_step(32, 32_000, 0, 0)
    alone = PLAIN.decode(32, 32_000, 0, 0).first / 0.04
    assert 1.0 - alone < beside / free < 1.0
    assert COST.tokens_of_step(64, 64_000, 0, 512) < beside
    assert COST.tokens_of_step(512, 4_000_000, 0, 0) == 0


def test_time_slices_stretch_every_step() -> None:
    cost = FinetuningCost(PLAIN, Finetuning(0.04, 0.2, 4096))
    for got, plain in (
        (cost.decode(8, 8_000, 0, 0).first, PLAIN.decode(8, 8_000, 0, 0).first),
        (cost.mixed(8, 8_000, 0, [(512, 0)], 9), PLAIN.mixed(8, 8_000, 0, [(512, 0)], 9)),
    ):
        assert got == pytest.approx(1.25 * plain)
