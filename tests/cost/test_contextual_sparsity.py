"""Contextual sparsity: one token's gain, the union that takes it back, and where steps are dense to the bit."""

from __future__ import annotations

import numpy as np
import pytest

from simulator.core.errors import ModelError
from simulator.cost.calibrated import cost_model
from simulator.cost.contextual_sparsity import SparseCost
from simulator.cost.placement import Deployment
from simulator.cost.sparsity import ContextualSparsity
from simulator.cost.step import OperatorCost
from simulator.hardware.gpu import gpu
from simulator.model.catalogue import model

A100 = gpu("A100-SXM-80GB")
OPT = model("facebook/opt-175b")


def cost(sparsity: ContextualSparsity | None, **given: int) -> OperatorCost:
    return cost_model(OPT, A100, None, Deployment(8, sparsity=sparsity, **given))  # type: ignore[arg-type]


DENSE = cost(None)
SPARSE = cost(ContextualSparsity(0.2, 0.35))


def ratio(n: int) -> float:
    return DENSE.decode(n, 100 * n, 0, 0).first / SPARSE.decode(n, 100 * n, 0, 0).first


def test_what_a_batch_needs_is_the_union() -> None:
    """Against draws: 20,000 neurons, every one of 7 tokens needs 10 %, 40 % of which are everybody's."""
    sparsity = ContextualSparsity(0.1, always=0.4)
    rng, size = np.random.default_rng(0), 20_000
    common = int(0.04 * size)
    each = (0.1 - 0.04) / (1 - 0.04)
    needed = rng.random((7, size)) < each
    needed[:, :common] = True
    assert needed.any(axis=0).mean() == pytest.approx(sparsity.touched(0.1, 7), rel=0.03)
    assert needed[0].mean() == pytest.approx(sparsity.touched(0.1, 1), rel=0.05)
    assert sparsity.touched(0.1, 1) == pytest.approx(0.1)
    assert ContextualSparsity(0.1, always=1.0).touched(0.1, 1000) == pytest.approx(0.1)  # all need the same
    assert ContextualSparsity(0.1).touched(0.1, 1000) == pytest.approx(1.0)


def test_the_gain_of_one_token_is_the_weights_left_out() -> None:
    """No more than the bytes of layers over those that are read, and most of that."""
    most = 3 / (0.35 + 2 * 0.2)  # a third of a layer's weights is attention's
    assert 0.4 * most < ratio(1) < most


def test_the_gain_goes_with_the_batch_and_never_below_one() -> None:
    gains = [ratio(n) for n in (1, 2, 4, 8, 16, 64, 512)]
    assert gains == sorted(gains, reverse=True)
    assert gains[-1] == 1.0
    prompt = [(2048, 0)]
    assert SPARSE.mixed(0, 0, 0, prompt, 1) == DENSE.mixed(0, 0, 0, prompt, 1)


def test_neurons_that_everybody_needs_keep_the_gain() -> None:
    alike = cost(ContextualSparsity(0.2, 0.35, always=1.0))
    assert DENSE.decode(16, 1600, 0, 0).first / alike.decode(16, 1600, 0, 0).first > 1.5 > ratio(16)


def test_predictors_cost_time_and_memory() -> None:
    wide = cost(ContextualSparsity(0.2, 0.35, predictor_rank=4000))
    assert wide.decode(1, 100, 0, 0).first > SPARSE.decode(1, 100, 0, 0).first
    assert isinstance(SPARSE, SparseCost)
    hidden, heads = OPT.hidden_size, 96
    assert SPARSE.predictor_bytes == 96 * 1000 * (hidden + 4 * hidden // 8 + hidden + heads // 8) * 2


def test_what_is_not_modelled_is_refused() -> None:
    with pytest.raises(ModelError, match="contextual sparsity"):
        cost(ContextualSparsity(0.2), pipeline_parallel_size=2)
    with pytest.raises(ModelError, match="dense models"):
        cost_model(model("mistralai/Mixtral-8x7B-v0.1"), A100, None, Deployment(8, sparsity=ContextualSparsity(0.2)))
