"""What is fitted for each operator: points from its table, surfaces of its correction, and what a whole shape is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from profiler.fit.boost import ForestSpec
from profiler.fit.solve import SurfaceSpec
from profiler.tables.columns import SHAPES
from simulator.cost.correction import Floats
from simulator.cost.kernels import Ceilings
from simulator.cost.laws import (
    DECODE,
    EXPERTS,
    GEMM,
    LATENT_DECODE,
    LATENT_PREFILL,
    PREFILL,
    Law,
    Points,
    decode_points,
    expert_points,
    gemm_points,
    latent_decode_points,
    latent_prefill_points,
    prefill_points,
)
from simulator.cost.shapes import AttentionShape, attention_shape
from simulator.model.architecture import LatentAttention
from simulator.model.formats import weight_format

FORMATS = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "mxfp4_fp8": "mxfp4"}
# Attention of DeepSeek-V3 (arXiv:2412.19437, section 4.2), whose module the MLA tables time.
DEEPSEEK = LatentAttention(128, 1536, 512, 128, 64, 128)
DEEPSEEK_HIDDEN = 7168
MANY = 100  # values on a grid; more of them are no grid
WARM_SHARE = 0.1  # of a kernel's time: what streams in less than this cannot mislead by more
KV_BYTES = {"bf16": 2.0, "fp16": 2.0, "fp8": 1.0, "fp32": 4.0}


@dataclass(frozen=True)
class Recipe:
    """How one operator is fitted. ``split``: columns whose values get a fit each; ``shape``: columns that make a whole
    shape, left out together when the error is measured.
    """

    law: Law
    split: tuple[str, ...]
    shape: tuple[str, ...]
    points: Callable[[pd.DataFrame, str], Points]
    specs: Callable[[Points], Sequence[SurfaceSpec]]
    streamed: Callable[[Points], Floats] | None = None
    reach: Callable[[float], float] = lambda cache: cache
    forest: ForestSpec | None = None
    fewest: int = 2  # whole shapes
    dense: bool = False  # neighbours along the first column take about as long: what sticks out between them is chance
    twins: Mapping[str, str] = field(default_factory=dict)  # formats that may time the host: see ``host``

    def cold(self, points: Points, seconds: Floats, ceilings: Ceilings) -> np.ndarray:
        """Which rows an engine would see too. Benchmarks call a kernel again and again on the same operands; where the
        ``streamed`` bytes are a good part of its time and lie within the ``reach`` of the last-level cache, they did
        not come from memory, as they do in an engine whose other layers have passed in between.
        """
        if self.streamed is None or not ceilings.cache_bytes:
            return np.ones(len(seconds), dtype=bool)
        size = self.streamed(points)
        near = size < self.reach(ceilings.cache_bytes)
        return ~(near & (size / ceilings.bandwidth > WARM_SHARE * seconds))

    @property
    def columns(self) -> tuple[str, ...]:
        """What identifies a point, for a fixed order of rows."""
        return SHAPES[self.law.operator]


def number_of(dtype: str) -> tuple[str, float]:
    """(number format the product runs in, bytes per weight with its scales)."""
    fmt = weight_format(FORMATS.get(dtype, dtype))
    math = {"mxfp4": "bf16", "mxfp4_fp8": "fp8"}.get(dtype, fmt.math)
    return math, fmt.bytes_per_weight(4096)


def _column(frame: pd.DataFrame, name: str) -> Floats:
    return frame[name].to_numpy(dtype=float)


def knots(values: Floats, *wanted: float) -> tuple[float, ...]:
    """Logarithms of ``wanted`` within the range of the points, its ends included."""
    low, high = float(np.exp(values.min())), float(np.exp(values.max()))
    inner = [w for w in wanted if low * 1.2 < w < high / 1.2]
    return tuple(float(np.log(v)) for v in (low, *inner, high)) if high > low * 1.01 else (float(np.log(low)),)


def every(values: Floats) -> tuple[float, ...]:
    """A knot at each value that occurs."""
    return tuple(float(v) for v in np.unique(np.round(values, 9)))


# -- gemm -------------------------------------------------------------------------------------------------------


def _gemm(frame: pd.DataFrame, dtype: str) -> Points:
    return gemm_points(_column(frame, "m"), _column(frame, "n"), _column(frame, "k"), number_of(dtype)[1])


def _gemm_specs(x: Points) -> Sequence[SurfaceSpec]:
    """A smooth surface over all three; what waves do to single m and n. Choices of kernels are the forest's."""
    m = knots(x["m"], 8, 16, 64, 128, 256, 1024, 4096)
    wide, deep = (knots(x[name], 128, 512, 2048, 4096, 8192, 16384) for name in "nk")
    every_m, every_n = every(x["m"]), every(x["n"])
    return [
        SurfaceSpec(("m", "n", "k"), (m, wide, deep), (0.3, 0.3, 0.3), 0.3),
        SurfaceSpec(
            ("m", "n"),
            (every_m if len(every_m) <= MANY else m, every_n if len(every_n) <= MANY else wide),
            (0.0, 0.0),
            1.0,
        ),
    ]


# -- attention --------------------------------------------------------------------------------------------------


def _prefill(frame: pd.DataFrame, dtype: str) -> Points:
    del dtype
    columns = {c: _column(frame, c) for c in ("batch", "new", "computed", "heads", "kv_heads", "head_dim", "window")}
    return prefill_points(**columns, kv_bytes=KV_BYTES[str(frame["kv_dtype"].iloc[0])])


def _prefill_specs(x: Points) -> Sequence[SurfaceSpec]:
    rows = knots(x["rows"], 64, 256, 1024, 4096, 8192, 16384, 32768, 65536, 131072, 262144, 1048576)
    keys = knots(x["keys"], 4, 8, 16, 32, 64, 128, 256, 512, 768, 1024, 2048, 4096)
    tokens = knots(x["tokens"], 16, 64, 256, 1024, 4096, 16384, 65536)
    queries = knots(x["queries"], 16, 32, 64, 128, 256, 512, 1024, 1536, 2048, 3072, 4096, 8192)
    kv, group = knots(x["kv_heads"], 2, 4, 8, 16, 32), knots(x["group"], 2, 4, 8, 16)
    few = knots(x["keys"], 64, 512, 2048)
    return [
        SurfaceSpec(("rows", "keys", "group"), (rows, keys, group), (0.1, 0.1, 0.1), 0.1),
        SurfaceSpec(("tokens", "kv_heads", "group"), (tokens, kv, group), (0.1, 0.1, 0.1), 0.3),
        SurfaceSpec(("rows", "queries", "kv_heads"), (rows, queries, kv), (0.1, 0.1, 0.1), 0.3),
        SurfaceSpec(("rows", "keys", "clipped"), (rows, few, every(x["clipped"])), (0.1, 0.1, 0.0), 0.3),
        SurfaceSpec(("rows", "keys", "uneven"), (rows, few, every(x["uneven"])), (0.1, 0.1, 0.0), 0.3),
    ]


def _decode(frame: pd.DataFrame, dtype: str) -> Points:
    del dtype
    columns = {c: _column(frame, c) for c in ("batch", "context", "heads", "kv_heads", "head_dim", "window")}
    return decode_points(**columns, kv_bytes=KV_BYTES[str(frame["kv_dtype"].iloc[0])])


def _decode_specs(x: Points) -> Sequence[SurfaceSpec]:
    blocks = knots(x["blocks"], 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
    context = knots(x["context"], 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
    kv, group = knots(x["kv_heads"], 2, 4), knots(x["group"], 2, 4, 8, 16)
    few = knots(x["context"], 128, 1024)
    return [
        SurfaceSpec(("blocks", "context", "group"), (blocks, context, group), (0.03, 0.03, 0.1), 0.1),
        SurfaceSpec(("blocks", "context", "kv_heads"), (blocks, context, kv), (0.1, 0.1, 0.1), 0.3),
        SurfaceSpec(("blocks", "context", "clipped"), (blocks, few, every(x["clipped"])), (0.1, 0.1, 0.0), 0.3),
    ]


# -- experts ----------------------------------------------------------------------------------------------------


def _experts(frame: pd.DataFrame, dtype: str) -> Points:
    frame = frame.assign(all_rows=frame["tokens"] * frame["top_k"])
    columns = {c: _column(frame, c) for c in ("rows", "all_rows", "experts", "routing", "hidden", "inter", "gated")}
    return expert_points(**columns, weight_bytes=number_of(dtype)[1])


def _expert_specs(x: Points) -> Sequence[SurfaceSpec]:
    load = knots(x["load"], 0.1, 0.5, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096)
    few = knots(x["load"], 0.5, 2, 8, 32, 128, 512, 2048)
    experts = knots(x["experts"], 2, 4, 8, 16, 32, 64, 128, 256)
    blocks = knots(x["blocks"], 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
    tiles = knots(x["tiles"], 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 32768)
    hidden = knots(x["hidden"], 3000, 4096, 6144)
    inter = knots(x["inter"], 32, 64, 128, 256, 512, 1024, 2048, 4096)
    spread = knots(x["spread"], 2, 8, 32, 128)
    return [
        SurfaceSpec(("load", "inter", "uneven"), (few, inter, every(x["uneven"])), (1.0, 1.0, 0.0), 0.5),
        SurfaceSpec(("load", "experts", "routing"), (load, experts, every(x["routing"])), (0.3, 0.3, 0.0), 0.3),
        SurfaceSpec(("load", "spread", "inter"), (few, spread, inter), (0.3, 0.3, 0.3), 0.5),
        SurfaceSpec(("blocks", "load", "hidden"), (blocks, load, hidden), (0.3, 0.3, 0.3), 0.3),
        SurfaceSpec(("tiles", "inter", "hidden"), (tiles, inter, hidden), (0.3, 0.3, 0.3), 0.3),
    ]


# -- MLA, in the dimensions of DeepSeek-V3 --------------------------------------------------------------------------


def _latent_shapes(frame: pd.DataFrame) -> dict[int, AttentionShape]:
    kv = str(frame["kv_dtype"].iloc[0])
    return {
        h: attention_shape(replace(DEEPSEEK, num_heads=h), 1, FORMATS.get(kv, kv), 2.0)
        for h in sorted({int(h) for h in frame["heads"]})
    }


def _of_shape(frame: pd.DataFrame, shapes: Mapping[int, AttentionShape], name: str) -> Floats:
    return frame["heads"].map({h: getattr(shape, name) for h, shape in shapes.items()}).to_numpy(dtype=float)


def _latent_decode(frame: pd.DataFrame, dtype: str) -> Points:
    del dtype
    shapes = _latent_shapes(frame)
    batch, context = _column(frame, "batch"), _column(frame, "context")
    flops = batch * (
        context * _of_shape(frame, shapes, "flops_per_context") + _of_shape(frame, shapes, "flops_per_sequence")
    )
    size = batch * (
        context * _of_shape(frame, shapes, "bytes_per_context") + _of_shape(frame, shapes, "bytes_per_sequence")
    )
    return latent_decode_points(
        batch, context, _column(frame, "heads"), flops, size + _of_shape(frame, shapes, "weight_bytes")
    )


def _latent_decode_specs(x: Points) -> Sequence[SurfaceSpec]:
    batch = knots(x["batch"], 2, 4, 8, 16, 32, 64, 128, 256, 512)
    context = knots(x["context"], 32, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
    heads = knots(x["heads"], 2, 4, 8, 16, 32, 64)
    return [SurfaceSpec(("batch", "context", "heads"), (batch, context, heads), (0.03, 0.03, 0.1), 0.1)]


def _latent_prefill(frame: pd.DataFrame, dtype: str) -> Points:
    del dtype
    shapes = _latent_shapes(frame)
    batch, new, computed = (_column(frame, c) for c in ("batch", "new", "computed"))
    per_pair = _of_shape(frame, shapes, "flops_per_pair")
    span = new + computed
    flops = new * (computed + 0.5 * (new + 1.0)) * per_pair + span * _of_shape(frame, shapes, "flops_per_span")
    size = span * _of_shape(frame, shapes, "bytes_per_context") + new * _of_shape(frame, shapes, "bytes_per_new")
    heads = _column(frame, "heads")
    return latent_prefill_points(batch, new, computed, heads, batch * flops, batch * size, per_pair / heads)


def _latent_prefill_specs(x: Points) -> Sequence[SurfaceSpec]:
    tokens = knots(x["tokens"], 4, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 65536)
    queries = knots(x["queries"], 16, 64, 128, 256, 512, 1024, 1536, 2048, 4096, 8192)
    heads = knots(x["heads"], 2, 4, 8, 16, 32, 64)
    return [SurfaceSpec(("tokens", "queries", "heads"), (tokens, queries, heads), (0.03, 0.03, 0.1), 0.1)]


RECIPES: Mapping[str, Recipe] = {
    # Weights are rotated through about 64 MB, which sweeps a cache of 50 MB but not one of 96 MB.
    "gemm": Recipe(
        GEMM,
        ("dtype",),
        ("n", "k"),
        _gemm,
        _gemm_specs,
        lambda x: x["size"],
        lambda cache: 34e6 * (cache > 64e6),
        ForestSpec(500, 8),
        fewest=12,  # of (n, k): a handful says nothing of the others, and near relations' kernels say more
        dense=True,
        twins={"fp8_block": "fp8"},  # the same bytes, and the same products at the same rate
    ),
    "prefill_attention": Recipe(PREFILL, ("head_dim", "kv_dtype"), ("heads", "kv_heads"), _prefill, _prefill_specs),
    "decode_attention": Recipe(
        DECODE,
        ("head_dim", "kv_dtype", "windowed"),
        ("heads", "kv_heads"),
        _decode,
        _decode_specs,
        lambda x: x["size"],
        lambda cache: 1.5 * cache,
    ),
    "experts": Recipe(
        EXPERTS,
        ("dtype",),
        ("hidden", "inter", "experts", "top_k"),
        _experts,
        _expert_specs,
        lambda x: x["touched"] * x["weight_bytes"],
        forest=ForestSpec(300, 8),
    ),
    "latent_decode": Recipe(
        LATENT_DECODE, ("kv_dtype",), ("heads",), _latent_decode, _latent_decode_specs, forest=ForestSpec(300, 6)
    ),
    "latent_prefill": Recipe(
        LATENT_PREFILL, ("kv_dtype",), ("heads",), _latent_prefill, _latent_prefill_specs, forest=ForestSpec(300, 6)
    ),
}
