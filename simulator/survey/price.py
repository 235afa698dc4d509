"""Step times by published coefficients."""

from __future__ import annotations

from collections.abc import Sequence

from simulator.cost.interface import Line
from simulator.cost.step import OperatorCost
from simulator.survey.spec import PublishedPrice

FOREVER = 1 << 30
MS = 1e-3


class PublishedCost:
    """``StepCost`` of coefficients (ms) for steps that prefill, and others for steps that decode.

    prefill: ``a + b Σ n + c Σ n²``, decode: ``a + b Σ context + c batch``, with another set for large batches: the form
    of DistServe's estimators (Zhong et al., OSDI 2024, arXiv:2401.09670; ``simdistserve/estimators``). A step that
    does both is the sum of the two less the smaller constant, which it pays once.
    """

    sliding_window: int | None = None

    def __init__(self, price: PublishedPrice, instead_of: OperatorCost) -> None:
        """instead_of: the engine's own cost model, whose other answers (bytes of KV, sources) still hold."""
        self.price = price
        self.placed, self.operators, self.overhead = instead_of.placed, instead_of.operators, instead_of.overhead

    def _decode_set(self, num_decodes: int) -> tuple[float, float, float]:
        price = self.price
        large = price.decode_large is not None and num_decodes >= price.large_batch
        return price.decode_large if large and price.decode_large is not None else price.decode

    def decode(self, num_decodes: int, context: int, windowed: int, growing: int) -> Line:
        a, b, c = self._decode_set(num_decodes)
        return Line((a + b * context + c * num_decodes) * MS, b * num_decodes * MS, FOREVER)

    def mixed(
        self, num_decodes: int, context: int, windowed: int, chunks: Sequence[tuple[int, int]], num_sampled: int
    ) -> float:
        """A chunk's square counts its pairs with the tokens before it, so that chunks add up to the whole prompt."""
        if not chunks:
            return self.decode(num_decodes, context, windowed, 0).first
        a, b, c = self.price.prefill
        total = a + sum(new * (b + c * (new + 2 * computed)) for new, computed in chunks)
        if num_decodes:
            base, per_context, per_decode = self._decode_set(num_decodes)
            total += per_context * context + per_decode * num_decodes + base - min(a, base)
        return total * MS
