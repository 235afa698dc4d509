"""The price of an engine's steps with the adapters that are in them."""

from __future__ import annotations

from collections.abc import Sequence

from simulator.cost.interface import Line, StepCost, uneven_cost
from simulator.scheduling.adapters import Batch


class AdaptedCost:
    """``StepCost`` of one engine: what its adapters add changes with its batch, as the rest does."""

    def __init__(self, inner: StepCost, batch: Batch) -> None:
        self.sliding_window = inner.sliding_window
        self.uneven = uneven_cost(inner) is not None
        self._inner, self._batch = inner, batch

    def decode(  # noqa: PLR0917 - see UnevenStepCost
        self, num_decodes: int, context: int, windowed: int, growing: int, longest: int = 0, squares: int = 0
    ) -> Line:
        if self.uneven:
            line = self._inner.decode(num_decodes, context, windowed, growing, longest, squares)  # type: ignore[call-arg]
        else:
            line = self._inner.decode(num_decodes, context, windowed, growing)
        return line._replace(first=line.first + self._batch.decode_s())

    def mixed(  # noqa: PLR0917
        self, num_decodes: int, context: int, windowed: int, chunks: Sequence[tuple[int, int]], num_sampled: int,
        longest: int = 0, squares: int = 0,
    ) -> float:  # fmt: skip
        if self.uneven:
            seconds = self._inner.mixed(  # type: ignore[call-arg]
                num_decodes, context, windowed, chunks, num_sampled, longest, squares
            )
        else:
            seconds = self._inner.mixed(num_decodes, context, windowed, chunks, num_sampled)
        return seconds + self._batch.mixed_s(decodes=num_decodes > 0)
