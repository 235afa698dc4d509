"""Energy and carbon of a run: watts of every step and of every idle second, of every replica while it is held.

Invariant 8: what is counted by replica, by hour and in all is the same energy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from simulator.cost.power import PowerModel
from simulator.metrics.fleet import lifetimes
from simulator.metrics.series import step_mean
from simulator.metrics.stats import Floats
from simulator.metrics.token_times import span_seconds
from simulator.replica.records import SimulationRecords

HOUR_S = 3600.0
J_PER_KWH = 3.6e6
TELEMETRY_S = 2.0  # how often a row's power is read (POLCA)


@dataclass(frozen=True)
class EnergyPlan:
    """What is known of the hardware: per group name, (power model of its GPU, GPUs per replica).

    pue: energy of the data center over that of its GPUs. gco2_per_kwh: by the hour from time 0, repeated; None: carbon
    is not counted.
    """

    groups: Mapping[str, tuple[PowerModel, int]]
    pue: float = 1.0
    gco2_per_kwh: Sequence[float] | None = None


def summarize_energy(records: SimulationRecords, plan: EnergyPlan, window: tuple[float, float]) -> dict[str, Any]:
    """``energy`` and ``carbon`` of a summary. Energy is that of the GPUs times the PUE, within the window."""
    low, high = window
    models = [plan.groups[replica.group] for replica in records.replicas]
    gpus = np.array([count for _, count in models], dtype=np.float64)
    idle_w = np.array([model.idle_w for model, _ in models]) * gpus  # of a replica
    above = step_watts(records, models) - idle_w[records.steps.replica]
    seconds = _within(records, low, high)
    busy_j = np.bincount(records.steps.replica, weights=above * seconds, minlength=len(models)) * plan.pue
    held_j = idle_w * lifetimes(records, low, high) * plan.pue
    total_j = float(busy_j.sum() + held_j.sum())
    made = int((records.steps.num_decodes * records.steps.num_steps).sum())
    if records.step_tokens is not None:
        made += int((records.step_tokens.tokens.astype(np.int64) - 1).sum())
    finished = int(np.sum(np.isfinite(records.requests.finish)))
    output = made + int(np.sum(np.isfinite(records.requests.first_token)))
    names = [replica.group for replica in records.replicas]
    hours = _edges(window, HOUR_S)
    by_hour = _joules(records, above, idle_w, hours)
    minutes = _edges(window, 60.0)
    energy = {
        "kwh": total_j / J_PER_KWH,
        "idle_kwh": float(held_j.sum()) / J_PER_KWH,
        "mean_w": total_j / (high - low) if high > low else None,
        "peak_hour_w": _peak(by_hour, hours) * plan.pue,
        "peak_minute_w": _peak(_joules(records, above, idle_w, minutes), minutes) * plan.pue,
        "joules_per_request": total_j / finished if finished else None,
        "joules_per_output_token": total_j / output if output else None,
        "pue": plan.pue,
        "kwh_by_group": {
            name: float(sum((busy_j + held_j)[i] for i, own in enumerate(names) if own == name)) / J_PER_KWH
            for name in dict.fromkeys(names)
        },
        "kwh_by_replica": ((busy_j + held_j) / J_PER_KWH).tolist(),
    }
    return {"energy": energy, "carbon": _carbon(plan, hours, by_hour * plan.pue, finished)}


def step_watts(records: SimulationRecords, models: Sequence[tuple[PowerModel, int]]) -> Floats:
    """Power of a replica while each row's steps run, (rows,). Every pipeline stage is busy as long as the last one."""
    steps, locks = records.steps, step_locks(records)
    watts = np.zeros(len(steps.start))
    kinds = {id(model): (model, count) for model, count in models}
    kind = np.array([id(model) for model, _ in models])[steps.replica] if len(watts) else np.zeros(0, dtype=np.int64)
    for key, (model, count) in kinds.items():
        mine = kind == key
        tokens = model.decode_tokens(steps.num_decodes[mine]) + steps.prefill_tokens[mine]
        watts[mine] = np.asarray(model.watts(tokens, locks[mine])) * count
    return watts


def step_locks(records: SimulationRecords) -> Floats:
    """Share of the maximum clock at which a controller had locked each row's replica, (rows,); 1: it had not."""
    steps = records.steps
    locks = np.ones(len(steps.start))
    for replica, changes in _clocks_by_replica(records).items():
        low, high = np.searchsorted(steps.replica, [replica, replica + 1])  # rows of a replica are together
        last = np.searchsorted(changes[:, 0], steps.start[low:high], side="right")
        locks[low:high] = np.concatenate([[1.0], changes[:, 1]])[last]
    return locks


def _clocks_by_replica(records: SimulationRecords) -> dict[int, Floats]:
    """(time, clock) of every change, in order of time."""
    found: dict[int, list[tuple[float, float]]] = {}
    for change in records.clocks or ():
        found.setdefault(change.replica, []).append((change.time, change.clock))
    return {replica: np.array(changes) for replica, changes in found.items()}


def clocks_over_time(records: SimulationRecords, at: Floats) -> dict[str, Floats]:
    """Share of the maximum clock at which a controller had locked each group, mean over the replicas that were there,
    at some times (s); NaN where none was."""
    changes = _clocks_by_replica(records)
    total: dict[str, Floats] = {}
    there: dict[str, Floats] = {}
    for index, replica in enumerate(records.replicas):
        own = changes.get(index, np.zeros((0, 2)))
        clock = np.concatenate([[1.0], own[:, 1]])[np.searchsorted(own[:, 0], at, side="right")]
        inside = (at >= replica.started) & (at < replica.stopped)
        total[replica.group] = total.get(replica.group, np.zeros(len(at))) + np.where(inside, clock, 0.0)
        there[replica.group] = there.get(replica.group, np.zeros(len(at))) + inside
    return {name: np.where(there[name] > 0, total[name] / np.maximum(there[name], 1), np.nan) for name in total}


def summarize_clocks(
    records: SimulationRecords, plan: EnergyPlan, window: tuple[float, float]
) -> dict[str, Any] | None:
    """What a controller of clocks did; None where there was none. Means over the time that replicas were held."""
    if records.clocks is None:
        return None
    low, high = window
    clock_s: dict[str, float] = {}
    locked_s: dict[str, float] = {}
    held_s: dict[str, float] = {}
    changes = _clocks_by_replica(records)
    for index, (replica, held) in enumerate(zip(records.replicas, lifetimes(records, low, high).tolist(), strict=True)):
        own = changes.get(index, np.zeros((0, 2)))
        first, last = max(replica.started, low), min(replica.stopped, high)
        edges = np.clip(np.concatenate([[first], own[:, 0], [last]]), first, max(first, last))
        clocks, seconds = np.concatenate([[1.0], own[:, 1]]), np.diff(edges)
        name = replica.group
        clock_s[name] = clock_s.get(name, 0.0) + float((clocks * seconds).sum())
        locked_s[name] = locked_s.get(name, 0.0) + float(seconds[clocks < 1.0].sum())
        held_s[name] = held_s.get(name, 0.0) + held
    kinds = [event.kind for event in records.events]
    edges = _edges(window, TELEMETRY_S)
    return {
        "orders": kinds.count("clock") + kinds.count("brake"),
        "brakes": kinds.count("brake"),
        "mean_clock_by_group": {name: clock_s[name] / held if held else None for name, held in held_s.items()},
        "locked_share_by_group": {name: locked_s[name] / held if held else None for name, held in held_s.items()},
        "peak_2s_w": float(np.max(power_over_time(records, plan, edges), initial=0.0)) if len(edges) > 1 else None,
    }


def power_over_time(records: SimulationRecords, plan: EnergyPlan, edges: Floats) -> Floats:
    """Mean watts of the cluster between each two ``edges`` (s), PUE included, (len(edges) - 1,)."""
    models = [plan.groups[replica.group] for replica in records.replicas]
    idle_w = np.array([model.idle_w * count for model, count in models])
    above = step_watts(records, models) - idle_w[records.steps.replica]
    return np.asarray(_joules(records, above, idle_w, edges) / np.diff(edges) * plan.pue)


def _edges(window: tuple[float, float], width_s: float) -> Floats:
    """Of the window's bins: multiples of ``width_s``, and its ends."""
    low, high = window
    if high <= low:
        return np.array([low])
    inner = np.arange(np.floor(low / width_s) + 1, np.ceil(high / width_s)) * width_s
    return np.concatenate([[low], inner, [high]])


def _joules(records: SimulationRecords, above: Floats, idle_w: Floats, edges: Floats) -> Floats:
    """Energy of the GPUs in each bin, exact. above: watts of each row over idle."""
    if len(edges) < 2:
        return np.zeros(0)
    busy = step_mean(records, above, edges) * np.diff(edges)
    held = np.zeros(len(edges))  # J up to each edge
    for replica, watts in zip(records.replicas, idle_w.tolist(), strict=True):
        held += watts * np.clip(edges, replica.started, replica.stopped)
    return np.asarray(busy + np.diff(held))


def _peak(joules: Floats, edges: Floats) -> float:
    return float(np.max(joules / np.diff(edges), initial=0.0))


def _within(records: SimulationRecords, low: float, high: float) -> Floats:
    """Seconds of every row inside the window. Its power is even over the row."""
    start = records.steps.start
    return np.asarray(
        np.clip(np.minimum(start + span_seconds(records.steps), high) - np.maximum(start, low), 0.0, None)
    )


def _carbon(plan: EnergyPlan, edges: Floats, joules: Floats, finished: int) -> dict[str, Any] | None:
    series = plan.gco2_per_kwh
    if series is None:
        return None
    hour = np.floor(edges[:-1] / HOUR_S).astype(np.int64) % len(series)
    intensity = np.asarray(series, dtype=np.float64)[hour]
    kwh = joules / J_PER_KWH
    grams = float((kwh * intensity).sum())
    return {
        "gco2": grams,
        "gco2_per_request": grams / finished if finished else None,
        "mean_gco2_per_kwh": grams / float(kwh.sum()) if kwh.sum() > 0 else None,
    }


def summarize_scaling(records: SimulationRecords, window: tuple[float, float]) -> dict[str, Any] | None:
    """What replicas that came and went saved and cost; None where none did."""
    stayed = all(np.isinf(replica.stopped) for replica in records.replicas)
    if stayed and all(event.kind in {"role", "clock", "brake"} for event in records.events):
        return None
    low, high = window
    held = lifetimes(records, low, high)
    started = np.array([replica.started for replica in records.replicas])
    ready = np.array([replica.ready for replica in records.replicas])
    stopped = np.array([replica.stopped for replica in records.replicas])
    ends = np.minimum(np.where(np.isfinite(ready), ready, stopped), high)
    waiting_s = np.clip(ends - np.maximum(started, low), 0.0, None)
    kinds = [event.kind for event in records.events]
    hours, peak = float(held.sum()) / 3600.0, most_at_once(started, stopped)
    static = peak * (high - low) / 3600.0
    return {
        "replica_hours": hours,
        "mean_replicas": float(held.sum()) / (high - low) if high > low else None,
        "peak_replicas": peak,
        "static_peak_replica_hours": static,
        "saved_replica_hours_share": 1.0 - hours / static if static > 0 else None,
        "cold_starts": int(np.sum(started > 0)),
        "cold_start_replica_hours": float(waiting_s.sum()) / 3600.0,
        "mean_cold_start_s": _mean((ready - started)[np.isfinite(ready) & (started > 0)]),
        "scale_outs": kinds.count("scale-out"),
        "scale_ins": kinds.count("scale-in"),
        "failures": kinds.count("failure"),
        "reclaims": kinds.count("reclaim"),
        "requests_lost_once_or_more": len(records.attempts),
        "requests_lost_in_all": sum(records.attempts.values()),
    }


def most_at_once(started: Floats, stopped: Floats) -> int:
    """Most replicas held at one time."""
    times = np.concatenate([started, stopped])
    change = np.concatenate([np.ones(len(started)), -np.ones(len(stopped))])
    order = np.lexsort((change, times))  # a place that is freed and taken at one instant is one replica
    return int(np.cumsum(change[order]).max(initial=0))


def _mean(values: Floats) -> float | None:
    return float(values.mean()) if len(values) else None
