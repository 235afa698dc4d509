"""``windtunnel survey``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from simulator.cli.console import err, out, print_json, print_rows
from simulator.cli.options import AsJson

INTERRUPTED = 130  # 128 + SIGINT, as shells expect


def survey(
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME", help="Systems to run; all by default.")] = None,
    systems: Annotated[Path, typer.Option(help="Folder with the systems' files.")] = Path("scenarios/survey"),
    out_dir: Annotated[Path, typer.Option("--out", help="Folder of the results.")] = Path("runs/survey"),
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Systems run at the same time.", show_default="processors")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Run again what is kept from an earlier run.")] = False,
    document: Annotated[
        Path | None, typer.Option(help="Document whose table of the scoreboard is written anew.")
    ] = None,
    list_systems: Annotated[bool, typer.Option("--list", help="List the systems and leave.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run published systems in their own settings, and score what comes out against their claims.

    Results of finished systems are kept in the folder: an interrupted survey goes on where it was.
    """
    import os

    from simulator.cli.progress import SurveyProgress
    from simulator.survey.load import system_files
    from simulator.survey.runner import run_survey
    from simulator.survey.scoreboard import counts, rows, write, write_document

    files = system_files(systems, names or [])
    if list_systems:
        print_rows([{"name": f.name, "system": f.system.system, "group": f.system.group} for f in files])
        return
    try:
        with SurveyProgress() as progress:
            outcomes = run_survey(files, out_dir, jobs=jobs or os.cpu_count() or 1, fresh=fresh, progress=progress)
    except KeyboardInterrupt:
        err().print(f"interrupted: finished systems are kept in {out_dir}; run it again to go on.", markup=False)
        raise typer.Exit(INTERRUPTED) from None
    table = rows(files, outcomes)
    written = write(table, out_dir)
    if document is not None:
        write_document(table, document)
    if as_json:
        print_json(table)
        return
    for row in table:
        _print(row)
    found = counts(table)
    out().print("\n" + ", ".join(f"{number} {verdict}" for verdict, number in found.items()), markup=False)
    out().print(f"Scoreboard: {written['html']}", markup=False, soft_wrap=True)


def _print(row: dict[str, object]) -> None:
    console = out()
    style = {"within band": "bold green", "miss": "bold red"}.get(str(row["verdict"]), "bold yellow")
    console.print(f"{row['system']}: ", style="bold", end="", markup=False)
    console.print(str(row["verdict"]), style=style)
    console.print(f"  claim  {row['claim']}", style="dim", markup=False, soft_wrap=True)
    checks = row["checks"]
    assert isinstance(checks, list)
    for check in checks:
        mark = "ok  " if check["within"] else "MISS"
        text = f"  {mark}   {check['name']}: {check['ours']} (band: {check['band']})"
        console.print(text + (f". {check['why']}" if check["why"] else ""), markup=False, soft_wrap=True)
    if not checks:
        console.print(f"  why    {row['why']}", markup=False, soft_wrap=True)
