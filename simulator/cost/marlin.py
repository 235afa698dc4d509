"""Experts in mxfp4 that Marlin kernels dequantise and multiply in 16 bits (VLLM_MXFP4_USE_MARLIN, or vLLM's choice).

With few rows per expert any kernel waits for the same weights, so the measured mxfp4 kernels stand for Marlin; with
many, Marlin multiplies about half as fast as they do, and the measured int4 kernels, which are Marlin's, stand for it.
Between 16 and 64 rows per expert (one tile of rows, and enough of them to be bound by compute) logarithms are blended.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from simulator.cost.operators import Operators, Price
from simulator.model.formats import weight_format

FEW, MANY = 16.0, 64.0


def marlin_experts(
    operators: Operators, tokens: int, visits: float, num_experts: int, shapes: Sequence[tuple[int, int]], wide: float
) -> Price:
    """As ``Operators.experts``; never faster than the kernels of the same weights that do not dequantise apart."""
    light, heavy = (
        operators.experts(tokens, visits, num_experts, shapes, weight_format(name), wide) for name in ("mxfp4", "int4")
    )
    rows = tokens * visits / num_experts
    share = min(max(math.log(rows / FEW) / math.log(MANY / FEW), 0.0), 1.0)
    blended = light.seconds ** (1.0 - share) * heavy.seconds**share
    return light if blended <= light.seconds else heavy._replace(seconds=blended)
