"""A campaign spelled out: one dict per measurement, in the order they are taken."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from profiler.measure.campaign import Campaign
from profiler.measure.journal import point_id
from profiler.measure.models import DecoderShape

Point = dict[str, Any]
Fields = Mapping[str, Any]


def points(campaign: Campaign) -> list[Point]:
    """Every point once a round, with its ``id``. Later rounds name their ``round`` and the first's id (``again``)."""
    found: dict[str, Point] = {}
    for suite, fields in campaign.suites.items():
        for point in MAKERS[suite](fields, campaign.models):
            whole = {"suite": suite, **point}
            found.setdefault(point_id(whole), whole)
    first = [{"id": key, **point} for key, point in found.items()]
    return first + [_repeated(point, turn) for turn in range(1, campaign.rounds) for point in first]


def _repeated(point: Point, turn: int) -> Point:
    return {**point, "id": point_id({**point, "round": turn}), "round": turn, "again": point["id"]}


def _ceilings(f: Fields, models: tuple[DecoderShape, ...]) -> Iterator[Point]:
    del models
    for dtype in f["dtypes"]:
        yield {"op": "ceiling", "quantity": "flops", "dtype": dtype, "backend": "gemm", "size": f["size"]}
    for quantity, backend, size in (
        ("bandwidth", "copy", f["copy_bytes"]), ("bandwidth", "read", f["copy_bytes"]), ("launch", "add", 0),
        ("timer", "host", 0),
    ):  # fmt: skip
        yield {"op": "ceiling", "quantity": quantity, "dtype": "fp32", "backend": backend, "size": size}


def _gemm(f: Fields, models: tuple[DecoderShape, ...]) -> Iterator[Point]:
    shapes = [tuple(s) for s in f["shapes"]]
    if f["models"]:
        shapes += [shape for model in models for shape in model.linears.values()]
    if f["unfused"]:
        shapes += [shape for model in models for shape in model.unfused_linears.values()]
    for dtype in f["dtypes"]:
        for n, k in dict.fromkeys(shapes):
            for m in f["tokens"]:
                yield {"op": "gemm", "m": m, "n": n, "k": k, "dtype": dtype, "backend": "torch"}


def _heads(f: Fields, models: tuple[DecoderShape, ...]) -> list[tuple[int, int, int]]:
    listed = [tuple(h) for h in f["heads"]]
    return list(dict.fromkeys([*listed, *((m.heads, m.kv_heads, m.head_dim) for m in models)]))


def _prefill(f: Fields, models: tuple[DecoderShape, ...]) -> Iterator[Point]:
    for dtype in f["dtypes"]:
        for heads, kv_heads, dim in _heads(f, models):
            for backend in f["backends"]:
                for window in f["windows"]:
                    for batch in f["batches"]:
                        for new in f["new_tokens"]:
                            for computed in f["computed_tokens"]:
                                if batch * new * (new + computed) <= f["max_pairs"]:
                                    yield {
                                        "op": "prefill_attention", "batch": batch, "new_tokens": new,
                                        "computed_tokens": computed, "heads": heads, "kv_heads": kv_heads,
                                        "head_dim": dim, "causal": True, "window": window, "kv_dtype": dtype,
                                        "dtype": dtype, "backend": backend,
                                    }  # fmt: skip


def _decode(f: Fields, models: tuple[DecoderShape, ...]) -> Iterator[Point]:
    for dtype in f["dtypes"]:
        for heads, kv_heads, dim in _heads(f, models):
            for backend in f["backends"]:
                for window in f["windows"]:
                    for spread in f["spreads"]:
                        for batch in f["batches"]:
                            for context in f["contexts"]:
                                if batch * context > f["max_tokens"] or (spread == "skewed" and batch < 4):
                                    continue
                                lengths = context_lengths(batch, context, spread)
                                yield {
                                    "op": "decode_attention", "batch": batch, "context_sum": sum(lengths),
                                    "context_max": max(lengths), "spread": spread, "heads": heads,
                                    "kv_heads": kv_heads, "head_dim": dim, "window": window,
                                    "block_size": f["block_size"], "kv_dtype": dtype, "dtype": dtype,
                                    "backend": backend,
                                }  # fmt: skip


def _packed(f: Fields, models: tuple[DecoderShape, ...]) -> Iterator[Point]:
    for dtype in f["dtypes"]:
        for heads, kv_heads, dim in _heads(f, models):
            for queries in f["queries"]:
                for keys in f["keys"]:
                    if queries <= keys and queries * keys <= f["max_pairs"]:
                        yield {
                            "op": "packed_attention", "queries": queries, "keys": keys, "heads": heads,
                            "kv_heads": kv_heads, "head_dim": dim, "dtype": dtype, "kv_dtype": dtype,
                            "backend": "sdpa_masked",
                        }  # fmt: skip


def context_lengths(batch: int, mean: int, spread: str) -> list[int]:
    """Equal, or skewed: every fourth sequence holds ten times what the others do; the mean stays."""
    if spread == "equal":
        return [mean] * batch
    short = max(1, round(mean * batch / (batch + 9 * (batch // 4))))
    return [10 * short if i % 4 == 3 else short for i in range(batch)]


def _moe(f: Fields, models: tuple[DecoderShape, ...]) -> Iterator[Point]:
    shapes = [tuple(s) for s in f["shapes"]]
    shapes += [(m.hidden, m.inter, m.experts, m.top_k) for m in models if m.experts]
    for dtype in f["dtypes"]:
        for hidden, inter, experts, top_k in dict.fromkeys(shapes):
            for backend in f["backends"]:
                for routing in f["routing"]:
                    for tokens in f["tokens"]:
                        yield {
                            "op": "moe", "tokens": tokens, "hidden": hidden, "inter": inter, "experts": experts,
                            "top_k": top_k, "gated": True, "routing": routing, "dtype": dtype, "backend": backend,
                        }  # fmt: skip


def _elementwise(f: Fields, models: tuple[DecoderShape, ...]) -> Iterator[Point]:
    for model in models:
        widths = {
            "rms_norm": model.hidden, "add_rms_norm": model.hidden, "silu_mul": model.inter,
            "rope_and_cache": model.qkv, "embedding": model.hidden, "sample_greedy": model.vocab,
            "sample_top_p": model.vocab, "add_rms_norm_unfused": model.hidden, "rope_and_cache_unfused": model.qkv,
        }  # fmt: skip
        for dtype in f["dtypes"]:
            for kernel in f["kernels"]:
                for tokens in f["tokens"]:
                    if kernel.startswith("sample") and tokens > f["max_sampled"]:
                        continue
                    point = {"op": "elementwise", "kernel": kernel, "tokens": tokens, "width": widths[kernel]}
                    if kernel.startswith("rope"):
                        point |= {"heads": model.heads, "kv_heads": model.kv_heads, "head_dim": model.head_dim}
                    if kernel == "embedding":
                        point |= {"vocab": model.vocab}
                    yield point | {"dtype": dtype, "backend": "torch"}


def _copies(f: Fields, models: tuple[DecoderShape, ...]) -> Iterator[Point]:
    del models
    for direction in f["directions"]:
        for size in f["sizes"]:
            yield {
                "op": "copy", "direction": direction, "size_bytes": size, "pinned": True, "dtype": "int8",
                "backend": "torch",
            }  # fmt: skip


def _collectives(f: Fields, models: tuple[DecoderShape, ...]) -> Iterator[Point]:
    del models
    for op in f["ops"]:
        for ranks in f["ranks"]:
            for size in f["sizes"]:
                yield {"op": op, "ranks": ranks, "size_bytes": size, "dtype": "bf16", "backend": "torch.distributed"}


def _whole(op: str) -> Any:
    def make(f: Fields, models: tuple[DecoderShape, ...]) -> Iterator[Point]:
        for model in models:
            for dtype in f["dtypes"]:
                for mode in f["modes"]:
                    for number, context in f["decodes"]:
                        for chunks in f["chunks"]:
                            if (chunks and mode == "graph") or not (number or chunks):
                                continue  # engines replay graphs for pure decode steps
                            layers = 1 if op == "layer" else (f["layers"] or model.layers)
                            yield {
                                "op": op, "model": model.name, "num_layers": layers, "num_decodes": number,
                                "context_sum": number * context, "chunks": chunks, "mode": mode, "dtype": dtype,
                                "backend": "decoder",
                            }  # fmt: skip

    return make


MAKERS: Mapping[str, Any] = {
    "ceilings": _ceilings, "gemm": _gemm, "prefill_attention": _prefill, "decode_attention": _decode, "moe": _moe,
    "packed_attention": _packed,
    "elementwise": _elementwise, "copies": _copies, "collectives": _collectives, "layer": _whole("layer"),
    "step": _whole("step"),
}  # fmt: skip
