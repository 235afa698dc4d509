"""``windtunnel fit``."""

from __future__ import annotations

from typing import Annotated

import typer

from simulator.cli.console import out, print_json, print_rows
from simulator.cli.options import AsJson, Dtype, KvCacheDtype, Quantization
from simulator.core.units import format_bytes

Row = dict[str, str | int | float | None]


def fit(
    model: Annotated[str, typer.Argument(help="Catalogue name or path of a config.json.", show_default=False)],
    gpu: Annotated[
        str | None, typer.Argument(help="Catalogue name; every GPU unless given.", show_default=False)
    ] = None,
    tensor_parallel_size: Annotated[
        int | None,
        typer.Option("--tp", min=1, help="Tensor-parallel size; 1, 2, 4 and 8 unless given.", show_default=False),
    ] = None,
    dtype: Dtype = "auto",
    quantization: Quantization = None,
    kv_cache_dtype: KvCacheDtype = "auto",
    gpu_memory_utilization: Annotated[float, typer.Option(help="Share of the memory the engine may take.")] = 0.92,
    max_model_len: Annotated[int, typer.Option(min=0, help="Longest prompt plus output; 0: the model's own.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Does a model fit, and how many tokens of KV cache are left?"""
    from simulator.cost.rows import fit_rows
    from simulator.hardware.gpu import gpu as find_gpu
    from simulator.model.catalogue import model as find_model

    found = find_model(model)
    rows = fit_rows(
        found,
        None if gpu is None else [find_gpu(gpu)],
        tensor_parallel_sizes=(1, 2, 4, 8) if tensor_parallel_size is None else (tensor_parallel_size,),
        dtype=dtype,
        quantization=quantization,
        kv_cache_dtype=kv_cache_dtype,
        gpu_memory_utilization=gpu_memory_utilization,
        max_model_len=max_model_len,
    )
    if as_json:
        print_json(rows)
        return
    fitting = [row for row in rows if row["fits"] == "yes"]
    if fitting:
        print_rows([_short(row) for row in fitting], title=f"{found.name} fits")
    for row in rows if gpu is not None or not fitting else ():
        if row["fits"] != "yes":
            text = f"{row['gpu']} x {row['tensor_parallel_size']}: {row['why_not']}. {row['remedy'] or ''}"
            out().print(text, markup=False, soft_wrap=True)


def _short(row: Row) -> dict[str, object]:
    return {
        "gpu": row["gpu"],
        "tp": row["tensor_parallel_size"],
        "weights": format_bytes(float(row["weight_bytes"] or 0)),
        "activation": format_bytes(float(row["activation_bytes"] or 0)),
        "KV cache": format_bytes(float(row["kv_cache_bytes"] or 0)),
        "KV tokens": row["kv_tokens"],
        "at max_model_len": row["max_concurrency"],
        "USD/h": row["price_per_hour"],
    }
