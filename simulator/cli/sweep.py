"""``windtunnel sweep``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from simulator.cli.console import err, out, print_json
from simulator.cli.options import AsJson, ScenarioFile


def sweep(
    scenario: ScenarioFile,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PATH=V1,V2", help="A field and its values; repeat for more fields."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each combination, with seeds that follow.")] = 1,
    jobs: Annotated[int | None, typer.Option(min=1, help="Runs at the same time.", show_default="processors")] = None,
    on: Annotated[
        str, typer.Option(metavar="processes|ray[:ADDRESS]", help="Where: processes here, or a Ray cluster.")
    ] = "processes",
    out_dir: Annotated[
        Path | None, typer.Option("--out", help="Folder of the results.", show_default="runs/sweep-<scenario>")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run every combination of fields, in processes or on a Ray cluster. Rows are kept as they finish; an interrupted
    sweep goes on, wherever it ran.

    Combinations that cannot be built are rows that say why; exit code 2 when none can.
    """
    from simulator.cli.progress import SweepProgress
    from simulator.planning.on_ray import executor
    from simulator.planning.pool import processors
    from simulator.planning.sweep import parse_axis
    from simulator.planning.sweep import sweep as run_sweep

    folder = out_dir or Path("runs") / f"sweep-{scenario.stem}"
    axes = [parse_axis(text) for text in settings or []]
    runs_on = executor(on, jobs or (processors() if on == "processes" else None))
    try:
        with SweepProgress("sweep") as progress:
            rows = run_sweep(scenario, axes, folder, seeds=seeds, on=runs_on, progress=progress)
    except KeyboardInterrupt:
        err().print(f"interrupted: finished runs are kept in {folder}; the same command goes on from there.")
        raise typer.Exit(130) from None
    bad = sum(row["status"] != "ok" for row in rows)
    if as_json:
        print_json(rows)
        raise typer.Exit(2 if rows and bad == len(rows) else 0)
    _print(rows)
    console = out()
    console.print(f"\n{len(rows)} runs" + (f", {bad} of them invalid" if bad else "") + ".", markup=False)
    console.print(f"Results: {folder / 'results.csv'}, {folder / 'results.parquet'}", markup=False, soft_wrap=True)
    raise typer.Exit(2 if rows and bad == len(rows) else 0)


SHOWN = {
    "stability.verdict": "verdict",
    "throughput.request_per_s": "requests/s",
    "throughput.output_tokens_per_s": "tokens/s",
    "latency.ttft_s.p99": "TTFT p99 s",
    "latency.tpot_s.p99": "TPOT p99 s",
    "slo.attainment": "within SLO",
    "cost.usd_per_million_output_tokens": "$/M tokens",
}


def _print(rows: list[dict[str, object]]) -> None:
    from simulator.cli.console import print_rows

    shown: list[dict[str, object]] = []
    for row in rows:
        summary, fields = row.get("summary", {}), row["settings"]
        assert isinstance(summary, dict) and isinstance(fields, dict)
        line: dict[str, object] = {**fields, "seed": row["seed"]}
        line |= {name: summary.get(key) for key, name in SHOWN.items()}
        shown.append(line | {"reason": row["reason"] or ""})
    if not any(line["reason"] for line in shown):
        for line in shown:
            del line["reason"]
    print_rows(shown)
