"""A run as Chrome trace events, to open in ui.perfetto.dev or chrome://tracing.

One process per replica: a track of its spans (what each step held), counters (running, waiting, KV usage), and one
async track per request with its phases: queued, prefill, decode, preempted. One more process holds a track per pair of
replicas with the transfers between them; scaling and faults are marks on the replica they befell.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from simulator.core.errors import UserError
from simulator.metrics.analysis import Analysis, analyse
from simulator.metrics.series import kv_usage
from simulator.metrics.stats import Ints
from simulator.metrics.token_times import num_replicas, span_seconds
from simulator.replica.records import SimulationRecords, Status

Event = dict[str, Any]
_EVENTS_PER_SPAN, _EVENTS_PER_REQUEST = 4, 8


def to_perfetto(
    records: SimulationRecords,
    *,
    window: tuple[float, float] | None = None,
    max_events: int = 1_000_000,
    analysis: Analysis | None = None,
) -> dict[str, Any]:
    """``{"traceEvents": [...], "displayTimeUnit": "ms", "otherData": {...}}``; timestamps in µs.

    window: keep spans and requests that begin in it (s). Beyond ``max_events`` (the viewer's patience) the window is
    cut short, and ``otherData.kept_until_s`` and ``otherData.truncated`` say so.

    Raises:
        UserError: an empty window.
    """
    start, stop = window if window is not None else (0.0, records.end)
    if stop < start:
        raise UserError(f"trace window ({start:g}, {stop:g}) s is empty", remedy="Give its start before its end.")
    found = analysis if analysis is not None else analyse(records)
    until = _affordable_end(records, start, stop, max_events)
    spans = np.flatnonzero((records.steps.start >= start) & (records.steps.start <= until))
    requests = np.flatnonzero((records.requests.arrival >= start) & (records.requests.arrival <= until))
    timed = _span_events(records, spans) + _counter_events(records, spans) + _request_events(records, found, requests)
    timed += _transfer_events(records, start, until) + _marks(records, start, until)
    events = _metadata(records) + sorted(timed, key=lambda event: float(event["ts"]))  # stable: nesting survives
    other = {"kept_from_s": start, "kept_until_s": until, "truncated": bool(until < stop)}
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": other}


def _affordable_end(records: SimulationRecords, start: float, stop: float, max_events: int) -> float:
    times = np.concatenate([records.steps.start, records.requests.arrival])
    cost = np.concatenate(
        [
            np.full(len(records.steps.start), _EVENTS_PER_SPAN),
            np.full(len(records.requests.arrival), _EVENTS_PER_REQUEST),
        ]
    )
    inside = (times >= start) & (times <= stop)
    times, cost = times[inside], cost[inside]
    order = np.argsort(times, kind="stable")
    spent = np.cumsum(cost[order])
    if not len(spent) or spent[-1] <= max_events:
        return stop
    last = int(np.searchsorted(spent, max_events, side="right")) - 1
    return float(times[order][max(last, 0)])


def _us(seconds: float) -> float:
    return round(seconds * 1e6, 3)


def _metadata(records: SimulationRecords) -> list[Event]:
    events: list[Event] = []
    for replica in range(num_replicas(records)):
        for name, value in (("process_name", _replica_name(records, replica)), ("thread_name", "engine steps")):
            events.append({"ph": "M", "pid": replica + 1, "tid": 1, "name": name, "args": {"name": value}})
    if records.transfers is not None:
        between = {"name": "between replicas"}
        events.append({"ph": "M", "pid": num_replicas(records) + 1, "tid": 1, "name": "process_name", "args": between})
    return events


def _replica_name(records: SimulationRecords, replica: int) -> str:
    """``prefill 2`` where groups have names of their own."""
    names = [life.group for life in records.replicas]
    return f"{names[replica]} {replica}" if len(set(names)) > 1 else f"replica {replica}"


def _transfer_events(records: SimulationRecords, start: float, until: float) -> list[Event]:
    """Transfers that begin in the window; equal names share a track, so there is one per pair of replicas."""
    moved = records.transfers
    if moved is None:
        return []
    events: list[Event] = []
    for k in np.flatnonzero((moved.start >= start) & (moved.start <= until)).tolist():
        ends = float(min(moved.end[k], records.end))
        common = {
            "pid": num_replicas(records) + 1,
            "tid": 1,
            "cat": "transfer",
            "id": f"transfer {k}",
            "name": f"{moved.kind[k]} {int(moved.source[k])} -> {int(moved.target[k])}",
        }
        args = {"request": int(moved.request[k]), "bytes": float(moved.num_bytes[k])}
        events.append({**common, "ph": "b", "ts": _us(float(moved.start[k])), "args": args})
        events.append({**common, "ph": "e", "ts": _us(ends)})
    return events


def _marks(records: SimulationRecords, start: float, until: float) -> list[Event]:
    """Scaling, faults and changes of role."""
    return [
        {"ph": "i", "s": "p", "pid": event.replica + 1 if event.replica >= 0 else 0, "tid": 1, "cat": "cluster",
         "name": event.kind, "ts": _us(event.time), "args": {"text": event.text}}
        for event in records.events
        if start <= event.time <= until
    ]  # fmt: skip


def _span_events(records: SimulationRecords, chosen: Ints) -> list[Event]:
    steps = records.steps
    seconds = span_seconds(steps)
    return [
        {
            "ph": "X",
            "pid": int(steps.replica[k]) + 1,
            "tid": 1,
            "cat": "span",
            "name": _span_name(int(steps.num_decodes[k]), int(steps.prefill_tokens[k])),
            "ts": _us(steps.start[k]),
            "dur": _us(seconds[k]),
            "args": {
                "num_steps": int(steps.num_steps[k]),
                "num_decodes": int(steps.num_decodes[k]),
                "num_prefills": int(steps.num_prefills[k]),
                "prefill_tokens": int(steps.prefill_tokens[k]),
                "context_tokens": float(steps.context_tokens[k]),
                "free_blocks": int(steps.free_blocks[k]),
                "preempted": int(steps.preempted[k]),
            },
        }
        for k in chosen.tolist()
    ]


def _span_name(num_decodes: int, prefill_tokens: int) -> str:
    if prefill_tokens:
        return "prefill + decode" if num_decodes else "prefill"
    return "decode"


def _counter_events(records: SimulationRecords, chosen: Ints) -> list[Event]:
    steps, usage = records.steps, kv_usage(records)
    events: list[Event] = []
    for k in chosen.tolist():
        where = {"ph": "C", "pid": int(steps.replica[k]) + 1, "tid": 1, "ts": _us(steps.start[k])}
        events.append(where | {"name": "running", "args": {"requests": int(steps.num_running[k])}})
        events.append(where | {"name": "waiting", "args": {"requests": int(steps.num_waiting[k])}})
        events.append(where | {"name": "kv usage", "args": {"percent": round(100 * float(usage[k]), 3)}})
    return events


def _request_events(records: SimulationRecords, found: Analysis, chosen: Ints) -> list[Event]:
    """Nested async slices; a request still in flight is drawn to the end of the run."""
    stalls = _stalls(found)
    events: list[Event] = []
    requests = records.requests
    for k in chosen.tolist():
        status = Status(int(requests.status[k]))
        marks = [requests.arrival[k], requests.scheduled[k], requests.first_token[k], requests.finish[k]]
        end = requests.finish[k]
        if np.isnan(end):
            end = records.end if status is Status.IN_FLIGHT else max(m for m in marks if not np.isnan(m))
        about = {
            "prompt_tokens": int(requests.prompt_tokens[k]),
            "output_tokens": int(requests.output_tokens[k]),
            "cached_tokens": int(requests.cached_tokens[k]),
            "preemptions": int(requests.preemptions[k]),
            "status": status.name.lower(),
        }
        track = {"pid": max(int(requests.replica[k]), 0) + 1, "tid": 1, "cat": "request", "id": k}
        phases = list(zip(("queued", "prefill", "decode"), marks, [*marks[1:3], end], strict=False))
        whole = {"name": f"request {k}", **track}
        events.append({"ph": "b", "ts": _us(marks[0]), "args": about, **whole})
        for name, begin, stop in _phases(phases, stalls.get(k, []), end):
            events.append({"ph": "b", "ts": _us(begin), "name": name, **track})
            events.append({"ph": "e", "ts": _us(stop), "name": name, **track})
        events.append({"ph": "e", "ts": _us(end), **whole})
    return events


def _stalls(found: Analysis) -> dict[int, list[tuple[float, float]]]:
    out: dict[int, list[tuple[float, float]]] = {}
    ranges = found.ranges
    for k in np.flatnonzero(~np.isnan(ranges.stall)).tolist():
        span = (float(ranges.start[k] - ranges.stall[k]), float(ranges.start[k]))
        out.setdefault(int(ranges.request[k]), []).append(span)
    return out


def _phases(
    phases: list[tuple[str, float, float]], stalls: list[tuple[float, float]], end: float
) -> list[tuple[str, float, float]]:
    """Phases that began, the unfinished one drawn to ``end``, decode cut where the request was preempted."""
    out: list[tuple[str, float, float]] = []
    for name, begin, stop in phases:
        if np.isnan(begin):
            continue
        at, last = begin, end if np.isnan(stop) else stop
        for gone, back in stalls if name == "decode" else []:
            out += [(name, at, gone), ("preempted", gone, back)]
            at = back
        out.append((name, at, last))
    return out
