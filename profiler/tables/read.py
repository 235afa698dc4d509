"""Any table or folder of tables, whoever published it."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path

from profiler.tables import aiconfigurator, llmservingsim, measured, vidur
from profiler.tables.columns import Tables
from simulator.core.errors import CalibrationError

SUFFIXES = (".parquet", ".csv", ".csv.gz", ".jsonl", ".jsonl.gz")


def read_tables(paths: Sequence[Path]) -> Tables:
    """Files and folders (searched to the bottom, in the order of names). Raises CalibrationError."""
    tables = Tables()
    for path in paths:
        if not path.exists():
            raise CalibrationError("no such file or folder", where=str(path))
        files = sorted(f for f in path.rglob("*") if f.name.endswith(SUFFIXES)) if path.is_dir() else [path]
        if not files:
            raise CalibrationError("no table here", where=str(path), remedy="tables end in " + ", ".join(SUFFIXES))
        for file in files:
            tables.merge(read_table(file))
    return tables


def read_table(path: Path) -> Tables:
    """One file, its format told by its name and first line."""
    if path.name.endswith(".parquet"):
        return aiconfigurator.read(path)
    if path.name.endswith((".jsonl", ".jsonl.gz")):
        return measured.read(path)
    if path.name.endswith((".csv", ".csv.gz")):
        try:
            columns = _header(path)
        except (OSError, UnicodeDecodeError) as error:
            raise CalibrationError(f"not a readable CSV file: {error}", where=str(path)) from error
        return vidur.read(path) if vidur.is_vidur(columns) else llmservingsim.read(path)
    raise CalibrationError("not a table", where=str(path), remedy="tables end in " + ", ".join(SUFFIXES))


def _header(path: Path) -> list[str]:
    if path.name.endswith(".gz"):
        with gzip.open(path, "rt", encoding="utf-8") as stream:
            return stream.readline().strip().split(",")
    with path.open(encoding="utf-8") as stream:
        return stream.readline().strip().split(",")
