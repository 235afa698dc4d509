"""Prompts whose chunks do not attend to each other: only what follows them sees them all.

Parallel context windows (Ratner et al., ACL 2023, arXiv:2212.10947) and Sparse RAG (Zhu et al., arXiv:2405.16178)
encode retrieved documents side by side: attention over ``k`` documents of ``n`` tokens costs ``k n^2`` instead of
``(k n)^2``, halves of both, while every other operator sees the same tokens. A step's price is told so by cutting the
tokens that a request computes where its chunks begin: each piece attends to its own chunk alone.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from simulator.scheduling.request import Request
from simulator.scheduling.state import EngineState
from simulator.scheduling.step import Step

Ints = NDArray[np.int64]
State = TypeVar("State", bound=EngineState)


class Bounds:
    """Where the chunks of each request end. offsets, tokens: as in a trace's chunks."""

    def __init__(self, offsets: Ints, tokens: Ints) -> None:
        self._offsets, self._tokens = offsets, tokens

    def pieces(self, row: int, computed: int, tokens: int) -> list[tuple[int, int]]:
        """(tokens, tokens they attend to before themselves) of what is computed after the first ``computed``."""
        found: list[tuple[int, int]] = []
        begin, last = 0, computed + tokens
        for length in self._tokens[self._offsets[row] : self._offsets[row + 1]].tolist():
            end = begin + length
            first = max(begin, computed)
            if first < min(end, last):
                found.append((min(end, last) - first, first - begin))
            begin = end
        first = max(begin, computed)
        if first < last:
            found.append((last - first, first))
        return found


def side_by_side(state: type[State], bounds: Bounds) -> type[State]:
    """The same state, whose steps say how far each token looks back."""

    class Parallel(state):  # type: ignore[valid-type,misc]  # mypy wants a literal base
        __slots__ = ()

        def chunk(self, request: Request, tokens: int, step: Step) -> None:
            computed = request.computed
            super().chunk(request, tokens, step)
            step.chunks[-1:] = bounds.pieces(request.row, computed, tokens)

    return Parallel
