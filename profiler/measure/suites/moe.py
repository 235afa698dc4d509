"""A whole mixture-of-experts block: router, permutation, grouped products, weighted sum."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812

from profiler.measure import kernels
from profiler.measure.suites.case import LIMITS, Case, Context, Tensor, relative_error
from profiler.measure.suites.gemm import WIDTH

SKEW = 1.0  # exponent of the power law of skewed routing: expert e is chosen in proportion to 1 / (e + 1)


def build(point: Mapping[str, Any], ctx: Context) -> Case:
    tokens, hidden, inter, experts, top_k = (point[x] for x in ("tokens", "hidden", "inter", "experts", "top_k"))
    dtype, grouped = point["dtype"], point["backend"] == "grouped_mm"
    choice = route(tokens, experts, top_k, point["routing"], ctx)
    touched = int(choice.unique().numel())
    used = touched * 3 * hidden * inter * WIDTH[dtype]
    count = min(4, ctx.sets(used))  # experts fill the memory soon
    router = ctx.randn(experts, hidden, dtype=dtype, scale=hidden**-0.5)
    up = ctx.copies(count, experts, 2 * inter, hidden, dtype=dtype, scale=hidden**-0.5)
    down = ctx.copies(count, experts, hidden, inter, dtype=dtype, scale=inter**-0.5)
    x = ctx.randn(tokens, hidden, dtype=dtype)

    def call(i: int) -> Tensor:
        return kernels.moe(x, router, up[i % count], down[i % count], top_k, grouped=grouped, choice=choice)

    def error() -> float:
        rows = min(tokens, 16)
        return relative_error(call(0)[:rows], reference(x[:rows], router, up[0], down[0], choice[:rows]))

    work = 2.0 * tokens * (top_k * 3 * hidden * inter + experts * hidden)
    moved = used + WIDTH[dtype] * (experts * hidden + tokens * (2 * hidden + top_k * (2 * hidden + 3 * inter)))
    return Case(call, error, 2 * LIMITS[dtype], work, float(moved), fields=lambda _: {"touched": touched})


def route(tokens: int, experts: int, top_k: int, routing: str, ctx: Context) -> Tensor:
    """``(tokens, top_k)`` different experts per token: in turn, drawn evenly, or from a power law."""
    if routing == "balanced":
        first = torch.arange(tokens, device=ctx.device.device)[:, None] * top_k
        return (first + torch.arange(top_k, device=ctx.device.device)) % experts
    if routing == "uniform":
        weights = torch.ones(experts, device=ctx.device.device)
        return torch.multinomial(weights.expand(tokens, experts), top_k, generator=ctx.generator)
    weights = (torch.arange(1, experts + 1, device=ctx.device.device, dtype=torch.float32)) ** -SKEW
    return torch.multinomial(weights.expand(tokens, experts), top_k, generator=ctx.generator)


def reference(x: Tensor, router: Tensor, up: Tensor, down: Tensor, choice: Tensor) -> Tensor:
    """Token by token in float64."""
    out = torch.zeros(x.shape, dtype=torch.float64, device=x.device)
    scores = F.linear(x, router).double().gather(1, choice).softmax(-1)
    for t in range(x.shape[0]):
        for j, expert in enumerate(choice[t].tolist()):
            gate, value = (up[expert].double() @ x[t].double()).chunk(2)
            out[t] += scores[t, j] * (down[expert].double() @ (F.silu(gate) * value))
    return out
