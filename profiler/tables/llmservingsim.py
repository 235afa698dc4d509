"""Kernel tables of LLMServingSim (MIT): CSV, one model on one GPU, seconds in microseconds.

``dense.csv`` (layer, tokens), ``per_sequence.csv`` (layer, sequences), ``attention.csv`` (one chunk of a prompt beside
equal decodes; only its pure rows are read: a chunk alone, or decodes alone). The files name neither model nor GPU:
both come from the folder's name (``RTXPRO6000-Llama-3.1-8B-tp1``) and the catalogue of models.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from profiler.tables.columns import Tables
from simulator.core.errors import CalibrationError
from simulator.model.architecture import Attention, Model
from simulator.model.catalogue import model
from simulator.model.weights import layer_linears, vocab_rows

FOLDER = re.compile(r"(?P<gpu>[^-]+)-(?P<model>.+)-tp(?P<tp>\d+)$")
FILES = ("dense", "per_sequence", "attention")
SOURCE = "LLMServingSim 5daddb2"


def read(path: Path) -> Tables:
    """One CSV file in its folder. Raises CalibrationError."""
    name = path.name.split(".")[0]
    tables = Tables()
    if name not in FILES:
        return tables  # skew.csv times uneven decode batches, which no law takes yet
    found = FOLDER.match(path.parent.name)
    if found is None:
        raise CalibrationError(
            f"the folder {path.parent.name!r} does not name GPU, model and tensor-parallel size",
            where=str(path), remedy="rename it as GPU-MODEL-tpN, such as RTXPRO6000-Llama-3.1-8B-tp1",
        )  # fmt: skip
    served, tp = model(found["model"]), int(found["tp"])
    try:
        raw = pd.read_csv(path)
        {"dense": _dense, "per_sequence": _per_sequence, "attention": _attention}[name](tables, raw, served, tp, path)
    except KeyError as error:
        raise CalibrationError(f"column {error} is missing", where=str(path)) from error
    except (pd.errors.ParserError, UnicodeDecodeError, OSError) as error:
        raise CalibrationError(f"not a readable CSV file: {error}", where=str(path)) from error
    tables.provenance.append({"source": SOURCE, "licence": "MIT", "table": name, "device": found["gpu"], "engine": ""})
    return tables


def _rows(frame: pd.DataFrame, **columns: Any) -> pd.DataFrame:
    given: dict[str, Any] = {"dtype": "bf16", "seconds": frame["time_us"] * 1e-6, "kernel": "llmservingsim"}
    return frame.assign(**given, source=SOURCE, **columns)


def _dense(tables: Tables, raw: pd.DataFrame, served: Model, tp: int, path: Path) -> None:
    layer = served.layers[0]
    for linear in layer_linears(served, layer, tp):
        rows = raw.loc[raw["layer"] == linear.name]
        if len(rows):
            tables.add("gemm", _rows(rows, m=rows["tokens"], n=linear.out_features, k=linear.in_features), path)
    attention = layer.attention
    assert isinstance(attention, Attention)
    assert layer.mlp is not None
    rotated = (attention.num_heads + attention.num_kv_heads) // tp * attention.head_dim * 2
    # Elements read and written per token: fused add and norm reads and writes two vectors, gate x up reads two.
    widths = {
        "layernorm": 4 * served.hidden_size, "final_layernorm": 4 * served.hidden_size, "rotary_emb": rotated,
        "act_fn": 3 * layer.mlp.intermediate_size // tp, "embedding": 2 * served.hidden_size,
    }  # fmt: skip
    for name, width in widths.items():
        rows = raw.loc[raw["layer"] == name]
        if len(rows):
            tables.add("elementwise", _rows(rows, bytes=rows["tokens"] * width * 2.0, kernels=1, name=name), path)


def _per_sequence(tables: Tables, raw: pd.DataFrame, served: Model, tp: int, path: Path) -> None:
    rows = raw.loc[raw["layer"] == "lm_head"]
    shape = {"n": vocab_rows(served.vocab_size, tp), "k": served.hidden_size}
    if len(rows):
        tables.add("gemm", _rows(rows, m=rows["sequences"], **shape), path)


def _attention(tables: Tables, raw: pd.DataFrame, served: Model, tp: int, path: Path) -> None:
    a = served.layers[0].attention
    assert isinstance(a, Attention)
    heads = {
        "heads": a.num_heads // tp, "kv_heads": max(a.num_kv_heads // tp, 1), "head_dim": a.head_dim, "window": 0,
        "kv_dtype": "bf16",
    }  # fmt: skip
    chunk = raw.loc[(raw["n_decode"] == 0) & (raw["prefill_chunk"] > 0)]
    if len(chunk):
        new, computed = chunk["prefill_chunk"], chunk["kv_prefill"]
        tables.add("prefill_attention", _rows(chunk, batch=1, new=new, computed=computed, **heads), path)
    decode = raw.loc[(raw["n_decode"] > 0) & (raw["prefill_chunk"] == 0)]
    if len(decode):
        context = np.maximum(decode["kv_decode"], 1)
        tables.add("decode_attention", _rows(decode, batch=decode["n_decode"], context=context, **heads), path)
