"""Profiles of Vidur (MIT): CSV, one row per token count and tensor-parallel size, medians in milliseconds.

The file names neither GPU nor version. Its matrix products become GEMM rows, its norms, rotary embedding and activation
elementwise rows; its separate residual additions, which engines fuse into the norm, are left out. Vidur times kernels
with PyTorch's profiler, so launch gaps are not in them.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from profiler.tables.columns import Tables
from simulator.core.errors import CalibrationError

SOURCE = "Vidur"
SHAPE = (
    "n_head",
    "n_kv_head",
    "n_embd",
    "n_expanded_embd",
    "use_gated_mlp",
    "num_tokens",
    "num_tensor_parallel_workers",
)


def is_vidur(columns: list[str]) -> bool:
    return "num_tensor_parallel_workers" in columns and any(c.startswith("time_stats.") for c in columns)


def read(path: Path) -> Tables:
    """One ``*-mlp.csv``. Raises CalibrationError."""
    tables = Tables()
    raw = pd.read_csv(path)
    missing = [c for c in SHAPE if c not in raw]
    if missing:
        raise CalibrationError(f"columns are missing: {', '.join(missing)}", where=str(path))
    tp, tokens = raw["num_tensor_parallel_workers"], raw["num_tokens"]
    hidden, inner = raw["n_embd"], raw["n_expanded_embd"] // tp
    head = hidden // raw["n_head"]
    heads, kv = raw["n_head"] // tp, (raw["n_kv_head"] // tp).clip(lower=1)
    wide = raw["use_gated_mlp"].astype(int) + 1
    for name, n, k in (
        ("attn_pre_proj", (heads + 2 * kv) * head, hidden),
        ("attn_post_proj", hidden, heads * head),
        ("mlp_up_proj", inner * wide, hidden),
        ("mlp_down_proj", hidden, inner),
    ):
        rows = _timed(raw, name)
        if rows is not None:
            tables.add("gemm", rows.assign(m=tokens, n=n, k=k).dropna(subset=["seconds"]), path)
    for name, width in (
        ("input_layernorm", 2 * hidden),
        ("post_attention_layernorm", 2 * hidden),
        ("attn_rope", 2 * (heads + kv) * head),
        ("mlp_act", (1 + wide) * inner),
    ):
        rows = _timed(raw, name)
        if rows is not None:
            moved = rows.assign(bytes=tokens * width * 2.0, kernels=1, name=name)
            tables.add("elementwise", moved.dropna(subset=["seconds"]), path)
    device = path.name.split("-")[0]
    tables.provenance.append({"source": SOURCE, "licence": "MIT", "table": path.name, "device": device, "engine": ""})
    return tables


def _timed(raw: pd.DataFrame, name: str) -> pd.DataFrame | None:
    column = f"time_stats.{name}.median"
    if column not in raw:
        return None
    return pd.DataFrame(
        {"seconds": raw[column] * 1e-3, "dtype": "bf16", "kernel": "vidur", "source": SOURCE}, index=raw.index
    )
