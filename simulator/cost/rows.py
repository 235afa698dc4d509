"""Plain rows behind ``windtunnel models``, ``gpus`` and ``fit``: numbers in base units, for a table or JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from simulator.core.errors import UserError
from simulator.cost.memory import kv_bytes_per_token, memory_plan
from simulator.hardware.gpu import Gpu, gpus
from simulator.model.architecture import LatentAttention, LinearAttention, Model
from simulator.model.catalogue import models
from simulator.model.weights import parameters

Value = str | int | float | None


def model_rows() -> list[dict[str, Value]]:
    """One row per model of the catalogue."""
    rows: list[dict[str, Value]] = []
    for model in models().values():
        count = parameters(model)
        rows.append(
            {
                "model": model.name,
                "parameters": count.total,
                "active_parameters": count.active,
                "layers": model.num_layers,
                "attention": _attention(model),
                "experts": next((f"{x.moe.top_k}/{x.moe.num_experts}" for x in model.layers if x.moe), None),
                "kv_bytes_per_token": kv_bytes_per_token(model),
                "max_model_len": model.max_model_len,
                "weights": model.quantization.format if model.quantization else model.dtype,
                "source": model.source,
            }
        )
    return rows


def _attention(model: Model) -> str:
    """Heads and KV heads of the first softmax layer, and what else there is."""
    kinds = list(dict.fromkeys(x.attention for x in model.layers))
    names = []
    for a in kinds:
        if isinstance(a, LatentAttention):
            names.append(f"MLA {a.num_heads} heads, latent {a.latent_dim}")
        elif isinstance(a, LinearAttention):
            names.append(f"gated delta {a.num_value_heads} heads")
        else:
            window = f", window {a.sliding_window}" if a.sliding_window else ""
            names.append(f"{a.num_heads}/{a.num_kv_heads} x {a.head_dim}{window}")
    return " + ".join(names)


def gpu_rows() -> list[dict[str, Value]]:
    """One row per GPU of the catalogue."""
    return [
        {
            "gpu": g.name,
            "memory_bytes": g.memory_bytes,
            "memory_bandwidth": g.memory_bandwidth,
            **{f"{name}_flops": g.peak_flops.get(name) for name in ("bf16", "fp16", "fp8", "int8", "fp4")},
            "tdp_w": g.tdp_w,
            "link": g.link.kind,
            "link_bandwidth": g.link.bandwidth,
            "gpus_per_node": g.gpus_per_node,
            "price_per_hour": g.price_per_hour,
            "reserved_price_per_hour": g.price("reserved"),
            "spot_price_per_hour": g.spot_price_per_hour,
            "price_source": g.price_source,
            "source": g.source,
        }
        for g in gpus().values()
    ]


def fit_rows(
    model: Model,
    candidates: Iterable[Gpu] | None = None,
    *,
    tensor_parallel_sizes: Sequence[int] = (1, 2, 4, 8),
    dtype: str = "auto",
    quantization: str | None = None,
    kv_cache_dtype: str = "auto",
    gpu_memory_utilization: float = 0.92,
    max_model_len: int = 0,
) -> list[dict[str, Value]]:
    """Does the model fit? One row per GPU and tensor-parallel size within a node; ``why_not`` says what is missing."""
    rows: list[dict[str, Value]] = []
    for g in gpus().values() if candidates is None else candidates:
        for tp in (n for n in tensor_parallel_sizes if n <= g.gpus_per_node):
            row: dict[str, Value] = {"gpu": g.name, "tensor_parallel_size": tp}
            try:
                plan = memory_plan(
                    model, g, tp=tp, dtype=dtype, quantization=quantization, kv_cache_dtype=kv_cache_dtype,
                    gpu_memory_utilization=gpu_memory_utilization, max_model_len=max_model_len,
                )  # fmt: skip
            except UserError as error:
                rows.append({**row, "fits": "no", "why_not": error.message, "remedy": error.remedy})
                continue
            price = None if g.price_per_hour is None else g.price_per_hour * tp
            rows.append(
                {
                    **row,
                    "fits": "yes",
                    "weight_bytes": plan.weight_bytes,
                    "activation_bytes": plan.activation_bytes,
                    "kv_cache_bytes": plan.kv_cache_bytes,
                    "num_gpu_blocks": plan.num_gpu_blocks,
                    "kv_tokens": plan.kv_tokens,
                    "max_concurrency": plan.max_concurrency,
                    "price_per_hour": price,
                }
            )
    return rows
