"""What has been run for a plan, by key: a run that has ended is never run again, whoever was killed since."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class Ledger:
    """Rows by key. With a file, every process of a plan appends its own lines to it (whole, in one write, synced) and
    reads those of the others when it does not know a key; without one, rows stay in this process's memory.

    The file is opened, and locked against other plans, by a ``Store`` of the process that answers the plan.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path, self._rows, self._read = path, {}, 0  # type: Path | None, dict[str, Row], int

    def __reduce__(self) -> tuple[Any, ...]:
        """In another process: one ledger per file."""
        return ledger_at, (self.path,)

    def get(self, key: str) -> Row | None:
        """The row, None: it has not been run."""
        if key not in self._rows:
            self._catch_up()
        return self._rows.get(key)

    def add(self, key: str, row: Row) -> None:
        """On disk when this returns, where there is a file. Raises OSError."""
        self._rows[key] = row
        if self.path is None:
            return
        line = json.dumps({"key": key, **row}, allow_nan=False).encode() + b"\n"
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        try:
            os.write(handle, line)
            os.fsync(handle)
        finally:
            os.close(handle)

    def _catch_up(self) -> None:
        if self.path is None or self.path.stat().st_size <= self._read:
            return
        with self.path.open("rb") as handle:
            handle.seek(self._read)
            for line in handle:
                if not line.endswith(b"\n"):
                    break
                row = json.loads(line)
                self._rows[row.pop("key")] = row
                self._read += len(line)


@cache
def ledger_at(path: Path | None) -> Ledger:
    """This process's ledger of a file."""
    return Ledger(path)
