"""Step records of a real engine: what each step held, and how long it took.

A file lists a sample of the steps of one run. How long a step took is read off the records themselves: start of a later
record minus start of an earlier one, over the steps between them. ``cycle_time_us``, matched from the gaps between
tokens that clients saw, is compared too; where two tokens reached a client together it holds half a step, or nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from profiler.validate import training
from profiler.validate.reading import MeasurementError, Table, read_table
from profiler.validate.residuals import Comparison, Metric, Residual, errors_of, median_error, metrics_of, over
from profiler.validate.served import Options, Server
from simulator.cost.defaults import overhead_of_version
from simulator.scenario.setup import Setup

KIND = "steps"
BATCH = ("batch.num_prefill_reqs", "batch.num_decode_reqs", "batch.prefill_tokens")
BLOCKS = ("kv.blocks_total_gpu", "kv.blocks_free_gpu")
COLUMNS = ("step.id", "step.ts_start_ns", "cycle_time_us", "model", "tp", *BATCH, *BLOCKS)
GPU, VERSION = "H100-SXM", "0.15.1"  # of the published files, by the data's README and by vllm_rates
NEAR = 20  # steps between two records whose batches still say what ran between them
BLOCK_TOKENS = 16
WHOLE_CYCLE = 0.75  # of a step: what is shorter held tokens of one step that reached the client together


def compare(path: Path, options: Options) -> Comparison:
    """Price every recorded batch. Raises MeasurementError."""
    table = read_table(path, COLUMNS)
    numbers = {c: np.array([_value(table, row, c) for row, _ in table]) for c in COLUMNS if c != "model"}
    name, tp = table.text(1, "model"), table.integer(1, "tp")
    server = Server(
        model=name,
        gpu=table.rows[0].get("gpu") or GPU,
        engine={"tensor_parallel_size": tp, "max_num_seqs": 128, "max_num_batched_tokens": 2048},
        overhead=overhead_of_version(table.rows[0].get("vllm") or VERSION),
        dtype="bfloat16",
    )
    setup = server.setup(options)
    predicted = np.array([_price(setup, numbers, i) for i in range(len(table.rows))])
    part = training.part(KIND, {"file": path.name})
    residuals = _residuals(path, numbers, predicted, setup, part)
    if not residuals:
        raise MeasurementError("no two records lie near enough to time a step.", where=str(path))
    return Comparison(KIND, path, tuple(residuals), _notes(numbers, residuals, setup))


def summary(residuals: Sequence[Residual]) -> list[Metric]:
    """Median absolute errors of step times; of client-side cycle times too, over all rows and over whole cycles."""
    metrics = metrics_of(KIND, residuals, "median", median_error, {"period": 8.0})
    for label in ("decode", "mixed"):
        some = [r for r in residuals if r.case.endswith(label)]
        metrics.append(Metric(f"{KIND}.period.median.{label}", over(some, "period", median_error), "%"))
    if any(r.metric == "cycle_time" for r in residuals):
        whole = [r for r in residuals if r.measured > WHOLE_CYCLE * r.predicted]
        metrics.append(Metric(f"{KIND}.cycle_time.median", over(residuals, "cycle_time", median_error), "%"))
        metrics.append(Metric(f"{KIND}.cycle_time.median.whole", over(whole, "cycle_time", median_error), "%"))
    return [*metrics, Metric(f"{KIND}.periods", len(errors_of(residuals, "period")), "rows")]


def _value(table: Table, row: int, column: str) -> float:
    """NaN for an empty cell: only ``cycle_time_us`` may be."""
    if column == "cycle_time_us" and table.text(row, column).lower() in ("", "nan"):
        return float("nan")
    return table.number(row, column, positive=False)


def context_tokens(numbers: dict[str, np.ndarray], i: int) -> int:
    """Tokens the decodes of record ``i`` attend to: those in its blocks, the last block of each half full.

    Blocks that requests share are counted once, so this is a lower bound; KV reads are a few per cent of a step.
    """
    used = numbers["kv.blocks_total_gpu"][i] - 1 - numbers["kv.blocks_free_gpu"][i]
    running = numbers["batch.num_decode_reqs"][i] + numbers["batch.num_prefill_reqs"][i]
    share = numbers["batch.num_decode_reqs"][i] / max(running, 1.0)
    return int(max(used * BLOCK_TOKENS - running * BLOCK_TOKENS / 2, running) * share)


def _price(setup: Setup, numbers: dict[str, np.ndarray], i: int) -> float:
    """Seconds of the batch of record ``i``; what prefills computed before is read off as the cached part."""
    prefills, decodes, tokens = (int(numbers[c][i]) for c in BATCH)
    context = context_tokens(numbers, i)
    if not decodes and not prefills:
        return float("nan")
    window = setup.cost.sliding_window
    windowed = min(context, decodes * window) if window else 0
    if not prefills or not tokens:
        return setup.cost.decode(decodes, context, windowed, 0).first if decodes else float("nan")
    each = context // max(decodes, 1) if decodes else 0  # a prompt that hit the cache is about as long as the others
    size, rest = divmod(tokens, prefills)
    chunks = [(size + (j < rest), max(each - size, 0) if size < BLOCK_TOKENS * 4 else 0) for j in range(prefills)]
    chunks = [c for c in chunks if c[0]]
    return setup.cost.mixed(decodes, context, windowed, chunks, decodes + len(chunks))


def _residuals(
    path: Path, numbers: dict[str, np.ndarray], predicted: np.ndarray, setup: Setup, part: str
) -> list[Residual]:
    """``period``: a record and the next one, at most ``NEAR`` steps later with as many decodes within a tenth, must
    agree with the mean of their two prices; one step apart it is the step's own time."""
    steps, start, decodes = (numbers[c] for c in ("step.id", "step.ts_start_ns", "batch.num_decode_reqs"))
    found = []
    for i in range(len(steps)):
        load = float(decodes[i])
        kind = "mixed" if numbers["batch.prefill_tokens"][i] > 0 else "decode"
        case = f"{path.name.split('.')[0]}:{int(steps[i])}:{kind}"
        if i + 1 < len(steps):
            apart = steps[i + 1] - steps[i]
            alike = abs(decodes[i + 1] - load) <= 0.1 * max(load, 1.0)
            both_decode = kind == "decode" and numbers["batch.prefill_tokens"][i + 1] == 0
            if apart > 0 and ((apart <= NEAR and alike and both_decode) or apart == 1):
                seconds = (start[i + 1] - start[i]) * 1e-9 / apart
                guess = predicted[i] if apart == 1 else (predicted[i] + predicted[i + 1]) / 2
                if seconds > 0 and np.isfinite(guess):
                    found.append(_one(case, "period", guess, seconds, setup, load, part))
        cycle = numbers["cycle_time_us"][i] * 1e-6
        if np.isfinite(cycle) and cycle > 0 and np.isfinite(predicted[i]):
            found.append(_one(case, "cycle_time", predicted[i], cycle, setup, load, part))
    return found


def _one(
    case: str, metric: str, predicted: float, measured: float, setup: Setup, load: float, part: str
) -> Residual:  # fmt: skip
    return Residual(
        KIND, case, metric, "ms", predicted * 1e3, measured * 1e3, setup.model.name, setup.gpu.name, load, part
    )


def _notes(numbers: dict[str, np.ndarray], residuals: list[Residual], setup: Setup) -> tuple[str, ...]:
    cycles = numbers["cycle_time_us"]
    cycles = cycles[np.isfinite(cycles)] * 1e-3
    periods = np.array([r.measured for r in residuals if r.metric == "period"])
    notes = [f"GPU and version not in the file: {setup.gpu.name}, vLLM {VERSION}, bfloat16."]
    if len(cycles) and len(periods):
        half = float(np.mean(cycles < 0.75 * np.median(periods)))
        notes.append(
            f"cycle_time_us is below 3/4 of the median period by the records' own clock ({np.median(periods):.1f} ms)"
            f" in {half:.0%} of {len(cycles)} rows: tokens that reached the client together."
        )
    return tuple(notes)
