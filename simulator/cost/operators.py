"""The seam between a step's operators and what their seconds come from.

``OperatorCost`` (see ``step.py``) asks these questions; ``Roofline`` answers them from data-sheet peaks and constant
efficiencies. A fitted calibration answers the same ones with corrections over shape.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from simulator.cost.shapes import AttentionShape
from simulator.hardware.gpu import Gpu, Link
from simulator.model.formats import WeightFormat

Bound = Literal["compute", "memory", "latency", "network"]


class Price(NamedTuple):
    """Seconds of one operator and the physics behind them."""

    seconds: float
    flops: float
    bytes: float  # of device memory, or sent over a link when bound by the network
    bound: Bound


@dataclass(frozen=True, slots=True)
class Curve:
    """Seconds as a function of the context sum ``c``, piecewise linear and continuous.

    Segment ``i`` (``base[i] + slope[i] * c``) holds for ``knots[i-1] <= c <= knots[i]``; the last one has no end, so
    ``len(knots) == len(base) - 1``.
    """

    base: tuple[float, ...]
    slope: tuple[float, ...]
    knots: tuple[float, ...] = ()

    def segment(self, context: float) -> tuple[float, float, float]:
        """(base, slope, end) of the segment ``context`` falls in."""
        i = bisect_left(self.knots, context)
        return self.base[i], self.slope[i], self.knots[i] if i < len(self.knots) else float("inf")

    def at(self, context: float) -> float:
        base, slope, _ = self.segment(context)
        return base + slope * context


def sum_curves(curves: Sequence[tuple[int, Curve]]) -> Curve:
    """Sum of ``count x curve``."""
    knots = sorted({k for _, curve in curves for k in curve.knots})
    base, slope = [], []
    for i in range(len(knots) + 1):
        # Any point inside the segment names each curve's own segment.
        low = knots[i - 1] if i else knots[0] - 1 if knots else 0.0
        high = knots[i] if i < len(knots) else low + 2
        parts = [(n, curve.segment((low + high) / 2)) for n, curve in curves]
        base.append(sum(n * p[0] for n, p in parts))
        slope.append(sum(n * p[1] for n, p in parts))
    return Curve(tuple(base), tuple(slope), tuple(knots))


ChunkSeconds = Callable[[int, int], float]
"""(new_tokens, computed_tokens) -> seconds of one chunk through one layer, kernel launch apart."""


class Operators(Protocol):
    """Prices operators on one GPU. Every answer is pure, finite, positive and no faster than the GPU's peaks allow."""

    gpu: Gpu

    def gemm(self, m: int, n: int, k: int, fmt: WeightFormat, activation_bytes: float) -> Price:
        """``m`` tokens through an ``n x k`` weight."""
        ...

    def experts(  # noqa: PLR0917 - the shape of the operator
        self, tokens: int, visits: float, num_experts: int, shapes: Sequence[tuple[int, int]], fmt: WeightFormat,
        activation_bytes: float, all_visits: float | None = None,
    ) -> Price:  # fmt: skip
        """A grouped GEMM: ``tokens`` rows, each through ``visits`` of ``num_experts`` experts on average (all on this
        rank), every expert being the ``(n, k)`` matrices in ``shapes``. Routing and permutation included.

        all_visits: experts a token visits on all ranks together, whose rows some kernels move too; None: ``visits``.
        """
        ...

    def elementwise(self, size_bytes: float, kernels: int) -> Price:
        """Norms, rotary embedding, activations, sampling: bytes moved by ``kernels`` kernels."""
        ...

    def all_reduce(self, size_bytes: float, size: int) -> Price:
        """Sum of a buffer over ``size`` ranks."""
        ...

    def all_gather(self, size_bytes: float, size: int) -> Price:
        """Each of ``size`` ranks contributes ``size_bytes / size``."""
        ...

    def send(self, size_bytes: float, link: Link) -> Price:
        """Point to point."""
        ...

    def decode_attention(self, shape: AttentionShape, num_decodes: int) -> Curve:
        """One layer over the sum of contexts of ``num_decodes`` sequences."""
        ...

    def prefill_launch(self, shape: AttentionShape) -> float:
        """Seconds of the prefill kernel of one layer that do not depend on the chunks."""
        ...

    def prefill_attention(self, shape: AttentionShape) -> ChunkSeconds:
        """One layer; the function returned is on the hot path."""
        ...
