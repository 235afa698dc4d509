"""Tensor parallelism in two dimensions and with gathered weights (Pope et al.)."""

from __future__ import annotations

from dataclasses import replace
from math import sqrt

import pytest

from simulator.core.errors import UserError
from simulator.cost.memory import memory_plan
from simulator.cost.placement import Deployment
from simulator.cost.roofline import Roofline
from simulator.cost.step import OperatorCost
from simulator.cost.tensor_cuts import Block, best_cut, cut
from simulator.hardware.gpu import gpu
from simulator.model.catalogue import model

E = 16384
UNGATED = Block(E, 4 * E, 4 * E, 8.0 * E * E * 2)  # the paper's: an MLP of four times the width, bf16
TPU = gpu("tpu-v4")


def test_one_dimension_sends_the_same_however_many_there_are() -> None:
    """Section 3.2.1: ``2 B L E`` elements, but for the share that a rank has itself."""
    for ranks in (4, 16, 64):
        found = best_cut(UNGATED, 64, 2.0, ranks, "1d")
        assert found.sent_bytes == pytest.approx(2 * 64 * E * 2 * (1 - 1 / ranks), rel=1e-12)
        assert found.collectives == 2


@pytest.mark.parametrize("ranks", [16, 64, 256, 1024])
def test_two_dimensions_send_less_with_the_square_root(ranks: int) -> None:
    """``8 B L E / sqrt(n)`` elements on a grid of ``sqrt(n) / 2`` columns, again but for shares of one's own."""
    columns, rows = round(sqrt(ranks) / 2), round(2 * sqrt(ranks))
    found = cut(UNGATED, 64, 2.0, 1, columns, rows)
    whole = 8 * 64 * E / sqrt(ranks) * 2
    own = 4 * 64 * E / sqrt(ranks) * 2 * (1 / rows + 1 / columns)
    assert found.sent_bytes == pytest.approx(whole - own, rel=1e-12)
    assert best_cut(UNGATED, 64, 2.0, ranks, "2d").sent_bytes <= found.sent_bytes


def test_two_dimensions_are_ahead_beyond_a_few_chips() -> None:
    """By the paper's formulas from 16 on; what ranks have themselves moves it down a little."""
    ratio = [
        best_cut(UNGATED, 64, 2.0, n, "2d").sent_bytes / best_cut(UNGATED, 64, 2.0, n, "1d").sent_bytes
        for n in (4, 16, 64, 256)
    ]
    assert ratio[0] == 1.0
    assert 0.7 < ratio[1] <= 1.0
    assert ratio[2] < 0.55
    assert ratio[3] < 0.3


def test_weights_are_gathered_once_the_batch_is_larger_than_they_are() -> None:
    groups = [best_cut(UNGATED, tokens, 2.0, 64, "best").groups for tokens in (64, 2**12, 2**16, 2**24)]
    assert groups[0] == 1
    assert groups == sorted(groups)
    assert groups[-1] == 64
    assert best_cut(UNGATED, 2**24, 2.0, 64, "best").sent_bytes == pytest.approx(UNGATED.weight_bytes * 63 / 64)


def cost(layout: str, tp: int = 16) -> OperatorCost:
    deployment = Deployment(tp, decode_context_parallel_size=1, tensor_parallel_layout=layout)  # type: ignore[arg-type]
    return OperatorCost(model("llama-2-7b"), Roofline(TPU), deployment)


def test_steps_take_what_their_layout_sends() -> None:
    for tokens in (64, 2**16):
        one, two, best = (
            sum(e.times * e.price.seconds for e in cost(layout).token_entries(tokens))
            for layout in ("1d", "2d", "best")
        )
        assert best <= two
        assert two < one or tokens == 64  # a small message is all latency
    rows = [e for e in cost("2d").token_entries(64) if e.operator == "collectives"]
    assert sum(e.times for e in rows) == 2 * 32  # attention and MLP of each layer


def test_hidden_states_are_spread() -> None:
    plans = [
        memory_plan(
            model("llama-2-7b"), TPU, tp=8, max_num_batched_tokens=262144, max_num_seqs=8, tensor_parallel_layout=n
        )
        for n in ("1d", "2d")
    ]
    assert plans[1].activation_bytes < 0.5 * plans[0].activation_bytes


@pytest.mark.parametrize(
    ("name", "given"),
    [("Qwen/Qwen3-30B-A3B", {}), ("deepseek-v3", {}), ("llama-2-7b", {"pipeline_parallel_size": 2})],
)
def test_what_is_not_modelled_is_refused(name: str, given: dict[str, int]) -> None:
    with pytest.raises(UserError, match="1d"):
        OperatorCost(model(name), Roofline(TPU), replace(Deployment(4, tensor_parallel_layout="2d"), **given))  # type: ignore[arg-type]
