"""Attention: prefill over a contiguous span, decode over a paged cache."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from profiler.measure import kernels
from profiler.measure.errors import Unmeasurable
from profiler.measure.points import context_lengths
from profiler.measure.suites.case import LIMITS, Case, Context, Tensor, relative_error
from profiler.measure.suites.gemm import WIDTH

VARLEN_PAGE = 256  # tokens; FlashAttention-2 takes multiples of it
REFERENCE_QUERIES = 64


# -- prefill --------------------------------------------------------------------------------------------------------


def build_prefill(point: Mapping[str, Any], ctx: Context) -> Case:
    """``batch`` sequences of ``new_tokens`` queries each, over ``computed_tokens`` keys more than queries."""
    batch, new, computed = point["batch"], point["new_tokens"], point["computed_tokens"]
    heads, kv_heads, dim, dtype = point["heads"], point["kv_heads"], point["head_dim"], point["dtype"]
    window, span = point["window"], new + computed
    set_bytes = WIDTH[dtype] * batch * dim * (2 * new * heads + 2 * span * kv_heads)
    count = ctx.sets(set_bytes)
    qs = ctx.copies(count, batch, heads, new, dim, dtype=dtype)
    ks, vs = (ctx.copies(count, batch, kv_heads, span, dim, dtype=dtype) for _ in range(2))
    run = _prefill_kernel(point["backend"], new, computed, window, ctx)
    pairs = _pairs(new, computed, window)

    def error() -> float:
        rows = slice(max(0, new - REFERENCE_QUERIES), new)  # the last queries see the most
        mask = kernels.causal_mask(new, computed, window, ctx.device.device)[rows]
        reference = _reference(qs[0][:1, :, rows], ks[0][:1], vs[0][:1], mask)
        return relative_error(run(qs[0], ks[0], vs[0])[:1, :, rows], reference)

    return Case(
        call=lambda i: run(qs[i % count], ks[i % count], vs[i % count]),
        error=error,
        limit=LIMITS[dtype],
        flops=4.0 * batch * heads * dim * pairs,
        bytes=float(set_bytes),
    )


def _pairs(new: int, computed: int, window: int | None) -> float:
    if window is None:
        return new * (computed + (new + 1) / 2)
    return float(sum(min(computed + i + 1, window) for i in range(new)))


def _reference(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Softmax attention in float64, one KV head at a time."""
    group = q.shape[1] // k.shape[1]
    out = torch.empty(q.shape, dtype=torch.float64, device=q.device)
    for head in range(q.shape[1]):
        keys, values = k[:, head // group].double(), v[:, head // group].double()
        scores = q[:, head].double() @ keys.transpose(-1, -2) * q.shape[-1] ** -0.5
        out[:, head] = scores.masked_fill(~mask, float("-inf")).softmax(-1) @ values
    return out


def _prefill_kernel(
    backend: str, new: int, computed: int, window: int | None, ctx: Context
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    if backend == "flex":
        return _flex(new, computed, window, ctx)
    windowed = window is not None and new + computed > window
    mask: Tensor | None = None
    causal = new > 1
    if windowed or (computed and new > 1):
        if backend == "sdpa_flash" and not windowed:
            from torch.nn.attention.bias import causal_lower_right

            mask, causal = causal_lower_right(new, new + computed), False  # the one kernel torch gives this mask to
        else:
            mask, causal = kernels.causal_mask(new, computed, window, ctx.device.device), False

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with _only(backend):
            return kernels.sdpa(q, k, v, mask, causal=causal)

    return run


@contextlib.contextmanager
def _only(backend: str) -> Iterator[None]:
    """Restricts SDPA to one back end; ``sdpa`` lets torch choose."""
    if backend == "sdpa":
        yield
        return
    from torch.nn.attention import SDPBackend, sdpa_kernel

    kinds = {"sdpa_flash": "FLASH_ATTENTION", "sdpa_cudnn": "CUDNN_ATTENTION", "sdpa_math": "MATH"}
    kind = getattr(SDPBackend, kinds[backend], None)
    if kind is None:
        raise Unmeasurable(f"this torch has no {backend}")
    with sdpa_kernel(kind):
        yield


def _flex(new: int, computed: int, window: int | None, ctx: Context) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def seen(_b: Tensor, _h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        inside = key <= query + computed
        return inside if window is None else inside & (key > query + computed - window)

    if not ctx.device.is_cuda:
        raise Unmeasurable("FlexAttention is compiled for CUDA only here")
    mask = create_block_mask(seen, None, None, new, new + computed, device=ctx.device.kind)
    compiled = _compiled(flex_attention)
    return lambda q, k, v: compiled(q, k, v, block_mask=mask, enable_gqa=q.shape[1] != k.shape[1])


def _compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """For one shape. Past compilations are forgotten: after eight of one function torch would run it uncompiled."""
    torch.compiler.reset()
    found: Callable[..., Tensor] = torch.compile(function, dynamic=False)
    return found


# -- packed ---------------------------------------------------------------------------------------------------------


def build_packed(point: Mapping[str, Any], ctx: Context) -> Case:
    """As many sequences as queries (up to 16), each with its share of the keys; which share does not matter."""
    queries, keys, dtype = point["queries"], point["keys"], point["dtype"]
    heads, kv_heads, dim = point["heads"], point["kv_heads"], point["head_dim"]
    set_bytes = WIDTH[dtype] * dim * (2 * queries * heads + 2 * keys * kv_heads)
    count = ctx.sets(set_bytes)
    q = ctx.randn(queries, heads, dim, dtype=dtype)
    ks, vs = (ctx.copies(count, keys, kv_heads, dim, dtype=dtype) for _ in range(2))
    read = torch.randperm(keys, generator=ctx.generator, device=ctx.device.device)
    parts = min(queries, 16)
    owner_q = torch.arange(queries, device=q.device) * parts // queries
    owner_k = torch.arange(keys, device=q.device) * parts // keys
    seen = owner_q[:, None] == owner_k[None]
    mask = torch.zeros(queries, keys, device=q.device, dtype=q.dtype).masked_fill(~seen, torch.finfo(q.dtype).min)

    def error() -> float:
        rows = slice(0, min(queries, REFERENCE_QUERIES))
        k, v = (x[0][read].transpose(0, 1)[None] for x in (ks, vs))
        reference = _reference(q[rows].transpose(0, 1)[None], k, v, seen[rows])[0].transpose(0, 1)
        return relative_error(kernels.packed_attention(q, ks[0], vs[0], read, mask)[rows], reference)

    return Case(
        call=lambda i: kernels.packed_attention(q, ks[i % count], vs[i % count], read, mask),
        error=error,
        limit=LIMITS[dtype],
        flops=4.0 * queries * keys * heads * dim,
        bytes=float(set_bytes),
    )


# -- decode ---------------------------------------------------------------------------------------------------------


def build_decode(point: Mapping[str, Any], ctx: Context) -> Case:
    """One query per sequence over its pages, which lie scattered over the cache."""
    batch, heads, kv_heads, dim = point["batch"], point["heads"], point["kv_heads"], point["head_dim"]
    dtype, backend, window = point["dtype"], point["backend"], point["window"]
    lengths = context_lengths(batch, _mean(point), point["spread"])
    page = max(point["block_size"], VARLEN_PAGE) if backend == "varlen_paged" else point["block_size"]
    pages = [-(-n // page) for n in lengths]
    seen = sum(lengths if window is None else [min(n, window) for n in lengths])
    set_bytes = WIDTH[dtype] * dim * (2 * batch * heads + 2 * seen * kv_heads)
    count = ctx.sets(set_bytes)
    layout = _layout(pages, ctx)
    slots = [(layout[i][:, None] * page + torch.arange(page, device=ctx.device.device)).flatten() for i in range(batch)]
    slots = [s[:n] for s, n in zip(slots, lengths, strict=True)]
    size = (sum(pages) * page, kv_heads, dim)
    keys, values = (ctx.copies(count, *size, dtype=dtype) for _ in range(2))
    q = ctx.randn(batch, heads, dim, dtype=dtype)
    run = _DECODE[backend](q, lengths, slots, layout, page, window, ctx, kv_heads)
    if backend == "flex":  # makes its static caches and compiles before anything is timed
        for k, v in zip(keys, values, strict=True):
            run(q, k, v)

    def error() -> float:
        rows = sorted({0, batch // 2, batch - 1})
        parts = []
        for i in rows:
            s = slots[i] if window is None else slots[i][-window:]
            k, v = (x[s].transpose(0, 1)[None] for x in (keys[0], values[0]))
            everything = torch.ones(1, len(s), dtype=torch.bool, device=q.device)
            parts.append(_reference(q[i][None, :, None], k, v, everything)[0, :, 0])
        return relative_error(run(q, keys[0], values[0])[rows], torch.stack(parts))

    return Case(
        call=lambda i: run(q, keys[i % count], values[i % count]),
        error=error,
        limit=LIMITS[dtype],
        flops=4.0 * seen * heads * dim,
        bytes=float(set_bytes),
    )


def _mean(point: Mapping[str, Any]) -> int:
    """The mean context the lengths were made from (rounding of skewed lengths undone)."""
    batch, total = point["batch"], point["context_sum"]
    if point["spread"] == "equal":
        return int(total // batch)
    short = point["context_max"] // 10
    return next(
        (m for m in range(max(1, total // batch - 12), total // batch + 13)
         if sum(context_lengths(batch, m, "skewed")) == total),
        max(1, round(short * (batch + 9 * (batch // 4)) / batch)),
    )  # fmt: skip


def _layout(pages: Sequence[int], ctx: Context) -> list[Tensor]:
    """Physical pages of every sequence, shuffled as after a while of serving."""
    order = torch.randperm(sum(pages), generator=ctx.generator, device=ctx.device.device)
    return list(order.split(list(pages)))


def _loop(q: Tensor, lengths: Sequence[int], slots: Sequence[Tensor], _layout: Sequence[Tensor], _page: int,
          window: int | None, _ctx: Context, _kv_heads: int) -> Callable[..., Tensor]:  # fmt: skip
    del q
    chunks = [kernels.Chunk(i, 1, n - 1, s) for i, (n, s) in enumerate(zip(lengths, slots, strict=True))]
    return lambda x, k, v: kernels.loop_attention(x, k, v, chunks, window)


def _gather(q: Tensor, lengths: Sequence[int], slots: Sequence[Tensor], _layout: Sequence[Tensor], _page: int,
            window: int | None, _ctx: Context, _kv_heads: int) -> Callable[..., Tensor]:  # fmt: skip
    kept = list(slots) if window is None else [s[-window:] for s in slots]
    table = torch.nn.utils.rnn.pad_sequence(kept, batch_first=True)
    held = torch.tensor([len(s) for s in kept], device=q.device)
    mask = (torch.arange(table.shape[1], device=q.device) < held[:, None])[:, None, None]
    del lengths
    return lambda x, k, v: kernels.gather_attention(x, k, v, table, mask)


def _varlen(q: Tensor, lengths: Sequence[int], _slots: Sequence[Tensor], layout: Sequence[Tensor], page: int,
            window: int | None, _ctx: Context, kv_heads: int) -> Callable[..., Tensor]:  # fmt: skip
    attend = kernels.varlen_paged()
    if not q.is_cuda:
        raise Unmeasurable("varlen_attn is a CUDA kernel")
    table = torch.nn.utils.rnn.pad_sequence(list(layout), batch_first=True).to(torch.int32)
    used = torch.tensor(lengths, dtype=torch.int32, device=q.device)
    starts = torch.arange(len(lengths) + 1, dtype=torch.int32, device=q.device)
    left = -1 if window is None else window - 1
    dim = q.shape[-1]

    def run(x: Tensor, k: Tensor, v: Tensor) -> Tensor:
        pages = (y.view(-1, page, kv_heads, dim) for y in (k, v))
        return attend(
            x, *pages, starts, None, 1, max(lengths), window_size=(left, 0), enable_gqa=x.shape[1] != kv_heads,
            seqused_k=used, block_table=table,
        )  # fmt: skip

    return run


def _flex_decode(q: Tensor, lengths: Sequence[int], slots: Sequence[Tensor], _layout: Sequence[Tensor], _page: int,
                 window: int | None, ctx: Context, kv_heads: int) -> Callable[..., Tensor]:  # fmt: skip
    """FlexAttention over a static cache: gathered once, outside the timed call."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    if not ctx.device.is_cuda:
        raise Unmeasurable("FlexAttention is compiled for CUDA only here")
    table = torch.nn.utils.rnn.pad_sequence(list(slots), batch_first=True)
    held = torch.tensor(lengths, device=q.device)

    def seen(b: Tensor, _h: Tensor, _q: Tensor, key: Tensor) -> Tensor:
        inside = key < held[b]
        return inside if window is None else inside & (key >= held[b] - window)

    mask = create_block_mask(seen, len(lengths), None, 1, table.shape[1], device=ctx.device.kind)
    compiled = _compiled(flex_attention)
    static: dict[int, tuple[Tensor, Tensor]] = {}

    def run(x: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if id(k) not in static:
            static[id(k)] = (k[table].transpose(1, 2).contiguous(), v[table].transpose(1, 2).contiguous())
        keys, values = static[id(k)]
        return compiled(x[:, :, None], keys, values, block_mask=mask, enable_gqa=x.shape[1] != kv_heads)[:, :, 0]

    return run


def _flashinfer(q: Tensor, lengths: Sequence[int], _slots: Sequence[Tensor], layout: Sequence[Tensor], page: int,
                window: int | None, _ctx: Context, kv_heads: int) -> Callable[..., Tensor]:  # fmt: skip
    try:
        import flashinfer
    except ImportError:
        raise Unmeasurable("flashinfer is not installed") from None
    workspace = torch.empty(128 << 20, dtype=torch.uint8, device=q.device)
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(workspace, "NHD")
    starts = torch.tensor([0, *torch.tensor([len(p) for p in layout]).cumsum(0).tolist()], dtype=torch.int32)
    last = torch.tensor([(n - 1) % page + 1 for n in lengths], dtype=torch.int32)
    dim = q.shape[-1]
    wrapper.plan(
        starts.to(q.device), torch.cat(list(layout)).to(torch.int32), last.to(q.device), q.shape[1], kv_heads, dim,
        page, window_left=-1 if window is None else window - 1, q_data_type=q.dtype, kv_data_type=q.dtype,
    )  # fmt: skip

    def run(x: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return wrapper.run(x, (k.view(-1, page, kv_heads, dim), v.view(-1, page, kv_heads, dim)))

    return run


_DECODE: Mapping[str, Callable[..., Callable[..., Tensor]]] = {
    "loop": _loop, "gather": _gather, "varlen_paged": _varlen, "flex": _flex_decode, "flashinfer": _flashinfer,
}  # fmt: skip
