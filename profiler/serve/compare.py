"""Served against simulated: a table, a picture and the numbers behind them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from profiler.serve import record
from profiler.serve.calibrated import calibrated_cost
from profiler.serve.predict import Overhead, ServedCost, TableCost, predict, probe_overhead, shape_of, step_seconds
from profiler.serve.record import Load, Run
from profiler.serve.tables import Tables

Floats = NDArray[np.float64]
METRICS = ("ttft_s", "tpot_s", "e2e_s")


def compare(paths: Sequence[Path], kernels: Path | Sequence[Path], out: Path, calibration: str = "auto") -> str:
    """Writes ``comparison.json``, ``comparison.md`` and ``comparison.png`` into ``out``; returns the table.

    calibration: as ``hardware.calibration`` of a scenario; with it the simulator's own cost model prices the kernels,
    beside the interpolation of ``kernels``. Where the device has none, interpolation alone.
    Raises CalibrationError when ``kernels`` lacks a shape of a served model, ValueError on what is no served run.
    """
    found, drawn = [], []
    for path in sorted(paths):
        run = record.read(path)
        tables = Tables(kernels, run.dtype)
        costs: list[tuple[str, ServedCost]] = [("interpolated", TableCost(tables, shape_of(run), run.engine))]
        own = calibrated_cost(run, calibration, tables)
        if own is not None:
            costs.insert(0, (f"calibration {own.name}", own))
        both = [_compare(run, tables, prices, bare) for prices, bare in costs]
        found += both
        drawn.append(both[0])
    out.mkdir(parents=True, exist_ok=True)
    plain = [{k: v for k, v in one.items() if k != "points"} for one in found]
    (out / "comparison.json").write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")
    table = markdown(plain)
    (out / "comparison.md").write_text(table, encoding="utf-8")
    picture(drawn, out / "comparison.png")
    return table


def _compare(run: Run, tables: Tables, prices: str, bare: ServedCost) -> dict[str, Any]:
    overhead = probe_overhead(bare, run.probe, launches=run.device["type"] == "cuda")
    cost = bare.with_overhead(overhead)
    loads, points = [], {}
    for name in dict.fromkeys(load.load for load in run.loads):
        rounds = [load for load in run.loads if load.load == name]
        each, predicted = [latencies(load) for load in rounds], _simulated(run, rounds[0], cost)
        measured = {m: np.median([one[m] for one in each], axis=0) for m in each[0]}
        points[name] = (measured, predicted)
        loads.append({
            "load": name, "rate": rounds[0].rate, "requests": len(rounds[0].requests), "rounds": len(rounds),
            "yardstick_s": [y for load in rounds for y in load.yardstick_s],
            "steps": _priced(bare, cost, [s for load in rounds for s in load.steps]),
            **{m: _errors(measured[m], predicted[m]) | _repeats([one[m] for one in each]) for m in METRICS},
            "throughput": _throughput(rounds[0], measured["finish_s"], predicted["finish_s"]),
        })  # fmt: skip
    return {
        "yardstick_s": tables.yardstick_s, "prices": prices,
        "model": run.model["name"], "engine": run.engine["name"], "about": run.engine, "device": run.device,
        "versions": run.versions, "dtype": run.dtype, "clock": run.clock, "date": run.date,
        "overhead": asdict(overhead), "probe": _probe(bare, cost, run), "loads": loads, "points": points,
    }  # fmt: skip


def latencies(load: Load) -> dict[str, Floats]:
    """Per request: TTFT, TPOT (NaN with one output token), E2E and finish."""
    rows = np.array([(r.arrival_s, r.first_token_s, r.last_token_s, r.output_tokens) for r in load.requests])
    arrival, first, last, tokens = rows.T
    return _latencies(arrival, first, last, tokens)


def _latencies(arrival: Floats, first: Floats, last: Floats, tokens: Floats) -> dict[str, Floats]:
    gaps = np.where(tokens > 1, tokens - 1, np.nan)
    return {"ttft_s": first - arrival, "tpot_s": (last - first) / gaps, "e2e_s": last - arrival, "finish_s": last}


def _simulated(run: Run, load: Load, cost: ServedCost) -> dict[str, Floats]:
    r = predict(run, load, cost).requests
    return _latencies(r.arrival, r.first_token, r.finish, r.output_tokens.astype(float))


def _errors(measured: Floats, predicted: Floats) -> dict[str, float]:
    """Measured and predicted mean and P99 (s), relative errors of both, and the error of single requests."""
    keep = np.isfinite(measured) & np.isfinite(predicted)
    a, b = measured[keep], predicted[keep]
    each = np.abs(b / a - 1)
    p99 = float(np.percentile(a, 99)), float(np.percentile(b, 99))
    return {
        "measured_mean": float(a.mean()), "predicted_mean": float(b.mean()),
        "mean_error": float(b.mean() / a.mean() - 1),
        "measured_p99": p99[0], "predicted_p99": p99[1], "p99_error": p99[1] / p99[0] - 1,
        "request_mape": float(each.mean()), "request_median_ape": float(np.median(each)),
    }  # fmt: skip


def _repeats(rounds: Sequence[Floats]) -> dict[str, float]:
    """How far the engine's own rounds lie from their median, over requests, and the extremes of their means."""
    means = [float(np.nanmean(r)) for r in rounds]
    away = float(np.nanmean([np.abs(r / np.median(rounds, axis=0) - 1) for r in rounds]))
    return {"round_mean_low": min(means), "round_mean_high": max(means), "repeat_mape": away}


def _throughput(load: Load, measured: Floats, predicted: Floats) -> dict[str, float]:
    tokens = sum(r.output_tokens for r in load.requests)
    a, b = tokens / float(measured.max()), tokens / float(predicted.max())
    return {"measured_tokens_per_s": a, "predicted_tokens_per_s": b, "error": b / a - 1}


def _priced(bare: ServedCost, cost: ServedCost, steps: Sequence[record.Step]) -> dict[str, float]:
    took = np.array([s.seconds for s in steps])
    priced = np.array([step_seconds(cost, s) for s in steps])
    alone = np.array([step_seconds(bare, s) for s in steps])
    return {
        "count": len(steps), "measured_s": float(took.sum()), "total_error": float(priced.sum() / took.sum() - 1),
        "median_ape": float(np.median(np.abs(priced / took - 1))),
        "kernels_share": float(alone.sum() / took.sum()),
    }  # fmt: skip


def _probe(bare: ServedCost, cost: ServedCost, run: Run) -> dict[str, float]:
    return _priced(bare, cost, run.probe)


def markdown(found: Sequence[Mapping[str, Any]]) -> str:
    """One table for all runs, one line per engine with what its steps cost beside their kernels.

    ``kernels``: priced by the simulator's own cost model with a calibration, or interpolated between measured points.

    Measured values are medians over rounds, per request. ``rounds``: the span of the rounds' mean E2E about the
    measured one: how well the engine repeats itself. ``machine``: how much longer a fixed product took around the load
    than it did while the kernels were measured.
    """
    lines = [
        "| model | engine | served | kernels | load (req/s) | TTFT mean measured → predicted | TPOT | E2E | P99 E2E | tokens/s | median step error | rounds | machine |",  # noqa: E501
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in found:
        short = one["prices"].split(" ", maxsplit=1)[0].replace("calibration", "calibrated")
        for load in one["loads"]:
            cells = [
                f"{load[m]['measured_mean'] * 1e3:.1f} → {load[m]['predicted_mean'] * 1e3:.1f} ms "
                f"({load[m]['mean_error']:+.1%})"
                for m in METRICS
            ]
            t, e2e = load["throughput"], load["e2e_s"]
            rate = f"{t['measured_tokens_per_s']:.1f} → {t['predicted_tokens_per_s']:.1f} ({t['error']:+.1%})"
            lines.append(
                f"| {one['model']} | {one['engine']} | {one['date'][:16].replace('T', ' ')} | {short} "
                f"| {load['load']} ({load['rate']:g}) | {' | '.join(cells)} "
                f"| {load['e2e_s']['p99_error']:+.1%} | {rate} | {load['steps']['median_ape']:.1%} "
                f"| {e2e['round_mean_low'] / e2e['measured_mean'] - 1:+.0%} to "
                f"{e2e['round_mean_high'] / e2e['measured_mean'] - 1:+.0%} "
                f"| {np.mean(load['yardstick_s']) / one['yardstick_s'] - 1:+.0%} |"
            )
    lines.append("")
    for one in found:
        o = Overhead(**one["overhead"])
        lines.append(
            f"{one['model']}, {one['engine']}, {one['prices']}: kernels are {one['probe']['kernels_share']:.0%} of the "
            f"probe's step time; beside them {o.step_s * 1e3:.2f} ms a step and {o.sequence_s * 1e6:.0f} µs a sequence"
            + (f"; no step launches in less than {o.launch_s * 1e3:.1f} ms." if o.launch_s else ".")
        )
        lines.append("")
    return "\n".join(lines)


def picture(found: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Every request: predicted over measured, a row per run and a column per metric."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    titles = {"ttft_s": "time to first token", "tpot_s": "time per output token", "e2e_s": "end to end"}
    figure, axes = plt.subplots(len(found), 3, figsize=(12, 3.9 * len(found)), squeeze=False, layout="constrained")
    for row, one in zip(axes, found, strict=True):
        for axis, metric in zip(row, METRICS, strict=True):
            everything = []
            for name, (measured, predicted) in one["points"].items():
                a, b = measured[metric] * 1e3, predicted[metric] * 1e3
                everything += [a[np.isfinite(a)], b[np.isfinite(b)]]
                axis.scatter(a, b, s=16, alpha=0.65, linewidths=0, label=name)
            low, high = (f(np.concatenate(everything)) for f in (np.min, np.max))
            ends = np.array([low * 0.85, high * 1.18])
            axis.plot(ends, ends, color="0.3", linewidth=1)
            axis.fill_between(ends, ends * 0.9, ends * 1.1, color="0.5", alpha=0.15, linewidth=0, label="within 10 %")
            axis.set(xscale="log", yscale="log", xlim=ends, ylim=ends, xlabel="measured, ms", ylabel="predicted, ms")
            when = one["date"][11:16]
            axis.set_title(f"{one['engine']} {when}: {titles[metric]}".replace("  ", " "), fontsize=10)
            for one_axis in (axis.xaxis, axis.yaxis):
                one_axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                one_axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
                one_axis.set_minor_formatter(NullFormatter())
            axis.grid(visible=True, which="both", alpha=0.15)
        row[0].legend(fontsize=8, loc="upper left")
    figure.savefig(path, dpi=110)
    plt.close(figure)
