"""``windtunnel validate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from simulator.cli.console import err, out


def validate(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Measurements: files, or folders of them.")],
    calibration: Annotated[
        str, typer.Option(help="As hardware.calibration of a scenario: auto, roofline or a file.")
    ] = "auto",
    overhead: Annotated[
        str | None, typer.Option(help="Engine overhead preset; by default that of the measured engine's version.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of lengths that a measurement states as a distribution.")] = 0,
    folder: Annotated[
        Path | None, typer.Option("--out", help="Write the residual report here: HTML, PNG and CSV.")
    ] = None,
) -> None:
    """Run the simulator as real measurements were made and compare; prints name=value unit lines and tunes nothing."""
    from profiler.validate.report import write_report
    from profiler.validate.run import metrics
    from profiler.validate.run import validate as compare
    from profiler.validate.served import Options

    found = compare(
        paths,
        Options(calibration, overhead, seed),
        lambda m: err().print(f"{m.kind}: {m.path}", markup=False, soft_wrap=True, style="dim"),
    )
    for comparison in found:
        for note in comparison.notes:
            err().print(f"note: {comparison.path.name}: {note}", markup=False, soft_wrap=True)
    for metric in metrics(found):
        out().print(str(metric), markup=False, soft_wrap=True)
    if folder is not None:
        written = write_report(folder, found, title="Windtunnel against measurements")
        err().print(f"Report: {written['validation.html']}", markup=False, soft_wrap=True)
