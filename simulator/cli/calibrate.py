"""``windtunnel calibrate`` and ``windtunnel calibrations``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from simulator.cli.console import err, out, print_json, print_rows
from simulator.cli.options import AsJson


def calibrate(
    tables: Annotated[
        list[Path],
        typer.Argument(metavar="TABLES...", help="Kernel tables, or folders of them: `windtunnel profile` "
                       "(jsonl), aiconfigurator (parquet), LLMServingSim and Vidur (csv)."),
    ],
    gpu: Annotated[str, typer.Option(help="GPU of the catalogue whose kernels these are.")],
    to: Annotated[Path, typer.Option("--out", help="Calibration file to write.")],
    name: Annotated[str | None, typer.Option(help="What to call it; by default GPU and engine.")] = None,
) -> None:  # fmt: skip
    """Fit a calibration to kernel tables; prints each operator's error on whole shapes left out of the fit."""
    from profiler.fit.command import calibrate_files

    found = calibrate_files(
        tables, gpu, to, name, lambda text: err().print(text, markup=False, soft_wrap=True, style="dim")
    )
    for label, error in found.errors().items():
        key = label.replace(" ", "_").replace("/", "_")
        typer.echo(f"held_out_error_{key}={100 * error.mean:.2f} %")
    err().print(f"Calibration: {to} ({to.stat().st_size / 1000:.0f} kB)", markup=False, soft_wrap=True)


def calibrations(as_json: AsJson = False) -> None:
    """List the shipped calibrations with their errors on held-out shapes, and the GPUs that borrow one."""
    from simulator.cost.calibration import calibration_rows

    rows = calibration_rows()
    if as_json:
        print_json(rows)
        return
    operators = [key for key in rows[0] if key not in {"gpu", "engine", "stands in for"}]
    table = [{"operator": o, **{str(row["gpu"]).removesuffix("-80GB"): row[o] for row in rows}} for o in operators]
    print_rows(table, title="Shipped calibrations: mean error on whole shapes left out of the fit, in percent")
    for row in rows:
        borrowed = f"; stands in for {row['stands in for']}" if row["stands in for"] else ""
        out().print(f"{row['gpu']}: {row['engine']}{borrowed}", markup=False, soft_wrap=True)
