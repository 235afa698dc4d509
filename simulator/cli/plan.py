"""``windtunnel plan``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from simulator.cli.console import err, out, print_json, print_rows
from simulator.cli.options import AsJson

if TYPE_CHECKING:
    from simulator.planning.optimisers.answer import Optimised


def plan(
    plan_file: Annotated[Path, typer.Argument(metavar="PLAN", help="Plan file (YAML).", show_default=False)],
    out_dir: Annotated[
        Path | None, typer.Option("--out", help="Folder of the answer.", show_default="runs/plan-<name>")
    ] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Runs at the same time.", show_default="processors")] = None,
    pictures: Annotated[bool, typer.Option("--pictures/--no-pictures", help="Also run the report's curves.")] = True,
    as_json: AsJson = False,
) -> None:
    """Answer a planning question: what a design sustains, which one serves a rate at the lowest cost, what an optimiser
    of the literature proposes.

    Prints the answer and writes a report, tables of designs and runs, and the recommended scenario. Runs are kept as
    they finish; an interrupted plan goes on from there.
    """
    from simulator.cli.progress import PlanProgress
    from simulator.planning import answer as words
    from simulator.planning.optimisers.file import OptimiserFile
    from simulator.planning.optimisers.solve import optimise
    from simulator.planning.pool import processors
    from simulator.planning.question import read_question
    from simulator.planning.report import page
    from simulator.planning.solve import solve

    file = read_question(plan_file)
    folder = out_dir or Path("runs") / f"plan-{file.name}"
    words.check_folder(folder)
    try:
        with PlanProgress() as progress:
            if isinstance(file, OptimiserFile):
                found = optimise(file, jobs=jobs or processors(), folder=folder, tick=progress.tick)
                _print_optimised(found, found.write(folder), as_json=as_json)
                return
            answer = solve(file, jobs=jobs or processors(), pictures=pictures, progress=progress, folder=folder)
    except KeyboardInterrupt:
        err().print(f"interrupted: finished runs are kept in {folder}; the same command goes on from there.")
        raise typer.Exit(130) from None
    written = words.write(answer, folder, page(answer, folder))
    if as_json:
        print_json(words.as_json(answer))
        return
    console = out()
    console.print(words.sentence(answer), style="bold", markup=False, soft_wrap=True)
    second = words.next_sentence(answer)
    if second:
        console.print(second, markup=False, soft_wrap=True)
    console.print()
    rows = words.design_rows(answer)[:20]
    dropped = ("low", "high", "bound_request_per_s", "runs", "pruned_by", "state")
    print_rows([{name: value for name, value in row.items() if name not in dropped} for row in rows])
    if len(answer.outcomes) > len(rows):
        console.print(f"and {len(answer.outcomes) - len(rows)} more in {written['designs.csv']}", markup=False)
    for what, command in words.serve_commands(answer):
        console.print(f"\n{what[:1].upper()}{what[1:]}:\n  {command}", markup=False, soft_wrap=True)
    console.print(f"\nReport: {written['report.html']}", markup=False, soft_wrap=True)


def _print_optimised(found: Optimised, written: dict[str, Path], *, as_json: bool) -> None:
    if as_json:
        print_json(found.as_json())
        return
    console = out()
    console.print(found.answer, style="bold", markup=False, soft_wrap=True)
    if found.second:
        console.print(found.second, markup=False, soft_wrap=True)
    console.print()
    rows = [row for row in found.rows if row["rank"] is not None][:20]
    dropped = {"low", "high", "rank"} | ({"reason"} if not any(row["reason"] for row in rows) else set())
    print_rows([{name: value for name, value in row.items() if name not in dropped} for row in rows])
    if len(found.rows) > len(rows):
        others = f"and {len(found.rows) - len(rows)} more, those that cannot be with the reason, in"
        console.print(f"{others} {written['designs.csv']}", markup=False, soft_wrap=True)
    for what, command in found.commands():
        console.print(f"\n{what[:1].upper()}{what[1:]}:\n  {command}", markup=False, soft_wrap=True)
    console.print(f"\nReport: {written['report.html']}", markup=False, soft_wrap=True)
