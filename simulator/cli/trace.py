"""``windtunnel trace``: look at traces, convert them, list formats and presets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simulator.cli.console import out, print_json, print_rows
from simulator.cli.options import AsJson, FormatOptions
from simulator.core.errors import TraceError

if TYPE_CHECKING:
    from traces.trace import Trace

app = typer.Typer(no_args_is_help=True, help="Look at request traces, convert them, list formats and presets.")

TraceFile = Annotated[
    str, typer.Argument(metavar="TRACE", help="Trace file, or preset:NAME for a generated one.", show_default=False)
]
Format = Annotated[str | None, typer.Option("--format", help="Format; found out from the file unless given.")]
Strict = Annotated[bool, typer.Option("--strict", help="Refuse the file when a row is bad, instead of skipping it.")]
Number = Annotated[int, typer.Option("--num-requests", min=1, help="Requests to draw from a preset.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of a preset's draws.")]

PRESET = "preset:"


@app.command()
def describe(
    trace: TraceFile,
    format: Format = None,  # noqa: A002 - the option's name
    strict: Strict = False,
    option: FormatOptions = None,
    plot: Annotated[Path | None, typer.Option("--plot", help="Draw a picture into this PNG file.")] = None,
    num_requests: Number = 10_000,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Rates, burstiness, lengths, sessions and prefix sharing of a trace."""
    from traces import describe as describing

    found = read(trace, format, strict, num_requests, seed, option)
    description = describing.describe(found)
    if plot is not None:
        describing.plot(found, plot)
    if as_json:
        print_json(description.to_dict())
        return
    print_rows([{"": name, trace: value} for name, value in description.rows()])
    if plot is not None:
        out().print(f"Picture: {plot}", markup=False, soft_wrap=True)


@app.command()
def convert(
    trace: TraceFile,
    to: Annotated[
        Path, typer.Argument(metavar="OUT", help="File to write: .csv, .csv.gz or .parquet.", show_default=False)
    ],
    format: Format = None,  # noqa: A002 - the option's name
    strict: Strict = False,
    option: FormatOptions = None,
    num_requests: Number = 10_000,
    seed: Seed = 0,
) -> None:
    """Write a trace (or a preset's draws) as Windtunnel's own table."""
    found = read(trace, format, strict, num_requests, seed, option)
    name = to.name.lower()
    try:
        if name.endswith(".parquet"):
            found.to_parquet(to)
        elif name.endswith((".csv", ".csv.gz")):
            found.to_csv(to)
        else:
            raise TraceError(
                f"cannot tell the format from {to.name!r}.", where="OUT", remedy="End it in .csv or .parquet."
            )
    except OSError as error:
        raise TraceError(f"cannot be written: {error}.", where=str(to)) from error
    for note in found.notes:
        out().print(f"note: {note}", markup=False, soft_wrap=True)
    out().print(f"{len(found):,} requests written to {to}", markup=False, soft_wrap=True)


@app.command()
def formats(as_json: AsJson = False) -> None:
    """List the trace formats."""
    from traces.formats import FORMATS, options_of

    found = [(entry.name, entry.summary, options_of(entry)) for entry in FORMATS.values()]
    if as_json:
        print_json([{"format": name, "summary": text, "options": options} for name, text, options in found])
    else:
        print_rows([{"format": name, "": text, "options": ", ".join(options)} for name, text, options in found])


@app.command()
def presets(as_json: AsJson = False) -> None:
    """List the generators fitted to real traces."""
    from traces.generate import PRESETS, load_preset

    found = [load_preset(name) for name in PRESETS]
    rows = [{"preset": p.name, "requests/s": p.rate, "fitted to": p.source, "licence": p.licence} for p in found]
    if as_json:
        print_json([{**row, "description": p.description} for row, p in zip(rows, found, strict=True)])
    else:
        print_rows(rows)


def read(
    name: str,
    format: str | None = None,  # noqa: A002 - as the option is called
    strict: bool = False,
    num_requests: int = 10_000,
    seed: int = 0,  # noqa: A002
    option: Sequence[str] | None = None,
) -> Trace:
    """A trace file, or ``preset:NAME`` drawn anew. option: of the format, each ``NAME=VALUE``. Raises TraceError."""
    if name.startswith(PRESET):
        from traces.generate import generate

        return generate(name.removeprefix(PRESET), num_requests=num_requests, seed=seed)
    from traces.formats import read_trace

    return read_trace(name, format, strict=strict, **_options(option or ()))


def _options(given: Sequence[str]) -> dict[str, Any]:
    import yaml

    found: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise TraceError(f"{text!r} is not of the form NAME=VALUE.", where="--option")
        try:
            found[name.strip()] = yaml.safe_load(value)
        except yaml.YAMLError:
            found[name.strip()] = value
    return found
