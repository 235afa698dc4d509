"""Kernels other than the ones a GPU was measured with: the same operators at another speed.

For what a paper says of a kernel ("1.5 to 2 times FlashAttention-2"), and for asking how much a faster one would be
worth in a whole engine. Whatever the speed, nothing beats the GPU's peaks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from simulator.cost.operators import ChunkSeconds, Curve, Operators, Price
from simulator.cost.shapes import AttentionShape, prefill_physics
from simulator.hardware.gpu import Link
from simulator.model.formats import WeightFormat


@dataclass(frozen=True, slots=True)
class KernelSpeed:
    """Speed of operators over that of the calibration (or data sheet): 2 is twice as fast, 0.5 half as fast.

    gemm_max_tokens: ``gemm`` holds for products of up to so many tokens; 0: for all. Launches are not changed.
    """

    gemm: float = 1.0
    gemm_max_tokens: int = 0
    experts: float = 1.0
    prefill_attention: float = 1.0
    decode_attention: float = 1.0
    elementwise: float = 1.0
    communication: float = 1.0

    @property
    def as_measured(self) -> bool:
        return all(getattr(self, f.name) == f.default for f in fields(self) if f.name != "gemm_max_tokens")


class OtherKernels:
    """``Operators`` that run at ``speed`` times those of ``inner``."""

    def __init__(self, inner: Operators, speed: KernelSpeed) -> None:
        self.inner, self.gpu, self._speed = inner, inner.gpu, speed

    def _faster(self, price: Price, speed: float, peak: float) -> Price:
        """Never under what the price's own FLOPs and bytes take at the peaks."""
        if speed == 1.0:
            return price
        floor = max(price.flops / peak, price.bytes / self.gpu.memory_bandwidth)
        # What is measured under the data sheet's floor (bytes that stay in the cache) is not slowed by it.
        return price._replace(seconds=max(price.seconds / speed, min(floor, price.seconds)))

    def gemm(self, m: int, n: int, k: int, fmt: WeightFormat, activation_bytes: float) -> Price:
        price = self.inner.gemm(m, n, k, fmt, activation_bytes)
        limit = self._speed.gemm_max_tokens
        speed = self._speed.gemm if not limit or m <= limit else 1.0
        return self._faster(price, speed, self.gpu.peak(fmt.math)[1])

    def experts(  # noqa: PLR0917 - the shape of the operator
        self, tokens: int, visits: float, num_experts: int, shapes: Sequence[tuple[int, int]], fmt: WeightFormat,
        activation_bytes: float, all_visits: float | None = None,
    ) -> Price:  # fmt: skip
        price = self.inner.experts(tokens, visits, num_experts, shapes, fmt, activation_bytes, all_visits)
        return self._faster(price, self._speed.experts, self.gpu.peak(fmt.math)[1])

    def elementwise(self, size_bytes: float, kernels: int) -> Price:
        price = self.inner.elementwise(size_bytes, kernels)
        return price._replace(seconds=price.seconds / self._speed.elementwise)

    def all_reduce(self, size_bytes: float, size: int) -> Price:
        return self._sent(self.inner.all_reduce(size_bytes, size), self.gpu.group_link(size))

    def all_gather(self, size_bytes: float, size: int) -> Price:
        return self._sent(self.inner.all_gather(size_bytes, size), self.gpu.group_link(size))

    def send(self, size_bytes: float, link: Link) -> Price:
        return self._sent(self.inner.send(size_bytes, link), link)

    def _sent(self, price: Price, link: Link) -> Price:
        floor = min(price.bytes / link.bandwidth, price.seconds)
        return price._replace(seconds=max(price.seconds / self._speed.communication, floor))

    def decode_attention(self, shape: AttentionShape, num_decodes: int) -> Curve:
        curve, speed = self.inner.decode_attention(shape, num_decodes), self._speed.decode_attention
        if speed == 1.0:
            return curve
        floor = max(
            shape.flops_per_context / self.gpu.peak("bf16")[1], shape.bytes_per_context / self.gpu.memory_bandwidth
        )
        slopes = [max(slope / speed, min(floor, slope)) for slope in curve.slope]
        bases = [curve.base[0] / speed]
        for knot, left, right in zip(curve.knots, slopes, slopes[1:], strict=False):
            bases.append(bases[-1] + (left - right) * knot)  # continuous where segments meet
        return Curve(tuple(bases), tuple(slopes), curve.knots)

    def prefill_launch(self, shape: AttentionShape) -> float:
        return self.inner.prefill_launch(shape)

    def prefill_attention(self, shape: AttentionShape) -> ChunkSeconds:
        measured, speed = self.inner.prefill_attention(shape), self._speed.prefill_attention
        if speed == 1.0:
            return measured
        peak, bandwidth = self.gpu.peak("bf16")[1], self.gpu.memory_bandwidth

        def seconds(new: int, computed: int) -> float:
            before = measured(new, computed)
            flops, size = prefill_physics(shape, new, computed)
            return max(before / speed, min(max(flops / peak, size / bandwidth), before))

        return seconds
