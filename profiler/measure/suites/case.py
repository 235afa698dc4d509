"""What a suite hands to the timer, and the helpers all suites share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from profiler.measure.devices import Device, Effort, Timing
from profiler.measure.kernels import dtype_of
from profiler.measure.models import DecoderShape

Tensor = Any

# Relative error a correct kernel stays below: norm of the difference over norm of the reference. Operands are rounded
# before both products, so what is left is rounding of inputs inside the kernel, of the sums and of the output.
LIMITS: Mapping[str, float] = {"fp32": 2e-4, "bf16": 2e-2, "fp16": 4e-3, "fp8": 3e-2, "int8": 1e-6}
MAX_SETS = 64  # copies of the buffers; more would only cost memory


@dataclass(slots=True)
class Case:
    """One measurement, ready. ``call(i)`` runs the operator on buffer set ``i``, modulo what there are."""

    call: Callable[[int], object]
    error: Callable[[], float] | None  # relative error of the operator's result; None: nothing to compare
    limit: float = 0.0
    flops: float = 0.0
    bytes: float = 0.0
    time: Callable[[Effort], Timing] | None = None  # instead of the device's own timer
    fields: Callable[[Timing], dict[str, Any]] | None = None  # further fields, once timed
    keep: list[Any] = field(default_factory=list)  # alive as long as the case


@dataclass(slots=True)
class Context:
    """What builders may use."""

    device: Device
    models: Mapping[str, DecoderShape]
    rotate_bytes: int
    generator: Any

    def randn(self, *size: int, dtype: str, scale: float = 1.0) -> Tensor:
        x = torch.randn(size, device=self.device.device, generator=self.generator, dtype=torch.float32)
        return (x * scale).to(dtype_of(dtype))

    def copies(self, count: int, *size: int, dtype: str, scale: float = 1.0) -> list[Tensor]:
        """Equal buffers at different addresses: drawing each anew would take longer than timing it."""
        first = self.randn(*size, dtype=dtype, scale=scale)
        return [first, *(first.clone() for _ in range(count - 1))]

    def integers(self, high: int, *size: int) -> Tensor:
        return torch.randint(high, size, device=self.device.device, generator=self.generator)

    def sets(self, set_bytes: float) -> int:
        """Copies of a call's buffers, so that none is found in a cache: together they exceed ``rotate_bytes``."""
        return max(1, min(MAX_SETS, int(self.rotate_bytes / max(set_bytes, 1)) + 1))


def relative_error(out: Tensor, reference: Tensor) -> float:
    """``|out - ref| / |ref|`` in float64; not a number or infinite values stay so and never pass."""
    difference = (out.double() - reference.double()).norm()
    return float(difference / reference.double().norm().clamp_min(1e-30))
