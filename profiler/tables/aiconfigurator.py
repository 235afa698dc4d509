"""Kernel tables of NVIDIA aiconfigurator (Apache-2.0): parquet, one file per operator.

``latency`` is in milliseconds, head counts are per GPU, ``message_size`` counts elements of two bytes (or of one for
int8), ``step`` is the context already in the cache. Where several kernels occur in one file each shape was measured
with the one vLLM picks for it; no shape occurs twice, so all rows are what an engine runs. Choices made here:

- all-reduce inside CUDA graphs (``vllm_graph``) is the engine's own and preferred; NCCL's serves where it is missing;
- rows of a mixture of experts whose experts are spread over ranks (``moe_ep_size > 1``) under a power law time the
  busiest rank of a random draw, whose load the table does not state: they are left out;
- FP8 GEMMs include the static quantisation of their input.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd

from profiler.tables.columns import SHAPES, Tables, medians
from simulator.core.errors import CalibrationError

DTYPES = {
    "bfloat16": "bf16", "float16": "fp16", "half": "bf16", "fp8": "fp8", "fp8_block": "fp8_block", "int4_wo": "int4",
    "w4a16_mxfp4": "mxfp4", "nvfp4": "nvfp4", "w4a8_mxfp4_mxfp8": "mxfp4_fp8", "int8": "int8",
}  # fmt: skip
FRAMEWORKS = {"VLLM": "vLLM", "TRTLLM": "NCCL by TensorRT-LLM"}
ROUTING = {"balanced": 0.0, "power_law_1.01": 1.01, "power_law_1.2": 1.2}


def _gemm(d: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    return "gemm", d.assign(dtype=d["gemm_dtype"].map(DTYPES))


def _context(d: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    return "prefill_attention", _attention(d).assign(new=d["isl"], computed=d["step"])


def _generation(d: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    return "decode_attention", _attention(d).assign(context=d["step"] + d["isl"])


def _attention(d: pd.DataFrame) -> pd.DataFrame:
    return d.assign(
        batch=d["batch_size"], heads=d["num_heads"], dtype=d["attn_dtype"].map(DTYPES),
        kv_heads=d["num_key_value_heads"].where(d["num_key_value_heads"] > 0, d["num_heads"]),
        window=d.get("window_size", 0), kv_dtype=d["kv_cache_dtype"].map(DTYPES),
    )  # fmt: skip


def _moe(d: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    routing = d["distribution"].map(ROUTING)
    d = d.loc[(d["moe_ep_size"] == 1) | (routing == 0.0)]
    local = d["num_experts"] // d["moe_ep_size"]
    return "experts", d.assign(
        dtype=d["moe_dtype"].map(DTYPES), tokens=d["num_tokens"], hidden=d["hidden_size"], top_k=d["topk"],
        inter=-(-d["inter_size"] // d["moe_tp_size"]), experts=local, gated=_gated(d),
        routing=routing, rows=d["num_tokens"] * d["topk"] * local / d["num_experts"],
    )  # fmt: skip


def _gated(d: pd.DataFrame) -> pd.Series[bool]:
    """The table does not say which models have two matrices per expert instead of three. The Nemotron-H shapes do: with
    three, their weights would stream at 1.3-1.4 x the GPU's bandwidth. Tables of vLLM 0.14 timed three for them too:
    with two they would be slower than every other shape.
    """
    nemotron = (d["topk"] == 22) | ((d["hidden_size"] == 2688) & (d["topk"] == 6))
    return ~(nemotron & (d["version"] != "0.14.0"))


def _mla_context(d: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    d = _mla(d)
    return "mla_prefill", d.assign(new=d["isl"], computed=d["step"])


def _mla_generation(d: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    d = _mla(d)
    return "mla_decode", d.assign(context=d["step"])


def _mla(d: pd.DataFrame) -> pd.DataFrame:
    plain = d.loc[(d["mla_dtype"] == "bfloat16") & (d["gemm_type"] == "bfloat16")]
    return plain.assign(
        batch=plain["batch_size"], heads=plain["num_heads"], dtype="bf16", kv_dtype=plain["kv_cache_dtype"].map(DTYPES)
    )


def _all_reduce(d: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    d = d.loc[d["backend"] == "vllm_graph"] if "backend" in d else d
    return "all_reduce", d.assign(ranks=d["num_gpus"], size_bytes=d["message_size"] * 2.0, dtype="bf16")


READERS: Mapping[str, Callable[[pd.DataFrame], tuple[str, pd.DataFrame]]] = {
    "gemm": _gemm,
    "context_attention": _context,
    "generation_attention": _generation,
    "moe": _moe,
    "mla_context_module": _mla_context,
    "mla_generation_module": _mla_generation,
    "custom_allreduce": _all_reduce,
}
COLLECTIVES = {"all_reduce": "nccl_all_reduce", "all_gather": "all_gather", "reduce_scatter": "reduce_scatter",
               "alltoall": "all_to_all"}  # fmt: skip


def read(path: Path) -> Tables:
    """One parquet file. Raises CalibrationError when it is none of aiconfigurator's."""
    tables = Tables()
    name = path.stem
    if name != "nccl_perf" and name not in READERS:
        return tables  # operators that no cost model asks for (quantisation differences, batched MLA products)
    try:
        raw = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise CalibrationError(f"not a readable parquet file: {error}", where=str(path)) from error
    try:
        if name == "nccl_perf":
            for operator, rows in _nccl(raw):
                _add(tables, operator, rows, path)
        else:
            operator, rows = READERS[name](raw)
            _add(tables, operator, rows, path)
        stamp = raw.iloc[0]
        framework = FRAMEWORKS.get(str(stamp["framework"]), str(stamp["framework"]))
        tables.provenance.append(
            {
                "source": "NVIDIA aiconfigurator 095f58a", "licence": "Apache-2.0", "table": name,
                "device": str(stamp["device"]), "engine": f"{framework} {stamp['version']}",
            }
        )  # fmt: skip
    except KeyError as error:
        raise CalibrationError(f"column {error} is missing", where=str(path)) from error
    return tables


def _nccl(raw: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    rows = raw.loc[raw["nccl_dtype"] == "half"]
    rows = rows.assign(ranks=rows["num_gpus"], size_bytes=rows["message_size"] * 2.0, dtype="bf16")
    return [(COLLECTIVES[str(op)], part) for op, part in rows.groupby("op_name") if op in COLLECTIVES]


def _add(tables: Tables, operator: str, rows: pd.DataFrame, path: Path) -> None:
    rows = rows.assign(seconds=rows["latency"] * 1e-3, kernel=rows["kernel_source"], source="aiconfigurator")
    tables.add(operator, medians(rows, [*SHAPES[operator], "dtype"]), path)
