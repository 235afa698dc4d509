"""Which weights a token needs: contextual sparsity as an input, and the checks of it."""

from __future__ import annotations

from dataclasses import dataclass

from simulator.core.errors import ModelError
from simulator.model.architecture import Attention, Model


@dataclass(frozen=True, slots=True)
class ContextualSparsity:
    """Shares of every layer's MLP neurons and attention heads that a token needs, as predictors of low rank say.

    always: neurons and heads that every token needs, as a share of those that a token needs; which of the others it
    needs is independent from token to token. predictor_rank: width of a predictor's hidden layer.
    """

    neurons: float = 1.0
    heads: float = 1.0
    always: float = 0.0
    predictor_rank: int = 1000

    def touched(self, share: float, tokens: int) -> float:
        """Share of the weights that at least one of so many tokens needs, each needing ``share``."""
        common = share * self.always
        if common >= 1.0:
            return 1.0
        each = (share - common) / (1.0 - common)
        return common + (1.0 - common) * (1.0 - (1.0 - each) ** tokens)


def check_sparsity(model: Model, *, sizes: int, layout: str, offloaded: bool) -> None:
    """sizes: product of pipeline, data and context parallel sizes. Raises ModelError where it is not modelled."""
    dense = all(isinstance(x.attention, Attention) and x.mlp is not None and x.moe is None for x in model.layers)
    if not dense or sizes > 1 or layout != "1d" or offloaded:
        raise ModelError(
            "contextual sparsity is modelled for dense models with softmax attention, whole on tensor-parallel ranks",
            where="contextual_sparsity",
            remedy="Leave it out (neurons in host memory: engine.offload.activated).",
        )
