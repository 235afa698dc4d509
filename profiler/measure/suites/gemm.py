"""Dense products ``(m, k) x (n, k)^T`` in every format the device multiplies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812

from profiler.measure.errors import Unmeasurable
from profiler.measure.kernels import dtype_of
from profiler.measure.suites.case import LIMITS, Case, Context, Tensor, relative_error

WIDTH = {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1, "int8": 1}
SAMPLE = 64  # rows and columns compared with the reference


def product(x: Tensor, weight: Tensor, scale: Tensor | None) -> Tensor:
    """As engines call it: linear; ``_scaled_mm`` in fp8 (per-tensor scales, bf16 out); int8 to int32."""
    if x.dtype == torch.int8:
        return torch._int_mm(x, weight.t())  # noqa: SLF001 - the only int8 product torch has
    if scale is not None:
        return torch._scaled_mm(x, weight.t(), scale_a=scale, scale_b=scale, out_dtype=torch.bfloat16)  # noqa: SLF001
    return F.linear(x, weight)


def build(point: Mapping[str, Any], ctx: Context) -> Case:
    m, n, k, dtype = point["m"], point["n"], point["k"], point["dtype"]
    dtype_of(dtype)
    if dtype == "int8" and ctx.device.is_cuda and (m <= 16 or k % 8 or n % 8):
        raise Unmeasurable("torch._int_mm on CUDA needs more than 16 rows and multiples of 8")
    if dtype == "fp8" and (n % 16 or k % 16):
        raise Unmeasurable("torch._scaled_mm needs multiples of 16")
    set_bytes = WIDTH[dtype] * (m * k + n * k)
    count = ctx.sets(set_bytes)
    xs = _operands(ctx, count, m, k, dtype, 1.0)
    weights = _operands(ctx, count, n, k, dtype, k**-0.5 if dtype not in ("fp8", "int8") else 1.0)
    scale = torch.ones((), device=ctx.device.device) if dtype == "fp8" else None
    out_bytes = {"int8": 4, "fp8": 2}.get(dtype, WIDTH[dtype])

    def error() -> float:
        rows, columns = slice(0, SAMPLE), ctx.integers(n, min(n, SAMPLE))
        wide = torch.float64 if dtype in ("fp32", "int8") else torch.float32
        reference = xs[0][rows].to(wide) @ _rows(weights[0], columns).to(wide).t()
        return relative_error(product(xs[0], weights[0], scale)[rows][:, columns], reference)

    return Case(
        call=lambda i: product(xs[i % count], weights[i % count], scale),
        error=error,
        limit=LIMITS[dtype],
        flops=2.0 * m * n * k,
        bytes=float(set_bytes + m * n * out_bytes),
    )


def _rows(weight: Tensor, index: Tensor) -> Tensor:
    """Rows of a matrix; 8-bit floats are picked as bytes, since indexing knows no such type everywhere."""
    if weight.element_size() == 1:
        return weight.view(torch.uint8)[index].view(weight.dtype)
    return weight[index]


def _operands(ctx: Context, count: int, rows: int, columns: int, dtype: str, scale: float) -> list[Tensor]:
    if dtype == "int8":
        first = (ctx.integers(255, rows, columns) - 127).to(torch.int8)
        return [first, *(first.clone() for _ in range(count - 1))]
    return ctx.copies(count, rows, columns, dtype=dtype, scale=scale)
