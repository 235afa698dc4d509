"""Whole layers and whole steps of a model with random weights, eager and as a CUDA graph."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from profiler.measure import kernels
from profiler.measure.decoder import Decoder
from profiler.measure.devices import Timing
from profiler.measure.errors import Unmeasurable
from profiler.measure.kernels import dtype_of
from profiler.measure.suites.case import LIMITS, Case, Context, Tensor, relative_error

PAGE = 256
TOKENS_THAT_MAY_DIFFER = 0.1  # random logits lie close: another kernel for the same product may turn a few


@dataclass(slots=True)
class Batch:
    """A step's inputs: decodes first, then chunks. Every sequence owns whole pages of the cache."""

    tokens: Tensor
    positions: Tensor
    slots: Tensor
    chunks: list[kernels.Chunk]
    sampled: Tensor
    num_slots: int


def batch(num_decodes: int, context: int, chunks: list[list[int]], vocab: int, device: Any) -> Batch:
    """``context``: tokens each decode sees, its own included; ``chunks``: [new, computed] each."""
    wanted = [(1, context - 1)] * num_decodes + [(new, computed) for new, computed in chunks]
    start, slot, made = 0, 0, []
    positions, slots, sampled = [], [], []
    for new, computed in wanted:
        span = torch.arange(slot, slot + new + computed, device=device)
        made.append(kernels.Chunk(start, new, computed, span))
        positions.append(torch.arange(computed, computed + new, device=device))
        slots.append(span[computed:])
        start += new
        slot += -(-(new + computed) // PAGE) * PAGE
        sampled.append(start - 1)
    tokens = torch.randint(vocab, (start,), device=device)
    return Batch(
        tokens, torch.cat(positions), torch.cat(slots), made, torch.tensor(sampled, device=device), max(slot, PAGE)
    )


def attention(b: Batch, num_decodes: int, context: int, device: Any, kv_heads: int, window: int | None) -> Any:
    """The engine's choice: FlashAttention over pages where torch has it, padded gather for decodes otherwise on the
    GPU, a loop over sequences on the CPU.
    """
    loop = b.chunks
    if device.type != "cuda":
        return lambda q, k, v: kernels.loop_attention(q, k, v, loop, window)
    decodes = _varlen(b, num_decodes, context, kv_heads, window) or _gathered(b, num_decodes, window)
    rest = [c._replace(start=c.start - num_decodes) for c in b.chunks[num_decodes:]]

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if not rest:
            return decodes(q, k, v)
        after = kernels.loop_attention(q[num_decodes:], k, v, rest, window)
        return torch.cat((decodes(q[:num_decodes], k, v), after)) if num_decodes else after

    return run


def _gathered(b: Batch, num_decodes: int, window: int | None) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    if not num_decodes:
        return lambda q, _k, _v: q
    kept = [c.slots if window is None else c.slots[-window:] for c in b.chunks[:num_decodes]]
    table = torch.stack(kept)
    mask = torch.ones(num_decodes, 1, 1, table.shape[1], dtype=torch.bool, device=table.device)
    return lambda q, k, v: kernels.gather_attention(q, k, v, table, mask)


def _varlen(b: Batch, num_decodes: int, context: int, kv_heads: int, window: int | None) -> Any:
    if not num_decodes:
        return None
    try:
        attend = kernels.varlen_paged()
    except Unmeasurable:
        return None
    device = b.tokens.device
    table = torch.stack([c.slots[::PAGE] // PAGE for c in b.chunks[:num_decodes]]).to(torch.int32)
    used = torch.full((num_decodes,), context, dtype=torch.int32, device=device)
    starts = torch.arange(num_decodes + 1, dtype=torch.int32, device=device)
    left = -1 if window is None else window - 1

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        pages = (x.view(-1, PAGE, kv_heads, q.shape[-1]) for x in (k, v))
        return attend(
            q, *pages, starts, None, 1, context, window_size=(left, 0), enable_gqa=q.shape[1] != kv_heads,
            seqused_k=used, block_table=table,
        )  # fmt: skip

    try:  # some builds have the argument and not the kernel
        probe = torch.zeros(b.num_slots, kv_heads, 64, device=device, dtype=torch.bfloat16)
        run(torch.zeros(num_decodes, kv_heads, 64, device=device, dtype=torch.bfloat16), probe, probe)
        torch.cuda.synchronize()
    except Exception:  # noqa: BLE001 - whatever it lacks, the gather works
        return None
    return run


def build(point: Mapping[str, Any], ctx: Context) -> Case:
    """Eager calls are timed on the host's clock, as an engine's loop sees them; graphs by events."""
    model = ctx.models[point["model"]]
    number, device = point["num_decodes"], ctx.device
    graph = point["mode"] == "graph"
    if graph and not device.is_cuda:
        raise Unmeasurable("CUDA graphs need a GPU")
    context = point["context_sum"] // number if number else 0
    b = batch(number, context, point["chunks"], model.vocab, device.device)
    decoder = Decoder(
        model, device.kind, dtype_of(point["dtype"]), num_slots=b.num_slots, layers=point["num_layers"],
        max_positions=int(b.positions.max()) + 1,
    )  # fmt: skip
    attend = attention(b, number, context, device.device, model.kv_heads, model.window)
    run = _runner(point["op"], decoder, b, attend)
    with torch.no_grad(), device.peak_memory() as peak:
        run()
        device.synchronize()
        peak_bytes = peak()
    call = _captured(run) if graph else run

    def checked() -> float:
        """A layer against higher precision; a step (or a graph) against its own eager run: share of other tokens."""
        with torch.no_grad():
            once = run().clone()
            again = call().clone()
            device.synchronize()
            if point["op"] == "step":
                return float((once != again).double().mean())
            if model.experts:  # near ties of the router fall differently in float32
                return relative_error(again, once)
            return relative_error(again, _reference(decoder, b, model.window))

    def timed(_: int) -> object:
        with torch.no_grad():
            return call()

    def fields(t: Timing) -> dict[str, Any]:
        del t
        return {"peak_activation_bytes": peak_bytes}

    time = None if graph else (lambda effort: device.wall(timed, effort))
    limit = TOKENS_THAT_MAY_DIFFER if point["op"] == "step" else 2 * LIMITS[point["dtype"]]
    return Case(timed, checked, limit, time=time, fields=fields, keep=[decoder, b])


def _reference(decoder: Decoder, b: Batch, window: int | None) -> Tensor:
    """The same layer, cache and inputs in float32 (float64 for a float32 layer), attention a sequence at a time."""
    dtype = torch.float64 if decoder.dtype == torch.float32 else torch.float32
    wide, weights = copy.copy(decoder), decoder.layers[0]
    names = ("norm_in", "qkv", "out", "norm_mlp", "gate_up", "down")
    wide.layers = [dataclasses.replace(weights, **{name: getattr(weights, name).to(dtype) for name in names})]
    wide.keys, wide.values = [decoder.keys[0].to(dtype)], [decoder.values[0].to(dtype)]
    cos, sin = (x[b.positions][:, None].to(dtype) for x in (decoder.cos, decoder.sin))
    return wide.block(
        0, decoder.embedding[b.tokens].to(dtype), cos, sin, b.slots,
        lambda q, k, v: kernels.loop_attention(q, k, v, b.chunks, window),
    )  # fmt: skip


def _runner(op: str, decoder: Decoder, b: Batch, attend: Any) -> Callable[[], Tensor]:
    if op == "step":
        return lambda: decoder.forward(b.tokens, b.positions, b.slots, attend, b.sampled)
    x = decoder.embedding[b.tokens]
    cos, sin = decoder.cos[b.positions][:, None], decoder.sin[b.positions][:, None]
    return lambda: decoder.block(0, x, cos, sin, b.slots, attend)


def _captured(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """The step as one CUDA graph. Raises whatever capture dislikes (a MoE loop that counts on the host, say)."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.no_grad(), torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        out = run()

    def replay() -> Tensor:
        graph.replay()
        return out

    return replay
