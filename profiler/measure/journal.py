"""The file of a campaign: JSON Lines, one line per result, on disk before the next point starts."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from profiler.measure.errors import CampaignError

SCHEMA = 1
IDENTITY = ("suite", "op", "dtype", "backend")


def point_id(point: Mapping[str, Any]) -> str:
    """Of a point's identity and shape: the same on every machine and in every run."""
    text = json.dumps({k: point[k] for k in sorted(point) if k != "id"}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def text_of(path: Path) -> str:
    """Of a plain file or of a gzipped one (``.gz``)."""
    raw = path.read_bytes()
    return (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8")


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Every whole line. A last line cut short by an interruption is left out; damage elsewhere raises CampaignError."""
    for number, line in enumerate(text_of(path).splitlines(keepends=True), 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            if not line.endswith("\n"):
                return
            raise CampaignError(f"not JSON: {error}", where=f"{path}:{number}") from None
        if not isinstance(row, dict) or "kind" not in row:
            raise CampaignError("no measurement: an object with a 'kind' is expected", where=f"{path}:{number}")
        if not line.endswith("\n"):
            return
        yield row


class Journal:
    """Append-only. Opening one that exists cuts a torn last line and tells which points it holds."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done: set[str] = set()
        self._at_work = path.with_name(
            path.name + ".at-work"
        )  # the point a process that died was measuring, and how often
        self.header: dict[str, Any] | None = None
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            self._resume()
        self._file = path.open("a", encoding="utf-8")

    def _resume(self) -> None:
        for row in read(self.path):
            if row["kind"] == "header" and self.header is None:
                self.header = row
            if row["kind"] in ("point", "skipped"):
                self.done.add(row["id"])
        raw = self.path.read_bytes()
        whole = raw.rfind(b"\n") + 1
        if whole < len(raw):
            with self.path.open("r+b") as file:
                file.truncate(whole)

    def write(self, kind: str, row: Mapping[str, Any]) -> None:
        """One line, on disk when this returns."""
        self._file.write(json.dumps({"kind": kind, **row}, separators=(",", ":"), allow_nan=False) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        if kind in ("point", "skipped"):
            self.done.add(row["id"])

    def deaths(self, point: str) -> int:
        """How often a process ended while it measured this point."""
        try:
            name, times = self._at_work.read_text(encoding="utf-8").split()
        except (OSError, ValueError):
            return 0
        return int(times) if name == point and times.isdecimal() else 0

    @contextlib.contextmanager
    def at_work_on(self, point: str) -> Iterator[None]:
        """Leaves a mark that outlives the process, taken away when the block ends in any way Python sees."""
        self._at_work.write_text(f"{point} {self.deaths(point) + 1}\n", encoding="utf-8")
        try:
            yield
        finally:
            self._at_work.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
