"""Per-request logs of a real engine: ``meta.json``, ``requests.jsonl``, ``prompt_blocks.jsonl`` for prefix caching.

Every request arrives when the engine queued it and has the lengths it had; blocks of equal id are equal prefixes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from profiler.validate import training
from profiler.validate.reading import MeasurementError, open_text
from profiler.validate.residuals import Comparison, Metric, Residual, median_error, over
from profiler.validate.served import Options, Server, serve
from simulator.core.errors import UserError
from simulator.cost.defaults import overhead_of_version
from simulator.metrics.requests import latencies
from traces.prefix import ensure_chained, from_rows
from traces.trace import Trace

KIND = "requests"
FIELDS = ("input_toks", "output_toks", "queued_ts", "first_token_ts", "last_token_ts")
BLOCK_TOKENS = 16
# Arguments of a scenario's engine that the log's ``engine_kwargs`` may hold.
ENGINE_FIELDS = (
    "tensor_parallel_size", "pipeline_parallel_size", "enable_expert_parallel", "max_num_seqs",
    "max_num_batched_tokens", "enforce_eager", "gpu_memory_utilization", "block_size",
    "enable_prefix_caching", "async_scheduling", "long_prefill_token_threshold", "num_gpu_blocks_override",
)  # fmt: skip
STATISTICS: dict[str, Callable[[np.ndarray], float]] = {
    "mean": lambda x: float(np.mean(x)),
    "p50": lambda x: float(np.percentile(x, 50)),
    "p90": lambda x: float(np.percentile(x, 90)),
    "p99": lambda x: float(np.percentile(x, 99)),
}
BARS = {"mean": 2.0, "p99": 3.0}


def compare(path: Path, options: Options) -> Comparison:
    """Replay a folder. Raises MeasurementError or, for a server that cannot be built, the UserError."""
    meta = _json(path / "meta.json")
    rows = _rows(path / "requests.jsonl", FIELDS)
    order = np.argsort([r["queued_ts"] for r in rows], kind="stable")
    rows = [rows[i] for i in order]
    trace = _trace(path, rows)
    server = _server(path, meta)
    setup = server.setup(options)
    seen = latencies(serve(setup, trace).requests)
    queued, first, last = (np.array([r[c] for r in rows]) for c in FIELDS[2:])
    gaps = np.maximum(trace.output_tokens - 1, 1)
    measured = {"ttft": first - queued, "tpot": (last - first) / gaps, "e2e": last - queued}
    predicted = {"ttft": seen.ttft, "tpot": seen.tpot, "e2e": seen.e2e}
    part = training.part(KIND, {"folder": path.name})
    residuals = [
        Residual(
            KIND, f"{path.name}:{rows[i].get('request_id', i)}", name, "s", float(predicted[name][i]),
            float(measured[name][i]), setup.model.name, setup.gpu.name, float(trace.arrival[i]), part,
        )
        for name in measured
        for i in range(len(rows))
        if measured[name][i] > 0 and np.isfinite(predicted[name][i])
    ]  # fmt: skip
    return Comparison(KIND, path, tuple(residuals))


def summary(residuals: Sequence[Residual]) -> list[Metric]:
    """Errors of means and percentiles over the log, and the median error of a request."""
    metrics: list[Metric] = []
    for name in ("ttft", "tpot", "e2e"):
        own = [r for r in residuals if r.metric == name]
        predicted, measured = (np.array([getattr(r, side) for r in own]) for side in ("predicted", "measured"))
        for label, statistic in STATISTICS.items() if own else ():
            error = 100 * (statistic(predicted) / statistic(measured) - 1)
            metrics.append(Metric(f"{KIND}.{name}.{label}.error", error, "%", BARS.get(label)))
    metrics += [
        Metric(f"{KIND}.{name}.per_request_median", over(residuals, name, median_error), "%")
        for name in ("ttft", "tpot", "e2e")
    ]
    return [*metrics, Metric(f"{KIND}.requests", len({r.case for r in residuals}), "requests")]


def _json(path: Path) -> dict[str, Any]:
    try:
        with open_text(path) as text:
            value = json.load(text)
    except (OSError, ValueError) as error:
        raise MeasurementError(f"cannot be read: {error}.", where=str(path)) from error
    if not isinstance(value, dict):
        raise MeasurementError("is not a JSON object.", where=str(path))
    return value


def _rows(path: Path, numbers: tuple[str, ...]) -> list[dict[str, Any]]:
    """Lines of JSON that must hold finite numbers under ``numbers``."""
    rows = []
    with open_text(path) as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                for name in numbers:
                    if not np.isfinite(float(row[name])):
                        raise ValueError(f"{name} is {row[name]}")
            except (ValueError, KeyError, TypeError) as error:
                what = f"{type(error).__name__}: {error}"
                raise MeasurementError(f"not a request: {what}.", where=f"{path}:{number}") from error
            rows.append(row)
    if not rows:
        raise MeasurementError("holds no requests.", where=str(path))
    return rows


def _trace(path: Path, rows: list[dict[str, Any]]) -> Trace:
    blocks = next((p for n in ("prompt_blocks.jsonl.gz", "prompt_blocks.jsonl") if (p := path / n).is_file()), None)
    prefix = None
    if blocks is not None:
        by_id = {r["request_id"]: r["block_ids"] for r in _rows(blocks, ())}
        try:
            prefix = ensure_chained(from_rows([by_id[r["request_id"]] for r in rows], BLOCK_TOKENS))
        except KeyError as error:
            raise MeasurementError(f"has no blocks of request {error}.", where=str(blocks)) from error
    queued = np.array([r["queued_ts"] for r in rows])
    return Trace(
        arrival=queued - queued.min(),
        prompt_tokens=np.array([r["input_toks"] for r in rows]),
        output_tokens=np.array([r["output_toks"] for r in rows]),
        prefix=prefix,
        source=str(path),
    )


def _server(path: Path, meta: Mapping[str, Any]) -> Server:
    arguments = meta.get("engine_kwargs")
    if not isinstance(arguments, dict) or "model" not in arguments:
        raise MeasurementError("lacks engine_kwargs with a model.", where=str(path / "meta.json"))
    gpu = meta.get("gpu") or _gpu_of(path)
    engine = {name: arguments[name] for name in ENGINE_FIELDS if arguments.get(name) is not None}
    engine["max_model_len"] = arguments.get("max_model_len") or 0
    return Server(
        model=str(arguments["model"]),
        gpu=str(gpu),
        engine=engine,
        overhead=overhead_of_version(str(meta.get("vllm_version", "0.33"))),
        dtype=str(arguments.get("dtype") or "auto"),
        quantization=arguments.get("quantization"),
        kv_cache_dtype=str(arguments.get("kv_cache_dtype") or "auto"),
    )


def _gpu_of(path: Path) -> str:
    """From ``config.json`` (``hardware``), else from the folder's name (``GPU-model``)."""
    config = path / "config.json"
    if config.is_file():
        try:
            return str(_json(config)["nodes"][0]["instances"][0]["hardware"])
        except (KeyError, IndexError, TypeError) as error:
            raise MeasurementError("names no hardware.", where=str(config)) from error
    name = path.name.partition("-")[0]
    if not name:
        raise UserError("does not say which GPU it ran on.", where=str(path))
    return name
