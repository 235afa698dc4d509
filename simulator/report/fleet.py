"""The report's view of the cluster: who carried the load, what moved, what happened."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from simulator.metrics.fleet import replica_columns
from simulator.metrics.stats import Floats
from simulator.metrics.token_times import num_replicas, span_seconds
from simulator.replica.records import SimulationRecords
from simulator.report.figures import Figure, TimeAxis
from simulator.report.heat_map import heat_map
from simulator.report.svg import Series, line_chart, number, stacked_bar

MOST_ROWS = 24  # of the heat map: beyond, replicas are sampled by how busy they were
MOST_EVENTS = 24
_BINS = 120


def fleet_figures(records: SimulationRecords) -> list[Figure]:
    """Load per replica over time; replicas over time, transfers over time where there are any."""
    if records.end <= 0 or num_replicas(records) < 2:
        return []
    time = TimeAxis.over(records.end, _BINS)
    figures = [_load(records, time)]
    if any(np.isfinite(replica.stopped) or replica.started > 0 for replica in records.replicas):
        figures.append(_count(records, time))
    if records.transfers is not None and len(records.transfers.start):
        figures.append(_transfers(records, time))
    return figures


def _load(records: SimulationRecords, time: TimeAxis) -> Figure:
    shown = _chosen(records)
    inside = np.stack([_requests_inside(records, replica, time.edges) for replica in shown])
    most = max(float(np.nanmax(inside)), 1e-9)
    names = [f"{records.replicas[i].group} {i}" if records.replicas else str(i) for i in shown]
    svg = heat_map(
        [name if len(name) <= 14 else "…" + name[-13:] for name in names],
        inside / most,
        x_label=time.label,
        x_high=time.reach[1],
        summary=f"Requests on each of {num_replicas(records)} replicas over time, at most {most:.3g}.",
    )
    caption = f"Requests running and waiting; the darkest is {number(most)}. Blank: the replica was not there."
    if len(shown) < num_replicas(records):
        caption += f" {len(shown)} of {num_replicas(records)} replicas, from the busiest to the idlest."
    return Figure("Load per replica", svg, caption)


def _chosen(records: SimulationRecords) -> list[int]:
    """All replicas in order or, of many, a sample from the busiest to the idlest."""
    n = num_replicas(records)
    if n <= MOST_ROWS:
        return list(range(n))
    order = np.argsort(-replica_columns(records)["busy_s"], kind="stable")
    return [int(i) for i in order[np.linspace(0, n - 1, MOST_ROWS).astype(int)]]


def _requests_inside(records: SimulationRecords, replica: int, edges: Floats) -> Floats:
    """Mean number of requests running and waiting on a replica in each bin, NaN where it was not there; (bins,)."""
    steps = records.steps
    low, high = np.searchsorted(steps.replica, [replica, replica + 1])  # rows of a replica are together
    inside = np.zeros(len(edges) - 1)
    if high > low:
        start, seconds = steps.start[low:high], span_seconds(steps)[low:high]
        count = (steps.num_running + steps.num_waiting)[low:high]
        before = np.concatenate([[0.0], np.cumsum(count * seconds)])
        last = np.maximum(np.searchsorted(start, edges, side="right") - 1, 0)
        partly = np.clip(edges - start[last], 0.0, seconds[last]) * count[last]
        inside = np.diff(before[last] + partly) / np.diff(edges)
    if records.replicas:
        life = records.replicas[replica]
        inside = np.where((edges[1:] > life.started) & (edges[:-1] < life.stopped), inside, np.nan)
    return np.asarray(inside)


def _count(records: SimulationRecords, time: TimeAxis) -> Figure:
    """Replicas that took requests, and replicas that were paid for."""
    at = (time.edges[1:] + time.edges[:-1]) / 2
    started = np.sort([replica.started for replica in records.replicas])
    ready = np.sort([replica.ready for replica in records.replicas])
    stopped = np.sort([replica.stopped for replica in records.replicas])
    stopped_ready = np.sort([r.stopped for r in records.replicas if np.isfinite(r.ready)])
    paid = np.searchsorted(started, at, side="right") - np.searchsorted(stopped, at, side="right")
    serving = np.searchsorted(ready, at, side="right") - np.searchsorted(stopped_ready, at, side="right")
    svg = line_chart(
        [
            Series("paid for", time.middle, paid.astype(float), 2),
            Series("ready", time.middle, serving.astype(float), 1),
        ],
        x_label=time.label,
        y_label="replicas",
        summary=f"Replicas over time: at most {paid.max()} paid for, at least {serving.min()} ready.",
        x_range=time.reach,
    )
    return Figure("Replicas", svg, "The gap between the two is cold starts and draining: paid for, but not serving.")


def _transfers(records: SimulationRecords, time: TimeAxis) -> Figure:
    moved = records.transfers
    assert moved is not None
    end = np.minimum(moved.end, records.end)
    rate = moved.num_bytes / np.maximum(end - moved.start, 1e-12) / 1e9
    sent = _ramps(moved.start, rate, time.edges) - _ramps(end, rate, time.edges)
    mean = np.maximum(np.diff(sent) / np.diff(time.edges), 0.0)
    svg = line_chart(
        [Series("GB/s", time.middle, mean, 4, area=True)],
        x_label=time.label,
        y_label="GB/s between replicas",
        summary=f"Transfers between replicas: {len(moved.start):,} in all, peak {mean.max():.3g} GB/s.",
        x_range=time.reach,
    )
    return Figure("Transfers", svg, "KV caches and weights on their way between replicas, summed over all links.")


def _ramps(start: Floats, rate: Floats, at: Floats) -> Floats:
    """Sum over ramps of rate x (t - start), from each one's start on; (len(at),)."""
    order = np.argsort(start)
    done = np.searchsorted(start[order], at)
    slope = np.concatenate([[0.0], np.cumsum(rate[order])])[done]
    offset = np.concatenate([[0.0], np.cumsum((rate * start)[order])])[done]
    return np.asarray(at * slope - offset)


def cluster_tables(summary: dict[str, Any]) -> dict[str, Any]:
    """What the page's cluster section shows, of ``summarize_fleet``."""
    events, more = event_rows(summary)
    even = summary["imbalance"]["busy_s"]
    return {
        "groups": group_rows(summary),
        "transfers": transfer_rows(summary),
        "events": events,
        "more_events": more,
        "imbalance": None if even is None else number(even),
    }


def tier_rows(summary: dict[str, Any]) -> list[list[str]]:
    """Where prompt tokens were hit: the GPUs' caches, then each tier."""
    found = summary["kv_tiers"]
    if found is None:
        return []
    rows = [["GPU", "", f"{100 * found['gpu']['share']:.1f} %", "", "", ""]]
    for name, row in found["tiers"].items():
        copies = f"{row['copies']:.0f} x " if row["copies"] > 1 else ""
        ahead = f", {number(row['bytes_prefetched'] / 1e9)} of them ahead" if row["bytes_prefetched"] else ""
        rows.append(
            [
                name,
                f"{copies}{number(row['capacity_bytes'] / row['copies'] / 1e9)} GB",
                f"{100 * row['share']:.1f} %",
                f"{number(row['bytes_read'] / 1e9)} GB{ahead}",
                f"{number(row['bytes_written'] / 1e9)} GB",
                f"{100 * row['read_utilization']:.1f} %",
            ]
        )
    found_here = found["gpu"]["share"] + sum(row["share"] for row in found["tiers"].values())
    return [*rows, ["computed", "", f"{100 * (1 - found_here):.1f} %", "", "", ""]]


def tier_figure(summary: dict[str, Any]) -> Figure | None:
    """The same as a bar; None without tiers."""
    found = summary["kv_tiers"]
    if found is None:
        return None
    shares = {name: row["share"] for name, row in found["tiers"].items()}
    return Figure("Prompt tokens", hits_bar(found["gpu"]["share"], shares), "Where their KV came from.")


def hits_bar(gpu_share: float, tier_shares: Mapping[str, float]) -> str:
    """Shares of the prompt tokens hit in GPU memory and in each tier, and computed."""
    colours = (2, 3, 5)
    tiers = [(name, 100 * share, colours[i % 3]) for i, (name, share) in enumerate(tier_shares.items())]
    parts = [("GPU memory", 100 * gpu_share, 1), *tiers]
    parts.append(("computed", 100 - sum(value for _, value, _ in parts), 4))
    return stacked_bar(parts, unit="%", summary="Where the KV of prompt tokens came from.")


def group_rows(summary: dict[str, Any]) -> list[list[str]]:
    """One row per group: replicas, busy, requests, tokens, prefix hits, running, waiting, KV."""
    rows = []
    for name, group in summary["groups"].items():
        hit, busy = group["prefix_hit_ratio"], group["utilization"]
        rows.append(
            [
                name,
                f"{group['replicas']:,}",
                "-" if busy is None else f"{100 * busy:.0f} %",
                f"{group['requests_finished']:,}",
                f"{group['prompt_tokens']:,}",
                f"{group['output_tokens']:,}",
                "-" if hit is None else f"{100 * hit:.1f} %",
                number(group["running_requests"]),
                number(group["waiting_requests"]),
                f"{100 * group['kv_usage']:.0f} %",
            ]
        )
    return rows


def transfer_rows(summary: dict[str, Any]) -> list[list[str]]:
    """Kind, transfers, GB, mean and P99 time."""
    return [
        [
            kind,
            f"{row['count']:,}",
            number(row["bytes"] / 1e9),
            f"{row['mean_s'] * 1e3:.3g} ms",
            f"{row['p99_s'] * 1e3:.3g} ms",
        ]
        for kind, row in summary["transfers"].items()
    ]


def event_rows(summary: dict[str, Any]) -> tuple[list[list[str]], int]:
    """Time, kind, replica and text of the first events; how many are left out."""
    events = summary["events"]
    rows = [
        [f"{e['time_s']:,.1f} s", e["kind"], "" if e["replica"] < 0 else str(e["replica"]), e["text"]]
        for e in events[:MOST_EVENTS]
    ]
    return rows, max(0, len(events) - MOST_EVENTS)
