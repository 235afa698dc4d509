"""The two consoles, and tables of plain rows."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence

from rich.console import Console
from rich.table import Table

from simulator.core.errors import UserError

# Width of tables where output is not a terminal: whole, for a pipe or a log.
PIPE_WIDTH = 160


def out() -> Console:
    """Standard output. A new console each time, so that redirected output (and tests) see theirs."""
    console = Console(highlight=False, emoji=False)
    if not console.is_terminal:
        console = Console(highlight=False, emoji=False, width=max(PIPE_WIDTH, console.width))
    return console


def err() -> Console:
    return Console(stderr=True, highlight=False, emoji=False)


def print_error(error: UserError) -> None:
    """The located message on standard error."""
    console = err()
    console.print("error: ", style="bold red", end="")
    console.print(str(error), markup=False, soft_wrap=True)


def print_json(value: object) -> None:
    """Plain JSON, one indent, no colours: for other programs."""
    print(json.dumps(value, indent=2, allow_nan=False, default=str))


def print_rows(
    rows: Sequence[Mapping[str, object]], *, title: str | None = None, columns: Iterable[str] | None = None
) -> None:
    """A table with one line per mapping; numbers to the right. Columns: those of the first row unless named."""
    names = list(columns if columns is not None else (rows[0] if rows else ()))
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    for position, name in enumerate(names):
        numeric = all(isinstance(row.get(name), int | float | None) for row in rows)
        table.add_column(name, justify="right" if numeric else "left", overflow="fold", no_wrap=position == 0)
    for row in rows:
        table.add_row(*(cell(row.get(name)) for name in names))
    out().print(table)


def print_fields(row: Mapping[str, object]) -> None:
    """One mapping as lines of name and value, in full."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, value in row.items():
        table.add_row(name, cell(value))
    out().print(table)


def cell(value: object) -> str:
    """How a value looks in a table: thousands separated, four significant digits, '-' for none."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        if math.isnan(value):
            return "-"
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value).replace("[", r"\[")
