"""Where rows of a sweep or a plan go as they come: one line of JSON each, so that a kill loses at most the line being
written."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from simulator.core.errors import UserError

if sys.platform != "win32":
    import fcntl

NAME = "runs.jsonl"
Row = dict[str, Any]


class Store:
    """``DIR/runs.jsonl``: rows by their ``key``, appended and synced one by one."""

    def __init__(self, folder: Path, kind: str = "sweep") -> None:
        """Opens, or makes, the store; what was being written when an earlier process died is cut off.

        kind: whose rows they are, for what is said of errors. Raises UserError: the folder holds something else,
        another process writes to it, or it cannot be written.
        """
        self.folder, self.kind = folder, kind
        self.path = path = folder / NAME
        try:
            if folder.exists() and not path.exists() and (not folder.is_dir() or any(folder.iterdir())):
                raise UserError(
                    f"holds something that is not a {kind}'s results.",
                    where=str(folder),
                    remedy=f"Choose a new or empty folder, or that of the same {kind} to go on with it.",
                )
            folder.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b")
        except OSError as error:
            remedy = "Choose another folder."
            raise UserError(f"cannot be written: {error}.", where=str(folder), remedy=remedy) from error
        try:
            self._lock()
            self.rows = self._read()
        except BaseException:
            self._file.close()
            raise

    def _lock(self) -> None:
        if sys.platform == "win32":
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            remedy = "Wait for it, or choose another folder."
            message = f"another {self.kind} writes to this folder."
            raise UserError(message, where=str(self.folder), remedy=remedy) from None

    def _read(self) -> dict[str, Row]:
        self._file.seek(0)
        rows: dict[str, Row] = {}
        whole = 0
        for number, line in enumerate(self._file, 1):
            if not line.endswith(b"\n"):
                break
            try:
                row = json.loads(line)
                rows[row["key"]] = row
            except (ValueError, KeyError, TypeError):
                where = f"{self.folder / NAME}:{number}"
                raise UserError(f"is not a row of a {self.kind}.", where=where, remedy="Remove the line.") from None
            whole += len(line)
        self._file.truncate(whole)
        return rows

    def add(self, row: Row) -> None:
        """On disk when this returns."""
        self._file.write(json.dumps(row, allow_nan=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.rows[row["key"]] = row

    def close(self) -> None:
        self._file.close()
