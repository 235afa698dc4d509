"""Plain tables with errors that name file, row and column."""

from __future__ import annotations

import csv
import gzip
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from simulator.core.errors import UserError

Row = dict[str, str]


class MeasurementError(UserError):
    """A measurement file is malformed or of no known kind."""


def open_text(path: Path) -> io.TextIOBase:
    """A text file, gzipped or not. Raises MeasurementError."""
    try:
        return gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8")
    except OSError as error:
        raise MeasurementError(f"cannot be read: {error}.", where=str(path)) from error


@dataclass(frozen=True)
class Table:
    """A CSV file: a header and rows of text. Rows count from 1, the header apart."""

    path: Path
    header: tuple[str, ...]
    rows: tuple[Row, ...]

    def __iter__(self) -> Iterator[tuple[int, Row]]:
        return iter(enumerate(self.rows, 1))

    def where(self, row: int, column: str | None = None) -> str:
        return f"{self.path}: row {row}" + (f", column {column}" if column else "")

    def text(self, row: int, column: str) -> str:
        value = self.rows[row - 1].get(column)
        if value is None:
            raise MeasurementError("is missing.", where=self.where(row, column))
        return value.strip()

    def number(self, row: int, column: str, *, positive: bool = True) -> float:
        """A finite number (above zero unless told). Raises MeasurementError."""
        text = self.text(row, column)
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or (positive and value <= 0):
            kind = "a positive number" if positive else "a number"
            raise MeasurementError(f"{text!r} is not {kind}.", where=self.where(row, column))
        return value

    def integer(self, row: int, column: str, *, positive: bool = True) -> int:
        value = self.number(row, column, positive=positive)
        if value != int(value):
            raise MeasurementError(f"{value:g} is not a whole number.", where=self.where(row, column))
        return int(value)


def header_of(path: Path) -> tuple[str, ...]:
    """Column names of a CSV file; () when it is not one."""
    try:
        with open_text(path) as lines:
            return tuple(next(csv.reader([lines.readline()]), ()))
    except (OSError, EOFError, ValueError, csv.Error):
        return ()


def read_table(path: Path, columns: tuple[str, ...]) -> Table:
    """Read a CSV file that must hold ``columns`` and at least one row. Raises MeasurementError."""
    try:
        with open_text(path) as lines:
            reader = csv.DictReader(lines)
            rows = tuple(reader)
            header = tuple(reader.fieldnames or ())
    except (OSError, EOFError, ValueError, csv.Error) as error:
        raise MeasurementError(f"cannot be read: {error}.", where=str(path)) from error
    missing = [c for c in columns if c not in header]
    if missing:
        raise MeasurementError(f"lacks the column {missing[0]}.", where=str(path), remedy="See docs/validation.md.")
    if not rows:
        raise MeasurementError("holds no rows.", where=str(path))
    return Table(path, header, rows)
