"""``windtunnel``: the commands, and what becomes of errors.

To add a command: write ``simulator/cli/<name>.py`` with one typed function and list it in ``COMMANDS``
(or a ``typer.Typer`` in ``GROUPS``), then run ``make docs``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer
import typer.core

from simulator import __version__, native
from simulator.cli import (
    bench,
    cache,
    calibrate,
    check,
    check_schedule,
    compare,
    explain,
    fit,
    gpus,
    models,
    plan,
    policies,
    profile,
    run,
    schema,
    serve_experiment,
    survey,
    sweep,
    tiers,
    trace,
    validate,
)
from simulator.cli.console import err, print_error
from simulator.core.errors import UserError

COMMANDS: dict[str, Callable[..., Any]] = {
    "run": run.run,
    "check": check.check,
    "schema": schema.schema,
    "explain": explain.explain,
    "fit": fit.fit,
    "models": models.models,
    "gpus": gpus.gpus,
    "calibrate": calibrate.calibrate,
    "calibrations": calibrate.calibrations,
    "policies": policies.policies,
    "check-schedule": check_schedule.check_schedule,
    "compare": compare.compare,
    "sweep": sweep.sweep,
    "plan": plan.plan,
    "survey": survey.survey,
    "cache": cache.cache,
    "tiers": tiers.tiers,
    "bench": bench.bench,
    "profile": profile.profile,
    "validate": validate.validate,
}
GROUPS: dict[str, typer.Typer] = {"trace": trace.app, "serve-experiment": serve_experiment.app}

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells expect


class Group(typer.core.TyperGroup):
    """Prints UserErrors as one located message, and answers Ctrl-C with 130. Anything else is a bug: traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as error:
            print_error(error)
            raise typer.Exit(EXIT_USER_ERROR) from None
        except KeyboardInterrupt:
            err().print("interrupted: nothing was written.")
            raise typer.Exit(EXIT_INTERRUPTED) from None


def version(show: bool) -> None:
    if show:
        print(f"windtunnel {__version__} (core: {native.CORE})")
        raise typer.Exit


app = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="A wind tunnel for LLM serving clusters: simulate a serving system before renting one GPU.",
)


@app.callback()
def windtunnel(
    _version: Annotated[
        bool, typer.Option("--version", callback=version, is_eager=True, help="Show the version and leave.")
    ] = False,
) -> None: ...


for _name, _command in COMMANDS.items():
    app.command(_name)(_command)
for _name, _group in GROUPS.items():
    app.add_typer(_group, name=_name)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the ``windtunnel`` command."""
    app(args=None if arguments is None else list(arguments), prog_name="windtunnel")
