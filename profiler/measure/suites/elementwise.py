"""Norms, rotary embedding, activation, embedding look-up, sampling: small kernels bound by bytes or by their launch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812

from profiler.measure import kernels
from profiler.measure.suites.case import LIMITS, Case, Context, Tensor, relative_error
from profiler.measure.suites.gemm import WIDTH

Made = tuple[Callable[[int], Tensor], Callable[[], float], float, int]
"""(call, relative error of call(0), bytes moved, kernels launched)."""


def build(point: Mapping[str, Any], ctx: Context) -> Case:
    call, error, size, launches = MAKERS[point["kernel"]](point, ctx)
    limit = 1e-9 if point["kernel"].startswith("sample") else LIMITS[point["dtype"]]
    return Case(call, error, limit, bytes=size, fields=lambda _: {"kernels": launches})


def _against(call: Callable[[int], Tensor], reference: Callable[[], Tensor]) -> Callable[[], float]:
    return lambda: relative_error(call(0), reference())


def _inputs(point: Mapping[str, Any], ctx: Context, width: int) -> list[Tensor]:
    size = point["tokens"] * width * WIDTH[point["dtype"]]
    return ctx.copies(ctx.sets(size), point["tokens"], width, dtype=point["dtype"])


def _norm64(x: Tensor, weight: Tensor) -> Tensor:
    x = x.double()
    return x * (x.pow(2).mean(-1, keepdim=True) + 1e-5).rsqrt() * weight.double()


def _rms_norm(point: Mapping[str, Any], ctx: Context) -> Made:
    xs, weight = _inputs(point, ctx, point["width"]), ctx.randn(point["width"], dtype=point["dtype"])
    size = 2.0 * xs[0].numel() * WIDTH[point["dtype"]]

    def call(i: int) -> Tensor:
        return kernels.rms_norm(xs[i % len(xs)], weight)

    return call, _against(call, lambda: _norm64(xs[0], weight)), size, 1


def _add_rms_norm(point: Mapping[str, Any], ctx: Context) -> Made:
    xs, weight = _inputs(point, ctx, point["width"]), ctx.randn(point["width"], dtype=point["dtype"])
    residual = ctx.randn(point["tokens"], point["width"], dtype=point["dtype"])

    def call(i: int) -> Tensor:
        return kernels.rms_norm(xs[i % len(xs)] + residual, weight)

    size = 5.0 * xs[0].numel() * WIDTH[point["dtype"]]
    return call, _against(call, lambda: _norm64(xs[0] + residual, weight)), size, 2


def _silu_mul(point: Mapping[str, Any], ctx: Context) -> Made:
    xs = _inputs(point, ctx, 2 * point["width"])

    def call(i: int) -> Tensor:
        return kernels.silu_mul(xs[i % len(xs)])

    def reference() -> Tensor:
        gate, up = xs[0].double().chunk(2, -1)
        return F.silu(gate) * up

    size = 5.0 * point["tokens"] * point["width"] * WIDTH[point["dtype"]]
    return call, _against(call, reference), size, 2


def _rope(point: Mapping[str, Any], ctx: Context) -> Made:
    """Rotation of queries and keys, keys and values to the cache."""
    heads, kv, dim, tokens = point["heads"], point["kv_heads"], point["head_dim"], point["tokens"]
    qkvs = [x.view(tokens, heads + 2 * kv, dim) for x in _inputs(point, ctx, (heads + 2 * kv) * dim)]
    cos, sin = kernels.rope_tables(max(tokens, 2), dim, 10_000.0, ctx.device.device, qkvs[0].dtype)
    cos, sin = cos[:tokens, None], sin[:tokens, None]
    cache = [torch.zeros(2 * tokens, kv, dim, device=ctx.device.device, dtype=qkvs[0].dtype) for _ in range(2)]
    slots = torch.randperm(2 * tokens, generator=ctx.generator, device=ctx.device.device)[:tokens]

    def call(i: int) -> Tensor:
        qkv = qkvs[i % len(qkvs)]
        rotated = kernels.rope(qkv[:, : heads + kv], cos, sin)
        cache[0].index_copy_(0, slots, rotated[:, heads:])
        cache[1].index_copy_(0, slots, qkv[:, heads + kv :])
        return rotated

    def reference() -> Tensor:
        return kernels.rope(qkvs[0][:, : heads + kv].double(), cos.double(), sin.double())

    size = (2.0 * (heads + kv) + 3.0 * kv) * dim * tokens * WIDTH[point["dtype"]]
    return call, _against(call, reference), size, 9


def _embedding(point: Mapping[str, Any], ctx: Context) -> Made:
    table = ctx.randn(point["vocab"], point["width"], dtype=point["dtype"])
    ids = [ctx.integers(point["vocab"], point["tokens"]) for _ in range(16)]
    size = 2.0 * point["tokens"] * point["width"] * WIDTH[point["dtype"]]

    def call(i: int) -> Tensor:
        return table[ids[i % 16]]

    return call, lambda: 0.0 if bool((call(0)[-1] == table[ids[0][-1]]).all()) else 1.0, size, 1


def _greedy(point: Mapping[str, Any], ctx: Context) -> Made:
    xs = _inputs(point, ctx, point["width"])
    size = float(xs[0].numel() * WIDTH[point["dtype"]])

    def call(i: int) -> Tensor:
        return xs[i % len(xs)].argmax(-1)

    def error() -> float:
        """Equal values may be told apart differently: the value chosen is what must agree."""
        return relative_error(xs[0].gather(1, call(0)[:, None]), xs[0].max(-1, keepdim=True)[0])

    return call, error, size, 1


def _top_p(point: Mapping[str, Any], ctx: Context) -> Made:
    """Softmax, sort, cut at p = 0.9, draw: as engines sample without a fused kernel."""
    xs = _inputs(point, ctx, point["width"])
    size = 6.0 * xs[0].numel() * 4

    def kept(x: Tensor) -> tuple[Tensor, Tensor]:
        probability, order = x.float().softmax(-1).sort(-1, descending=True)
        return probability.masked_fill(probability.cumsum(-1) - probability > 0.9, 0.0), order

    def call(i: int) -> Tensor:
        probability, order = kept(xs[i % len(xs)])
        return order.gather(1, torch.multinomial(probability, 1, generator=ctx.generator))

    def error() -> float:
        """Share of tokens drawn outside the kept mass."""
        probability, order = kept(xs[0])
        return float(((probability * (order == call(0))).sum(-1) <= 0).double().mean())

    return call, error, size, 6


def _unfused_norm(point: Mapping[str, Any], ctx: Context) -> Made:
    xs, weight = _inputs(point, ctx, point["width"]), ctx.randn(point["width"], dtype=point["dtype"])
    residual = ctx.randn(point["tokens"], point["width"], dtype=point["dtype"])

    def call(i: int) -> Tensor:
        return kernels.rms_norm_unfused(xs[i % len(xs)] + residual, weight)

    size = 5.0 * xs[0].numel() * WIDTH[point["dtype"]]
    return call, _against(call, lambda: _norm64(xs[0] + residual, weight)), size, 8


def _unfused_rope(point: Mapping[str, Any], ctx: Context) -> Made:
    """Queries and keys rotated one after the other, keys and values written to the cache."""
    heads, kv, dim, tokens = point["heads"], point["kv_heads"], point["head_dim"], point["tokens"]
    qkvs = [x.view(tokens, heads + 2 * kv, dim) for x in _inputs(point, ctx, (heads + 2 * kv) * dim)]
    tables = kernels.rope_tables(max(tokens, 2), dim, 10_000.0, ctx.device.device, qkvs[0].dtype)
    cos, sin = (torch.cat((x, x), -1)[:tokens, None] for x in tables)
    cache = [torch.zeros(2 * tokens, kv, dim, device=ctx.device.device, dtype=qkvs[0].dtype) for _ in range(2)]
    slots = torch.randperm(2 * tokens, generator=ctx.generator, device=ctx.device.device)[:tokens]

    def call(i: int) -> Tensor:
        qkv = qkvs[i % len(qkvs)]
        q = kernels.rope_unfused(qkv[:, :heads], cos, sin)
        k = kernels.rope_unfused(qkv[:, heads : heads + kv], cos, sin)
        cache[0].index_copy_(0, slots, k)
        cache[1].index_copy_(0, slots, qkv[:, heads + kv :])
        return q

    def reference() -> Tensor:
        half = dim // 2
        return kernels.rope(qkvs[0][:, :heads].double(), cos[..., :half].double(), sin[..., :half].double())

    size = (2.0 * (heads + kv) + 3.0 * kv) * dim * tokens * WIDTH[point["dtype"]]
    return call, _against(call, reference), size, 12


MAKERS: Mapping[str, Callable[[Mapping[str, Any], Context], Made]] = {
    "rms_norm": _rms_norm, "add_rms_norm": _add_rms_norm, "silu_mul": _silu_mul, "rope_and_cache": _rope,
    "add_rms_norm_unfused": _unfused_norm, "rope_and_cache_unfused": _unfused_rope,
    "embedding": _embedding, "sample_greedy": _greedy, "sample_top_p": _top_p,
}  # fmt: skip
