"""What the engine asks of a cost model. Roofline, fitted calibrations and test models all answer it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, cast


class Line(NamedTuple):
    """Durations of the coming decode steps: step ``j`` lasts ``first + increment * j``, for ``j < valid_steps``."""

    first: float  # s
    increment: float  # s per step
    valid_steps: int  # >= 1; the price bends after that many steps


class StepCost(Protocol):
    """Prices engine steps. Pure: the same arguments give the same seconds."""

    sliding_window: int | None
    """Window of the model's sliding-window layers (tokens), None when no layer has one. The engine then keeps a
    second sum: contexts clipped to the window."""

    def decode(self, num_decodes: int, context: int, windowed: int, growing: int) -> Line:
        """Consecutive pure-decode steps of a constant batch.

        context: sum over requests of the KV length after this step's token (tokens); grows by ``num_decodes`` a step.
        windowed: the same sum with each length clipped to ``sliding_window``; grows by ``growing`` a step (the
        requests still shorter than the window; the engine ends the span when one reaches it). 0, 0 without window.
        """
        ...

    def mixed(
        self, num_decodes: int, context: int, windowed: int, chunks: Sequence[tuple[int, int]], num_sampled: int
    ) -> float:
        """One step with prefill chunks, in seconds.

        chunks: ``(new_tokens, computed_tokens)`` per prefilling request; attention of a chunk spans both.
        num_sampled: sequences that need logits (decodes and chunks that complete their prompt).
        """
        ...


class UnevenStepCost(StepCost, Protocol):
    """A ``StepCost`` to which it matters how unequal the contexts are. The engine then keeps two more numbers."""

    uneven: bool
    """False: what these numbers are does not matter after all, and the engine need not keep them."""

    def decode(  # noqa: PLR0917 - one more kind of sum
        self, num_decodes: int, context: int, windowed: int, growing: int, longest: int = 0, squares: int = 0
    ) -> Line:
        """longest: KV length of the longest request after this step's token; 0: all are equal.
        squares: sum of the squared KV lengths. Both are of layers that see everything; the price may hold them for
        as many steps as it is valid for.
        """
        ...

    def mixed(  # noqa: PLR0917
        self, num_decodes: int, context: int, windowed: int, chunks: Sequence[tuple[int, int]], num_sampled: int,
        longest: int = 0, squares: int = 0,
    ) -> float:  # fmt: skip
        """longest, squares: of the decodes, as above."""
        ...


def uneven_cost(cost: StepCost) -> UnevenStepCost | None:
    """``cost`` if it wants to know how unequal contexts are."""
    return cast("UnevenStepCost", cost) if getattr(cost, "uneven", False) else None
