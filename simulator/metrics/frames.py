"""Records as pandas tables, for ``requests.parquet`` and ``steps.parquet``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from simulator.core.errors import UserError
from simulator.metrics.analysis import Analysis, analyse
from simulator.metrics.series import kv_usage
from simulator.metrics.slo import Slo
from simulator.metrics.stats import Ints, grouped
from simulator.metrics.token_times import span_seconds
from simulator.replica.records import SimulationRecords, Status
from traces.trace import Trace

if TYPE_CHECKING:
    import pandas as pd

_LABELS = ("tenant", "slo_class", "adapter", "model")


def requests_frame(
    records: SimulationRecords, trace: Trace | None = None, slo: Slo | None = None, *, analysis: Analysis | None = None
) -> pd.DataFrame:
    """One row per request in trace order: times, lengths, latencies (s), where the time went, labels.

    Column ``meets_slo`` is there with an SLO; it is missing (NA) for a request that is still undecided.
    """
    import pandas as pd

    found = analysis if analysis is not None else analyse(records, slo)
    requests, latency, parts = records.requests, found.latency, found.breakdown
    columns: dict[str, Any] = {
        "request": np.arange(len(requests.arrival)),
        "status": _categorical(requests.status, [kind.name.lower() for kind in Status]),
        "replica": requests.replica,
        **({} if records.prefill_replica is None else {"prefill_replica": records.prefill_replica}),
        "arrival_s": np.where(np.isfinite(requests.arrival), requests.arrival, np.nan),
        "scheduled_s": requests.scheduled,
        "first_token_s": requests.first_token,
        "finish_s": requests.finish,
        "prompt_tokens": requests.prompt_tokens,
        "output_tokens": requests.output_tokens,
        "cached_tokens": requests.cached_tokens,
        "preemptions": requests.preemptions,
        "ttft_s": latency.ttft,
        "tpot_s": latency.tpot,
        "e2e_s": latency.e2e,
        "queue_time_s": latency.queue,
        "normalized_latency_s_per_token": latency.normalized,
        "prefill_s": parts.prefill,
        "decode_s": parts.decode,
        "decode_shared_with_prefill_s": parts.decode_shared,
        "preempted_s": parts.preempted,
    }
    if found.outcome is not None:
        good = pd.array(found.outcome.good.tolist(), dtype="boolean")
        good[~found.outcome.decided] = pd.NA
        columns["meets_slo"] = good
    columns.update(_trace_columns(trace))
    return pd.DataFrame(columns)


def _categorical(codes: NDArray[np.signedinteger[Any]], names: list[str]) -> pd.Categorical[str]:
    import pandas as pd

    return pd.Categorical.from_codes(codes.astype(np.int64), pd.Index(names))


def _trace_columns(trace: Trace | None) -> dict[str, Any]:

    if trace is None:
        return {}
    out: dict[str, Any] = {}
    for name in ("session", "turn", "priority"):
        values = getattr(trace, name)
        if values is not None:
            out[name] = values
    for name in _LABELS:
        labels = getattr(trace, name)
        if labels is not None:
            out[name] = _categorical(labels.codes, list(labels.names))
    return out


def steps_frame(records: SimulationRecords, *, expand: bool = False, every: int = 1) -> pd.DataFrame:
    """One row per span, or with ``expand`` one per engine step, or per ``every``-th step of each span's replica.

    Spans: ``start_s``, ``duration_s``, ``num_steps``, ``step_s``, ``increment_s`` and the batch. Steps: ``start_s``,
    ``duration_s``, the span they belong to, and ``context_tokens`` grown by one token per decode and step.

    Raises:
        UserError: ``every`` is below 1, or above 1 without ``expand``.
    """
    import pandas as pd

    if every < 1 or (every > 1 and not expand):
        raise UserError(f"every = {every!r} samples steps", remedy="Give every >= 1, with expand=True.")
    steps = records.steps
    per_span: dict[str, Any] = {
        "replica": steps.replica,
        "num_decodes": steps.num_decodes,
        "num_prefills": steps.num_prefills,
        "prefill_tokens": steps.prefill_tokens,
        "num_waiting": steps.num_waiting,
        "num_running": steps.num_running,
        "free_blocks": steps.free_blocks,
        "kv_usage": kv_usage(records),
        "preempted": steps.preempted,
    }
    if not expand:
        timing = {
            "start_s": steps.start,
            "duration_s": span_seconds(steps),
            "num_steps": steps.num_steps,
            "step_s": steps.step,
            "increment_s": steps.increment,
            "context_tokens": steps.context_tokens,
        }
        return pd.DataFrame(timing | per_span)
    span, j = _chosen_steps(steps.replica, steps.num_steps, every)
    timing = {
        "span": span,
        "start_s": steps.start[span] + j * steps.step[span] + steps.increment[span] * (j * (j - 1) / 2),
        "duration_s": steps.step[span] + steps.increment[span] * j,
        "context_tokens": steps.context_tokens[span] + j * steps.num_decodes[span],
    }
    frame = pd.DataFrame(timing | {name: values[span] for name, values in per_span.items()})
    return frame.assign(preempted=np.where(j == 0, frame["preempted"], 0))


def _chosen_steps(replica: Ints, counts: Ints, every: int) -> tuple[Ints, Ints]:
    """Span and index within it of every ``every``-th step of each replica."""
    picked: list[tuple[Ints, Ints]] = []
    for rows in grouped(replica, int(replica.max(initial=-1)) + 1):
        after = np.cumsum(counts[rows])
        total = int(after[-1]) if len(after) else 0
        steps = np.arange(0, total, every)
        row = np.searchsorted(after, steps, side="right")
        picked.append((rows[row], steps - (after[row] - counts[rows][row])))
    if not picked:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    span = np.concatenate([rows for rows, _ in picked])
    index = np.concatenate([within for _, within in picked])
    order = np.lexsort((index, span))
    return span[order], index[order]
