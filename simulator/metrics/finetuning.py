"""What a fine-tuning job beside the requests got done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from simulator.cost.finetuning import FinetuningCost
from simulator.metrics.fleet import lifetimes
from simulator.metrics.stats import Floats
from simulator.metrics.token_times import num_replicas, span_seconds
from simulator.replica.records import SimulationRecords


def summarize_finetuning(
    records: SimulationRecords, jobs: Sequence[FinetuningCost | None], window: tuple[float, float]
) -> dict[str, Any] | None:
    """Tokens trained per second of the window, and what share that is of the same GPUs without requests.

    jobs: of each replica; None: it has none. A step counts where it starts.
    """
    if all(job is None for job in jobs):
        return None
    low, high = window
    steps = records.steps
    inside = (steps.start >= low) & (steps.start <= high)
    busy = np.bincount(
        steps.replica, weights=np.where(inside, span_seconds(steps), 0.0), minlength=num_replicas(records)
    )
    alive = lifetimes(records, low, high)
    trained = alone = 0.0
    for replica, job in enumerate(jobs):
        if job is None:
            continue
        rate = job.alone_tokens_per_s
        mine = np.flatnonzero(inside & (steps.replica == replica))
        share = job.job.share
        worked = float(_in_steps(records, job, mine).sum()) if share is None else rate * share * busy[replica]
        trained += worked + rate * max(float(alive[replica] - busy[replica]), 0.0)
        alone += rate * float(alive[replica])
    seconds = high - low
    return {
        "tokens_per_s": float(trained / seconds) if seconds > 0 else None,
        "alone_tokens_per_s": float(alone / seconds) if seconds > 0 else None,
        "share_of_alone": float(trained / alone) if alone > 0 else None,
    }


def _in_steps(records: SimulationRecords, job: FinetuningCost, rows: Any) -> Floats:
    """Tokens trained in each of the rows; of a span as in its middle step."""
    steps = records.steps
    n, decodes = steps.num_steps[rows], steps.num_decodes[rows]
    middle = (steps.context_tokens[rows] + decodes * (n - 1) / 2.0).astype(np.int64)
    window = job.sliding_window
    clipped = np.zeros_like(middle) if window is None else np.minimum(middle, decodes * window)
    found = [
        job.tokens_of_step(*numbers)
        for numbers in zip(
            decodes.tolist(), middle.tolist(), clipped.tolist(), steps.prefill_tokens[rows].tolist(), strict=True
        )
    ]
    return np.asarray(np.array(found, dtype=np.float64) / 2.0 * n)
