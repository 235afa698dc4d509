"""Prefill and decode phases of requests served a few at a time.

The requests are replayed at the times their prefills began; a prefill lasts from its first step to its first token.
GPU, engine version and arguments are not stated in the published files (an H100-class GPU), and what is assumed is
said. The files themselves tell the token budget: prefills take a step longer from 4,097 tokens on, and that step gets
longer from 4,609 tokens on, where its rest of over 512 tokens no longer fits a CUDA graph.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from profiler.validate import training
from profiler.validate.reading import MeasurementError, Table, read_table
from profiler.validate.residuals import Comparison, Metric, Residual, mape, metrics_of
from profiler.validate.served import Options, Server, serve
from simulator.cost.defaults import overhead_of_version
from simulator.metrics.requests import latencies
from traces.trace import Trace

KIND = "phases"
COLUMNS = ("request_id", "phase_type", "t_start", "t_end", "prefill_tokens", "decode_tokens")
GPU, VERSION = "H100-SXM", "0.11.0"  # assumed: H100-class by the data's README, December 2025 by the files' names
BUDGET = 4096  # tokens, see above
ENGINE = {"enable_prefix_caching": False, "async_scheduling": False, "max_num_batched_tokens": BUDGET}
# By the files' names.
MODELS = {
    "0.5b": "Qwen/Qwen2.5-0.5B", "1b": "Qwen/Qwen2.5-1.5B", "1.5b": "Qwen/Qwen2.5-1.5B", "3b": "Qwen/Qwen2.5-3B",
    "7b": "Qwen/Qwen2.5-7B", "14b": "Qwen/Qwen2.5-14B", "32b": "Qwen/Qwen2.5-32B", "72b": "Qwen/Qwen2.5-72B",
}  # fmt: skip


def compare(path: Path, options: Options) -> Comparison:
    """Replay a file. Raises MeasurementError."""
    table = read_table(path, COLUMNS)
    name = _model(table)
    start, prompt, output, prefill_s, decode_s = _requests(table)
    server = Server(
        model=name,
        gpu=table.rows[0].get("gpu") or GPU,
        engine=ENGINE,
        overhead=overhead_of_version(table.rows[0].get("vllm") or VERSION),
    )
    setup = server.setup(options)
    trace = Trace(arrival=start, prompt_tokens=prompt, output_tokens=output + 1, source=path.name)
    served = serve(setup, trace).requests
    seen = latencies(served)
    prefill = served.first_token - served.scheduled
    part = training.part(KIND, {"file": path.name})
    # A request's phases: the prefill ends with its first token, the decode phase makes the rest.
    residuals = []
    for i in range(len(start)):
        case = f"{path.stem}:{i}"
        pairs = [("prefill", prefill[i], prefill_s[i], float(prompt[i]))]
        if output[i]:
            pairs.append(("decode_per_token", seen.tpot[i], decode_s[i] / output[i], float(prompt[i] + output[i] / 2)))
        for metric, predicted, measured, load in pairs:
            who = setup.model.name, setup.gpu.name
            residuals.append(Residual(KIND, case, metric, "ms", predicted * 1e3, measured * 1e3, *who, load, part))
    note = f"GPU and version not in the file: {setup.gpu.name}, vLLM {VERSION}, {BUDGET} tokens a step assumed."
    return Comparison(KIND, path, tuple(residuals), (note,))


def summary(residuals: Sequence[Residual]) -> list[Metric]:
    """Mean absolute errors."""
    return [
        *metrics_of(KIND, residuals, "mape", mape, {"prefill": 10.0, "decode_per_token": 10.0}),
        Metric(f"{KIND}.requests", len({r.case for r in residuals}), "requests"),
    ]


def _model(table: Table) -> str:
    given = table.rows[0].get("model")
    if given:
        return given
    size = re.search(r"qwen-?([\d.]+b)", table.path.name)
    if size is None or size[1] not in MODELS:
        raise MeasurementError(
            "does not say which model was served.", where=str(table.path),
            remedy=f"Add a column 'model', or name the file as the published ones are ({', '.join(MODELS)}).",
        )  # fmt: skip
    return MODELS[size[1]]


def _requests(table: Table) -> tuple[np.ndarray, ...]:
    """(start s, prompt tokens, decode tokens, prefill s, decode s) by request, in order of their start."""
    phases: dict[str, dict[str, tuple[float, float, int]]] = {}
    for row, _ in table:
        kind = table.text(row, "phase_type")
        if kind not in ("prefill", "decode"):
            raise MeasurementError(f"unknown phase {kind!r}.", where=table.where(row, "phase_type"))
        begin, end = (table.number(row, c, positive=False) for c in ("t_start", "t_end"))
        if end <= begin:
            where = table.where(row, "t_end")
            raise MeasurementError(f"the phase ends at {end:g}, before its start {begin:g}.", where=where)
        tokens = table.integer(row, f"{kind}_tokens")
        phases.setdefault(table.text(row, "request_id"), {})[kind] = (begin, end - begin, tokens)
    for name, both in phases.items():
        if "prefill" not in both:
            raise MeasurementError(f"request {name} has no prefill phase.", where=str(table.path))
    rows = sorted((*both["prefill"], *both.get("decode", (0.0, 0.0, 0))) for both in phases.values())
    starts, prefill_s, prompt, _, decode_s, output = (np.array(c) for c in zip(*rows, strict=True))
    return starts - starts.min(), prompt, output, prefill_s, decode_s
