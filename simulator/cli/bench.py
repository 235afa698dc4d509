"""``windtunnel bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from simulator.cli.console import err, out, print_json, print_rows


def bench(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[CASE]...", help="Cases to run; all by default.")
    ] = None,
    traces: Annotated[Path | None, typer.Option(help="Folder with the real traces some cases need.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list of measurements.")] = False,
    list_cases: Annotated[bool, typer.Option("--list", help="List the cases and leave.")] = False,
) -> None:
    """Measure the simulator's own speed and memory on fixed cases."""
    from dataclasses import asdict

    from simulator import native
    from simulator.bench.measure import Measurement, cases, measure, select

    if list_cases:
        print_rows([{"case": name, "about": case["about"]} for name, case in cases().items()])
        return
    found: list[Measurement] = []
    for result in measure(select(names or []), traces):
        if isinstance(result, Measurement):
            found.append(result)
        else:
            err().print(f"skipped {result[0]}: {result[1]}", markup=False)
    if as_json:
        print_json([asdict(result) for result in found])
        return
    print_rows(
        [
            {
                "case": result.name,
                "requests/CPU-s": f"{result.requests_per_cpu_s:,.0f}",
                "steps/CPU-s": f"{result.steps_per_cpu_s:,.0f}",
                "CPU s": f"{result.cpu_s:.3f}",
                "first run": f"{result.first_cpu_s:.3f}",
                "peak MB": f"{result.peak_rss_mb:.0f}",
                "SimPy timeouts/CPU-s": f"{result.simpy_timeouts_per_cpu_s:,.0f}",
            }
            for result in found
        ]
    )
    for result in found:
        if result.against is not None:
            out().print(f"{result.name} takes {result.times_against:.2f} times the CPU time of {result.against}.")
    out().print(f"Core: {native.CORE}.", style="dim", markup=False)
    out().print("Medians over repeats; SimPy alone on this machine beside them, to compare machines.", style="dim")
