"""``windtunnel cache``: hit ratio against capacity, without running an engine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from simulator.cli.console import err, out, print_json, print_rows
from simulator.cli.options import AsJson, FormatOptions
from simulator.core.errors import UserError

if TYPE_CHECKING:
    from simulator.report.cache import TraceCurves
    from traces.trace import Trace


def cache(
    traces: Annotated[
        list[str], typer.Argument(metavar="TRACE...", help="Trace files with prefix blocks, or preset:NAME.")
    ],
    capacity_blocks: Annotated[
        str | None, typer.Option(metavar="N,N,...", help="Capacities in the trace's blocks; by default nine up to all.")
    ] = None,
    policy: Annotated[
        list[str] | None, typer.Option(help="Eviction policy (`windtunnel policies`); all by default. Repeatable.")
    ] = None,
    format: Annotated[str | None, typer.Option("--format", help="Format; found out from the file.")] = None,  # noqa: A002 - the option's name
    option: FormatOptions = None,
    head: Annotated[int | None, typer.Option(min=1, help="Only the first requests.")] = None,
    folder: Annotated[Path, typer.Option("--out", help="Folder for the table and the picture.")] = Path("runs/cache"),
    as_json: AsJson = False,
) -> None:
    """Hit ratio of a prefix cache against its capacity, for each eviction policy and for the offline optimum."""
    from simulator.kv.eviction import evictions
    from simulator.report.cache import curves, write_curves

    sizes = _sizes(capacity_blocks)
    names = evictions(policy or [])
    found = [curves(_read(trace, format, head, option), trace, names, sizes, _tick) for trace in traces]
    files = write_curves(found, folder)
    if as_json:
        print_json([curve.to_dict() for curve in found])
        return
    for trace in found:
        _print(trace)
    out().print(f"Written: {', '.join(str(path) for path in files)}", markup=False, soft_wrap=True)


def _print(found: TraceCurves) -> None:
    kb = f"blocks of {found.block_tokens} tokens"
    title = f"{found.name}: {found.accesses:,} {kb}, {found.num_blocks:,} different; ideal hit ratio {found.ideal:.3f}"
    rows = [
        {"capacity": size, **{curve.policy: f"{curve.prefix[i]:.3f}" for curve in found.curves}}
        for i, size in enumerate(found.capacity)
    ]
    print_rows(rows, title=title)


def _tick(text: str) -> None:
    console = err()
    if console.is_terminal:
        console.print(text, markup=False, style="dim")


def _sizes(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        sizes = sorted({int(part.replace("_", "")) for part in text.split(",")})
    except ValueError:
        sizes = [0]
    if sizes[0] < 1:
        remedy = "Give whole numbers of blocks, at least 1, such as 1000,10000."
        raise UserError(f"{text!r} is no list of capacities.", where="--capacity-blocks", remedy=remedy)
    return sizes


def _read(name: str, form: str | None, head: int | None, option: list[str] | None) -> Trace:
    from simulator.cli.trace import read

    found = read(name, form, option=option)
    return found if head is None else found.head(head)
