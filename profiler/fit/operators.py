"""What is fitted for each operator: points from its table, surfaces of its correction, and what a whole shape is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from profiler.fit.solve import SurfaceSpec
from profiler.tables.columns import SHAPES
from simulator.cost.correction import Floats
from simulator.cost.laws import (
    DECODE,
    EXPERTS,
    GEMM,
    PREFILL,
    Law,
    Points,
    decode_points,
    expert_points,
    gemm_points,
    prefill_points,
)
from simulator.model.formats import weight_format

FORMATS = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "mxfp4_fp8": "mxfp4"}
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
    m = knots(x["m"], 4, 8, 16, 32, 64, 128, 192, 256, 512, 1024, 2048, 4096, 8192)
    n = knots(x["n"], 128, 512, 1024, 2048, 4096, 8192, 16384)
    k = knots(x["k"], 128, 512, 1024, 2048, 4096, 8192, 16384)
    wide = every(x["n"])
    wide = wide if len(wide) <= 32 else n
    fine = every(x["m"])
    return [
        SurfaceSpec(("m", "n", "k"), (m, n, k), (0.03, 0.1, 0.1), 0.1),
        SurfaceSpec(("m", "n"), (fine if len(fine) <= 96 else m, wide), (0.0, 0.1), 0.3),
    ]


# -- attention --------------------------------------------------------------------------------------------------


def _prefill(frame: pd.DataFrame, dtype: str) -> Points:
    del dtype
    columns = {c: _column(frame, c) for c in ("batch", "new", "computed", "heads", "kv_heads", "head_dim", "window")}
    return prefill_points(**columns, kv_bytes=KV_BYTES[str(frame["kv_dtype"].iloc[0])])


def _prefill_specs(x: Points) -> Sequence[SurfaceSpec]:
    rows = knots(x["rows"], 64, 256, 1024, 4096, 8192, 16384, 32768, 65536, 131072, 262144, 1048576)
    keys = knots(x["keys"], 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
    group = knots(x["group"], 2, 4, 8, 16)
    return [
        SurfaceSpec(("rows", "keys", "group"), (rows, keys, group), (0.1, 0.1, 0.1), 0.1),
        SurfaceSpec(
            ("rows", "queries"), (rows, knots(x["queries"], 32, 64, 128, 256, 512, 1024, 2048, 4096)), (0.1, 0.1), 0.3
        ),
    ]


def _decode(frame: pd.DataFrame, dtype: str) -> Points:
    del dtype
    columns = {c: _column(frame, c) for c in ("batch", "context", "heads", "kv_heads", "head_dim", "window")}
    return decode_points(**columns, kv_bytes=KV_BYTES[str(frame["kv_dtype"].iloc[0])])


def _decode_specs(x: Points) -> Sequence[SurfaceSpec]:
    batch = knots(x["batch"], 2, 4, 8, 16, 32, 64, 128, 256, 512)
    context = knots(x["context"], 16, 128, 512, 1024, 2048, 4096, 8192, 16384, 32768)
    kv, group = knots(x["kv_heads"], 2, 4), knots(x["group"], 2, 4, 8, 16)
    return [
        SurfaceSpec(("batch", "context", "kv_heads", "group"), (batch, context, kv, group), (0.1, 0.1, 0.1, 0.1), 0.1)
    ]


# -- experts ----------------------------------------------------------------------------------------------------


def _experts(frame: pd.DataFrame, dtype: str) -> Points:
    columns = {c: _column(frame, c) for c in ("rows", "experts", "routing", "hidden", "inter", "gated")}
    return expert_points(**columns, weight_bytes=number_of(dtype)[1])


def _expert_specs(x: Points) -> Sequence[SurfaceSpec]:
    rows = knots(x["rows"], 4, 16, 64, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)
    experts = knots(x["experts"], 4, 8, 16, 32, 64, 128, 256)
    load = knots(x["load"], 0.1, 0.5, 1, 4, 16, 32, 64, 128, 256, 1024, 4096)
    weight = knots(x["weight"], 1e6, 4e6, 1.6e7, 6.4e7)
    hidden = knots(x["hidden"], 3000, 4096, 6144)
    inter = knots(x["inter"], 64, 128, 256, 512, 1024, 2048, 4096)
    routing = every(x["routing"])
    return [
        SurfaceSpec(("rows", "experts"), (rows, experts), (0.5, 0.5), 0.3),
        SurfaceSpec(("load", "weight"), (load, weight), (0.5, 1.0), 0.3),
        SurfaceSpec(("rows", "hidden"), (rows, hidden), (1.0, 1.0), 1.0),
        SurfaceSpec(("load", "inter"), (load, inter), (1.0, 1.0), 1.0),
        SurfaceSpec(("load", "experts", "routing"), (load, experts, routing), (1.0, 1.0, 0.0), 1.0),
    ]


RECIPES: Mapping[str, Recipe] = {
    "gemm": Recipe(GEMM, ("dtype",), ("n", "k"), _gemm, _gemm_specs),
    "prefill_attention": Recipe(PREFILL, ("head_dim", "kv_dtype"), ("heads", "kv_heads"), _prefill, _prefill_specs),
    "decode_attention": Recipe(DECODE, ("head_dim", "kv_dtype"), ("heads", "kv_heads"), _decode, _decode_specs),
    "experts": Recipe(EXPERTS, ("dtype",), ("hidden", "inter", "experts", "top_k"), _experts, _expert_specs),
}
