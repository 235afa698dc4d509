"""``windtunnel serve-experiment``: a real engine serves, the simulator predicts, both are compared."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from simulator.cli.console import err, out
from simulator.core.errors import UserError

app = typer.Typer(no_args_is_help=True, help="Serve a trace with a real engine here, and compare with the simulator.")


@app.command("run")
def run(
    experiment: Annotated[
        Path, typer.Argument(metavar="EXPERIMENT", help="Experiment file, or the name of a shipped one (serve-cpu).")
    ],
    out_folder: Annotated[Path, typer.Option("--out", help="Folder of served-*.json; what is there is kept.")] = Path(
        "measurements"
    ),
    time_limit_s: Annotated[float | None, typer.Option(help="Start no further engine after so long.")] = None,
) -> None:
    """Serve every load of an experiment with every engine; needs torch (the extra named profile)."""
    from profiler.measure.errors import CampaignError
    from profiler.serve.__main__ import experiment_file
    from profiler.serve.spec import load

    try:
        plan = load(experiment_file(experiment))
        from profiler.serve.run import serve

        serve(plan, out_folder, time_limit_s=time_limit_s, say=lambda text: err().print(text, markup=False))
    except CampaignError as error:
        raise UserError(error.message, where=error.where, remedy=error.remedy) from None
    except ModuleNotFoundError as error:
        raise UserError(
            f"{error.name} is not installed", where="serve-experiment", remedy="pip install 'windtunnel[profile]'"
        ) from None


@app.command("compare")
def compare(
    served: Annotated[list[Path], typer.Argument(metavar="SERVED...", help="served-*.json of the engines.")],
    kernels: Annotated[
        list[Path],
        typer.Option(help="measurements.jsonl of the same device (windtunnel profile); several give their median."),
    ],
    calibration: Annotated[
        str, typer.Option(help="As hardware.calibration of a scenario: prices the kernels beside interpolating them.")
    ] = "auto",
    out_folder: Annotated[
        Path, typer.Option("--out", help="Folder for the table, the picture and the numbers.")
    ] = Path("comparison"),
) -> None:
    """Predict what was served from kernels measured on that device; prints the table."""
    from profiler.measure.errors import CampaignError
    from profiler.serve.compare import compare as run_compare

    try:
        table = run_compare(served, kernels, out_folder, calibration)
    except CampaignError as error:
        raise UserError(error.message, where=error.where, remedy=error.remedy) from None
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from None
    out().print(table, markup=False, soft_wrap=True)
    err().print(f"Comparison: {out_folder / 'comparison.png'}", markup=False, soft_wrap=True)
