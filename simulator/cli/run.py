"""``windtunnel run``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from simulator.cli.console import out, print_json
from simulator.cli.options import AsJson, ScenarioFile, Settings


def run(
    scenario: ScenarioFile,
    settings: Settings = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed, instead of the scenario's.")] = None,
    out_dir: Annotated[
        Path | None, typer.Option("--out", help="Folder of the results.", show_default="runs/<name of the scenario>")
    ] = None,
    report: Annotated[bool, typer.Option("--report/--no-report", help="Write report.html.")] = True,
    perfetto: Annotated[bool, typer.Option("--perfetto", help="Write trace.json for ui.perfetto.dev.")] = False,
    steps: Annotated[bool, typer.Option("--steps", help="Write steps.parquet, one row per engine step.")] = False,
    as_json: AsJson = False,
) -> None:
    """Simulate one scenario: prints a summary, writes tables, exports and an HTML report."""
    from simulator.cli.progress import SimulationProgress
    from simulator.cli.summary import print_summary
    from simulator.scenario.load import anchored, located
    from simulator.scenario.result import check_folder
    from simulator.scenario.run import run as simulate
    from simulator.scenario.source import override, read_source

    source = override(read_source(scenario), settings or [])
    experiment = anchored(source)
    folder = out_dir or Path("runs") / str(experiment.name)
    check_folder(folder)
    with located(source):
        with SimulationProgress(str(experiment.name)) as progress:
            result = simulate(experiment, seed, progress=progress)
        written = result.write(
            folder,
            report=None if report else False,
            perfetto=True if perfetto else None,
            steps="all" if steps else None,
        )
    if as_json:
        print_json(result.summary)
        return
    print_summary(result)
    console = out()
    page = written.get("report.html")
    console.print(f"\nReport: {page}" if page else f"\nResults: {folder}", markup=False, soft_wrap=True)
