"""``windtunnel compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from simulator.cli.console import cell, out, print_json, print_rows
from simulator.cli.options import AsJson


def compare(
    run_a: Annotated[Path, typer.Argument(metavar="RUN_A", help="Folder of a run.", show_default=False)],
    run_b: Annotated[Path, typer.Argument(metavar="RUN_B", help="Folder of another run.", show_default=False)],
    confidence: Annotated[float, typer.Option(min=0.5, max=0.999, help="Of the intervals.")] = 0.95,
    as_json: AsJson = False,
) -> None:
    """Hold two runs against each other: differences with intervals, request by request where they are the same."""
    from simulator.planning.compare import compare as hold
    from simulator.planning.compare import read_run

    found = hold(read_run(run_a), read_run(run_b), confidence=confidence)
    if as_json:
        print_json(found.to_dict())
        return
    console = out()
    for name, folder in (("A", found.a), ("B", found.b)):
        console.print(f"{name}  {folder}", markup=False, soft_wrap=True)
    console.print(
        f"{found.pairing[0].upper()}{found.pairing[1:]}; {found.compared_requests:,} compared.\n", markup=False
    )
    rows = []
    for row in found.rows:
        interval = "" if row.low is None else f"{cell(row.low)} to {cell(row.high)}"
        relative = "" if row.relative is None else f"{row.relative:+.1%}"
        rows.append({"metric": row.metric, "A": row.a, "B": row.b, "B - A": row.difference, "relative": relative,
                     f"{confidence:.0%} interval of B - A": interval, "": row.verdict})  # fmt: skip
    print_rows(rows)
    for note in found.notes:
        console.print(note, style="yellow", markup=False, soft_wrap=True)
