"""Fixed-rate summaries with a warm prefix cache: mean and percentile latencies of real runs at constant rates.

A hundred distinct prompts are repeated, so all but a hundred of the thousands of requests find their prompt's full
blocks in the cache; ``tpot_mean_ms`` is the true time per token (the raw ITL of the file is half of it).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from profiler.validate import training
from profiler.validate.reading import MeasurementError, Table, read_table
from profiler.validate.residuals import Comparison, Metric, Residual, mape, metrics_of
from profiler.validate.served import Options, Server, client_latencies, serve
from simulator.core.errors import CalibrationError, UserError
from simulator.cost.defaults import overhead_of_version
from traces.prefix import from_rows
from traces.trace import Trace

KIND = "rates"
COLUMNS = (
    "exp", "model", "gpu", "tp", "vllm", "stage", "rate_rps", "duration_s", "prompt_len_mean", "output_len",
    "sys_prompt_len", "n_requests", "ttft_mean_ms", "tpot_mean_ms", "e2e_mean_ms", "max_num_seqs",
    "max_num_batched_tokens",
)  # fmt: skip
DISTINCT_PROMPTS = 100
BLOCK_TOKENS = 16
SIMULATED_S = 120.0  # a constant rate repeats itself: so much of it is enough once the cache is warm
METRICS = {"ttft": "ttft_mean_ms", "tpot": "tpot_mean_ms", "e2e": "e2e_mean_ms"}


def compare(path: Path, options: Options) -> Comparison:
    """One run per row of a single stage; rows over all stages (stage -1) only repeat those and are left out."""
    table = read_table(path, COLUMNS)
    residuals: list[Residual] = []
    notes: list[str] = []
    for row, given in table:
        if table.integer(row, "stage", positive=False) < 0:
            continue
        if options.only_training and not training.is_training(KIND, given):
            continue
        apart = not (given.get("usable") or "yes").lower().startswith("yes")
        try:
            residuals += _row(table, row, "apart" if apart else "", options)
        except (MeasurementError, CalibrationError):
            raise
        except UserError as error:
            notes.append(f"row {row} skipped: {error.message}")
    if not residuals and notes:
        raise MeasurementError(f"no row can be simulated; {'; '.join(notes[:1])}", where=str(path))
    apart_rows = {r.case for r in residuals if r.part == "apart"}
    if apart_rows:
        notes.append(f"{len(apart_rows)} overloaded rows (client timeouts) are reported apart.")
    return Comparison(KIND, path, tuple(residuals), tuple(notes))


def summary(residuals: Sequence[Residual]) -> list[Metric]:
    """Mean absolute errors of rows that were not overloaded."""
    metrics = metrics_of(KIND, residuals, "mape", mape, {"ttft": 15.0, "tpot": 8.0, "e2e": 8.0})
    return [*metrics, Metric(f"{KIND}.rows", len({r.case for r in residuals if r.part != "apart"}), "rows")]


def _row(table: Table, row: int, part: str, options: Options) -> list[Residual]:
    rate = table.number(row, "rate_rps")
    version = "".join(c for c in table.text(row, "vllm").split("v")[-1].split(" ")[0] if c in "0123456789.")
    warm = (table.rows[row - 1].get("prefix_caching") or "on").startswith("on")
    server = Server(
        model=table.text(row, "model"),
        gpu=table.text(row, "gpu").removesuffix("-80GB"),
        engine={
            "tensor_parallel_size": table.integer(row, "tp"),
            "max_num_seqs": table.integer(row, "max_num_seqs"),
            "max_num_batched_tokens": table.integer(row, "max_num_batched_tokens"),
            "enable_prefix_caching": warm,
        },
        overhead=overhead_of_version(version or "0.15.1"),
        quantization="fp8" if "FP8" in (table.rows[row - 1].get("precision") or "") else None,
    )
    setup = server.setup(options)
    trace = warm_trace(
        rate=rate,
        prompt_tokens=round(table.number(row, "prompt_len_mean")),
        shared_tokens=table.integer(row, "sys_prompt_len", positive=False),
        output_tokens=table.integer(row, "output_len"),
        seconds=min(table.number(row, "duration_s"), SIMULATED_S),
    )
    records = serve(setup, trace)
    seen = client_latencies(setup, records)
    steady = np.arange(len(trace)) >= min(2 * DISTINCT_PROMPTS, len(trace) // 2)
    predicted = {"ttft": seen.ttft, "tpot": seen.tpot, "e2e": seen.e2e}
    case = f"{table.text(row, 'exp')}:{rate:g}/s"
    part = part or training.part(KIND, table.rows[row - 1])
    who = setup.model.name, setup.gpu.name, rate, part
    means = {name: float(np.nanmean(predicted[name][steady])) * 1e3 for name in METRICS}
    return [Residual(KIND, case, n, "ms", means[n], table.number(row, c), *who) for n, c in METRICS.items()]


def warm_trace(*, rate: float, prompt_tokens: int, shared_tokens: int, output_tokens: int, seconds: float) -> Trace:
    """Requests at a constant rate over ``DISTINCT_PROMPTS`` prompts in turn, all with one system prompt in front."""
    n = max(int(rate * seconds), 3 * DISTINCT_PROMPTS)
    blocks, shared = prompt_tokens // BLOCK_TOKENS, shared_tokens // BLOCK_TOKENS
    own = blocks - shared
    rows = []
    for i in range(n):
        first = shared + (i % DISTINCT_PROMPTS) * own
        rows.append([*range(shared), *range(first, first + own)])
    return Trace(
        arrival=np.arange(n) / rate,
        prompt_tokens=np.full(n, prompt_tokens),
        output_tokens=np.full(n, output_tokens),
        prefix=from_rows(rows, BLOCK_TOKENS),
        source=f"constant {rate:g}/s",
    )
