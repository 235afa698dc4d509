"""``closed_loop.csv`` of InferenceX: mean TTFT and TPOT at a fixed concurrency.

The client sends ``10 x conc`` prompts, ``conc`` at a time, the first ones all at once. The server's settings are those
of InferenceX's launch scripts (benchmarks/70b_fp8_h100_slurm.sh, gptoss_fp4_h200*.sh; Apache-2.0), as ``protocol`` and
the data's README sum them up, but for one thing: the KV cache holds 16 bits per element, not 8. In fp8 it would hold
470,000 tokens of Llama-3.1-70B on two H100, and none of the queues measured there would form; with 16 bits the two
saturated rows' TPOT comes out within 1 %, and decode slows with context as measured.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from profiler.validate import training
from profiler.validate.reading import MeasurementError, Table, read_table
from profiler.validate.residuals import Comparison, Metric, Residual, mape, metrics_of
from profiler.validate.served import Options, Server, client_latencies, named, serve, uniform_lengths
from simulator.core.errors import CalibrationError, UserError
from simulator.cost.defaults import overhead_of_version
from simulator.model.architecture import Model
from traces.trace import Trace

KIND = "closed_loop"
COLUMNS = ("id", "model_path", "system", "prec", "isl", "osl", "conc", "tp_size", "silicon_ttft_ms", "silicon_tpot_ms")
UNSTATED_VERSION = "0.10.2"  # what the 2025 rows ran, by the data's README


def compare(path: Path, options: Options) -> Comparison:
    """One simulated run per row. Rows of a model or GPU that is not in the catalogue are skipped and counted."""
    table = read_table(path, COLUMNS)
    residuals: list[Residual] = []
    skipped: list[str] = []
    for row, given in table:
        if options.only_training and not training.is_training(KIND, given):
            continue
        low, prompts = _protocol(table, row)
        try:
            server = server_of(table, row)
            found = _residuals(table, row, server, low, prompts, options)
        except (MeasurementError, CalibrationError):
            raise
        except UserError as error:
            skipped.append(f"row {row} skipped: {error.message}")
            continue
        residuals += found
    if not residuals and skipped:
        raise MeasurementError(f"no row can be simulated; {skipped[0]}", where=str(path))
    return Comparison(KIND, path, tuple(residuals), tuple(skipped))


def summary(residuals: Sequence[Residual]) -> list[Metric]:
    """Mean absolute errors; saturated rows (their TTFT is a queue for admission) apart."""
    saturated = [r for r in residuals if r.part == "apart"]
    metrics = metrics_of(KIND, residuals, "mape", mape, {"ttft": 15.0, "tpot": 5.0})
    metrics.append(Metric(f"{KIND}.rows", (len(residuals) - len(saturated)) / 2, "rows"))
    metrics.append(Metric(f"{KIND}.saturated.rows", len(saturated) / 2, "rows"))
    for name in ("ttft", "tpot") if saturated else ():
        errors = np.array([r.error for r in saturated if r.metric == name])
        metrics.append(Metric(f"{KIND}.saturated.{name}.mape", mape(errors), "%"))
    return metrics


def _protocol(table: Table, row: int) -> tuple[float, int]:
    """(lowest length as a share of the nominal one, prompts per user)."""
    text = table.rows[row - 1].get("protocol") or "len~U[0.8,1], 10*conc prompts"
    low, per_user = re.search(r"U\[([\d.]+),\s*1\]", text), re.search(r"(\d+)\*conc", text)
    if low is None or per_user is None:
        raise MeasurementError(
            f"the protocol {text!r} is not understood.", where=table.where(row, "protocol"),
            remedy="It must state lengths as U[low,1] and prompts as N*conc.",
        )  # fmt: skip
    return float(low[1]), int(per_user[1])


def server_of(table: Table, row: int) -> Server:
    """The server of a row. Raises UserError for an unknown model."""
    name, precision = table.text(row, "model_path"), table.text(row, "prec")
    served, quantized = named(name)
    isl, osl, users = (table.integer(row, c) for c in ("isl", "osl", "conc"))
    given = table.rows[row - 1]
    if float(given.get("attention_dp_size") or 1) > 1:
        raise UserError("data-parallel attention is not simulated", where=table.where(row, "attention_dp_size"))
    version = (given.get("backend_version") or "").strip() or UNSTATED_VERSION
    engine: dict[str, Any] = {
        "tensor_parallel_size": table.integer(row, "tp_size"),
        "pipeline_parallel_size": int(float(given.get("pp_size") or 1)),
        "enable_expert_parallel": float(given.get("moe_ep_size") or 1) > 1,
        "max_num_seqs": users,
        "max_num_batched_tokens": 8192,
        "max_model_len": isl + osl + 200,
        "gpu_memory_utilization": 0.9,
        "enable_prefix_caching": False,
        "async_scheduling": served.is_moe or version != UNSTATED_VERSION,
    }
    sglang = (given.get("backend") or "vllm").strip() == "sglang"
    if sglang:
        engine["policy"] = "sglang"
        del engine["async_scheduling"]
    elif served.is_moe:  # gptoss_fp4_h200.sh: max-cudagraph-capture-size 2048
        engine["max_cudagraph_capture_size"] = 2048
    return Server(
        model=served.name,
        gpu=table.text(row, "system"),
        engine=engine,
        overhead="sglang" if sglang else overhead_of_version(version),
        quantization=quantized or _quantization(precision, served),
    )


def _quantization(precision: str, served: Model) -> str | None:
    """As published, else as ``prec`` says. gptoss_fp4_h200.sh sets VLLM_MXFP4_USE_MARLIN."""
    if served.quantization is not None:
        return "mxfp4_marlin" if served.quantization.format == "mxfp4" else None
    return {"fp8": "fp8", "fp4": "nvfp4"}.get(precision)


def _residuals(table: Table, row: int, server: Server, low: float, prompts: int, options: Options) -> list[Residual]:
    isl, osl, users = (table.integer(row, c) for c in ("isl", "osl", "conc"))
    measured = {name: table.number(row, f"silicon_{name}_ms") for name in ("ttft", "tpot")}
    n = prompts * users
    trace = Trace(
        arrival=np.zeros(n),
        prompt_tokens=uniform_lengths(isl, low, n, options.seed, "prompt"),
        output_tokens=uniform_lengths(osl, low, n, options.seed, "output"),
        source=f"{table.path.name}: row {row}",
    )
    setup = server.setup(options)
    seen = client_latencies(setup, serve(setup, trace, users=users))
    predicted = {"ttft": float(np.nanmean(seen.ttft)) * 1e3, "tpot": float(np.nanmean(seen.tpot)) * 1e3}
    saturated = (table.rows[row - 1].get("sat") or "").strip().lower() == "true"
    part = "apart" if saturated else training.part(KIND, table.rows[row - 1])
    case = f"{table.text(row, 'id')}"
    return [
        Residual(KIND, case, m, "ms", predicted[m], measured[m], server.model, setup.gpu.name, users, part)
        for m in predicted
    ]
