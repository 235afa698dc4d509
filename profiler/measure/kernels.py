"""The operators of a decoder as torch runs them: what the suites time and what the decoder and the engine call.

Shapes: ``T`` tokens of a step, ``H``/``KV`` heads and KV heads, ``D`` head_dim. The KV cache of a layer is two tensors
``(slots, KV, D)``; token ``i`` of a sequence lives in slot ``table[i // block_size] * block_size + i % block_size``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it

from profiler.measure.errors import Unmeasurable

Tensor = Any  # torch.Tensor; torch is not installed where types are checked
DTYPES = {
    "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.int8,
    "fp8": getattr(torch, "float8_e4m3fn", None),
}  # fmt: skip


def dtype_of(name: str) -> Any:
    found = DTYPES.get(name)
    if found is None:
        raise Unmeasurable(f"this torch has no {name}")
    return found


# -- element by element -------------------------------------------------------------------------------------------


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), weight, eps)


def silu_mul(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, -1)
    return F.silu(gate) * up


def rope_tables(positions: int, dim: int, theta: float, device: Any, dtype: Any) -> tuple[Tensor, Tensor]:
    """cos and sin, each ``(positions, dim / 2)`` (RoFormer, arXiv:2104.09864)."""
    frequencies = theta ** (-torch.arange(0, dim, 2, device=device, dtype=torch.float32) / dim)
    angles = torch.outer(torch.arange(positions, device=device, dtype=torch.float32), frequencies)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates halves: ``x`` is ``(T, heads, D)``, the tables are ``(T, 1, D / 2)``."""
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def rms_norm_unfused(x: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    """As eager model code spells it: in float32, five kernels and two casts."""
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * wide.to(x.dtype)


def rope_unfused(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """As eager model code spells it: whole-width tables ``(T, 1, D)`` and a rotated copy."""
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat((-b, a), -1) * sin


# -- attention ----------------------------------------------------------------------------------------------------


class Chunk(NamedTuple):
    """Queries ``[start, start + new)`` of the step; ``slots`` of the sequence's whole span (computed and new)."""

    start: int
    new: int
    computed: int
    slots: Tensor


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, causal: bool = False) -> Tensor:
    """``q (B, H, Q, D)``, ``k``, ``v (B, KV, C, D)``."""
    out: Tensor = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=q.shape[1] != k.shape[1]
    )
    return out


def causal_mask(new: int, computed: int, window: int | None, device: Any) -> Tensor:
    """``(new, computed + new)``: query ``i`` sees keys ``(computed + i - window, computed + i]``."""
    query = torch.arange(computed, computed + new, device=device)[:, None]
    key = torch.arange(computed + new, device=device)[None]
    seen = key <= query
    return seen if window is None else seen & (key > query - window)


def chunk_attention(q: Tensor, k: Tensor, v: Tensor, computed: int, window: int | None) -> Tensor:
    """One sequence: ``q (new, H, D)`` over ``k``, ``v (computed + new, KV, D)`` -> ``(new, H, D)``."""
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    new, span = q.shape[2], k.shape[2]
    windowed = window is not None and span > window
    if new == 1 and windowed:
        k, v, windowed = k[:, :, -window:], v[:, :, -window:], False  # type: ignore[operator]
    if windowed or (computed and new > 1):
        out = sdpa(q, k, v, causal_mask(new, computed, window, q.device))
    else:
        out = sdpa(q, k, v, None, causal=new > 1)
    return out[0].transpose(0, 1)


def loop_attention(q: Tensor, k: Tensor, v: Tensor, chunks: Sequence[Chunk], window: int | None) -> Tensor:
    """Paged attention, a sequence at a time: gather its keys, then SDPA. ``k``, ``v``: the cache of the layer."""
    out = torch.empty_like(q)
    for c in chunks:
        rows = slice(c.start, c.start + c.new)
        out[rows] = chunk_attention(q[rows], k[c.slots], v[c.slots], c.computed, window)
    return out


def gather_attention(q: Tensor, k: Tensor, v: Tensor, slots: Tensor, mask: Tensor) -> Tensor:
    """Paged decode of a batch: gather all keys, padded to the longest. ``slots (B, C)``, ``mask (B, 1, 1, C)``."""
    keys, values = k[slots].transpose(1, 2), v[slots].transpose(1, 2)
    return sdpa(q[:, :, None], keys, values, mask)[:, :, 0]


def packed_attention(q: Tensor, k: Tensor, v: Tensor, read: Tensor, mask: Tensor) -> Tensor:
    """All queries of a step over all their keys, a block-diagonal additive mask between: how engines without a paged
    kernel run (the continuous batching of transformers on SDPA). ``q (T, H, D)``, ``read (K,)``, ``mask (T, K)``.

    The work is ``T x K`` whoever belongs to whom, and every query head gets its own copy of the keys.
    """
    group = q.shape[1] // k.shape[1]
    keys, values = (x[read].transpose(0, 1).repeat_interleave(group, 0)[None] for x in (k, v))
    return sdpa(q.transpose(0, 1)[None], keys, values, mask)[0].transpose(0, 1)


def varlen_paged() -> Callable[..., Tensor]:
    """Torch's FlashAttention over block tables, where this version has it. Raises Unmeasurable."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        raise Unmeasurable("this torch has no varlen_attn") from None
    if "block_table" not in inspect.signature(varlen_attn).parameters:
        raise Unmeasurable("varlen_attn of this torch knows no block table")
    found: Callable[..., Tensor] = varlen_attn
    return found


# -- mixture of experts -------------------------------------------------------------------------------------------


def moe(
    x: Tensor, router: Tensor, gate_up: Tensor, down: Tensor, top_k: int, *, grouped: bool, choice: Tensor | None = None
) -> Tensor:
    """Router, permutation, two grouped products with SwiGLU between, weighted sum.

    ``x (T, hidden)``, ``router (E, hidden)``, ``gate_up (E, 2 inter, hidden)``, ``down (E, hidden, inter)``.
    choice: ``(T, top_k)`` experts to take instead of the router's, for balanced or skewed loads.
    """
    tokens, experts = x.shape[0], router.shape[0]
    scores = F.linear(x, router).float()
    picked = scores.topk(top_k, -1)[1] if choice is None else choice
    weights = scores.gather(1, picked).softmax(-1).to(x.dtype)
    order = picked.flatten().argsort()
    rows = x[order // top_k]
    ones = torch.ones_like(picked).flatten()
    counts = ones.new_zeros(experts).scatter_add_(0, picked.flatten(), ones)  # bincount would wait for the device
    if grouped:
        ends = counts.cumsum(0).to(torch.int32)
        inner = silu_mul(grouped_mm(rows, gate_up.transpose(1, 2), ends))
        out = grouped_mm(inner, down.transpose(1, 2), ends)
    else:
        out = torch.empty_like(rows)
        start = 0
        for expert, count in enumerate(counts.tolist()):
            if count:
                part = rows[start : start + count]
                inner = silu_mul(F.linear(part, gate_up[expert]))
                out[start : start + count] = F.linear(inner, down[expert])
            start += count
    spread = torch.empty_like(out)
    spread[order] = out
    return (spread.view(tokens, top_k, -1) * weights[..., None]).sum(1)


def grouped_mm(rows: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
    """Rows sorted by expert, ``ends (E,)`` where each expert's rows end. Raises Unmeasurable without the kernel."""
    kernel = getattr(F, "grouped_mm", None) or getattr(torch, "_grouped_mm", None)
    if kernel is None:
        raise Unmeasurable("this torch has no grouped_mm")
    out: Tensor = kernel(rows, weights, offs=ends)
    return out
