"""Step costs in closed form, without a model or a GPU: for tests, benchmarks and published coefficients."""

from __future__ import annotations

from collections.abc import Sequence

from simulator.cost.interface import Line

FOREVER = 1 << 40  # steps: the price never bends


class FixedCost:
    """``base_s + per_token_s x tokens in the step``, whatever their context."""

    sliding_window: int | None = None

    def __init__(self, base_s: float, per_token_s: float) -> None:
        self.base_s, self.per_token_s = base_s, per_token_s

    def decode(self, num_decodes: int, context: int, windowed: int, growing: int) -> Line:
        del context, windowed, growing
        return Line(self.base_s + self.per_token_s * num_decodes, 0.0, FOREVER)

    def mixed(
        self, num_decodes: int, context: int, windowed: int, chunks: Sequence[tuple[int, int]], num_sampled: int
    ) -> float:
        del context, windowed, num_sampled
        tokens = num_decodes
        for new, _ in chunks:
            tokens += new
        return self.base_s + self.per_token_s * tokens


class LinearCost:
    """Linear in what a step holds, with a quadratic prefill term. All coefficients in seconds.

    ``base + per_prefill_token x n + per_prefill_token_squared x (n² + 2 n computed) + per_decode x decodes +
    per_context_token x Σ context of decodes`` with ``n`` summed over chunks. The square of a chunk counts its pairs
    with the tokens computed before it, so splitting a prompt into chunks keeps the total. DistServe (arXiv:2401.09670,
    appendix A) and Splitwise (arXiv:2311.18677) publish coefficients of this form.
    """

    sliding_window: int | None = None

    def __init__(
        self,
        base: float,
        per_prefill_token: float,
        per_decode: float,
        per_context_token: float,
        per_prefill_token_squared: float = 0.0,
    ) -> None:
        self.base, self.per_prefill_token, self.per_decode = base, per_prefill_token, per_decode
        self.per_context_token, self.per_prefill_token_squared = per_context_token, per_prefill_token_squared

    def decode(self, num_decodes: int, context: int, windowed: int, growing: int) -> Line:
        del windowed, growing
        first = self.base + self.per_decode * num_decodes + self.per_context_token * context
        return Line(first, self.per_context_token * num_decodes, FOREVER)

    def mixed(
        self, num_decodes: int, context: int, windowed: int, chunks: Sequence[tuple[int, int]], num_sampled: int
    ) -> float:
        del windowed, num_sampled
        seconds = self.base + self.per_decode * num_decodes + self.per_context_token * context
        for new, computed in chunks:
            seconds += new * (self.per_prefill_token + self.per_prefill_token_squared * (new + 2 * computed))
        return seconds
