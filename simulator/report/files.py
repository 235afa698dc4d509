"""Write whole or not at all: an interrupted run leaves no half file that looks like a result."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from simulator.core.errors import UserError


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` on success, remove it on any exception.

    Missing parent folders are made. The temporary name ends like ``path``, for writers that look at the suffix.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{target.stem}-", suffix=f".tmp{target.suffix}", dir=target.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        _sync(temporary)
        temporary.chmod(0o666 & ~_umask())  # mkstemp makes private files; results are meant to be read
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def atomic_write(path: Path | str, data: str | bytes) -> Path:
    """Write text (UTF-8) or bytes to ``path`` atomically."""
    content = data.encode() if isinstance(data, str) else data
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    return Path(path)


def atomic_json(path: Path | str, value: Any) -> Path:
    """Write strict JSON (a NaN is a bug, and raises ValueError)."""
    return atomic_write(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


@contextmanager
def atomic_dir(path: Path | str, *, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary folder; on success it becomes ``path`` as a whole.

    replace: a folder that was there goes, whatever is in it; otherwise only an empty one may.

    Raises:
        UserError: ``path`` exists, is not an empty folder, and ``replace`` is not set.
    """
    target = Path(path)
    if target.exists() and not replace and not (target.is_dir() and not any(target.iterdir())):
        raise UserError(f"{target} exists and is not empty", remedy="Name another folder, or remove this one.")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", suffix=".tmp", dir=target.parent))
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        _swap(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _swap(temporary: Path, target: Path) -> None:
    if not target.exists():
        temporary.rename(target)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}-", suffix=".old", dir=target.parent))
    target.replace(old / "was")
    try:
        temporary.rename(target)
    except OSError:
        (old / "was").rename(target)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    with path.open("rb") as handle:
        os.fsync(handle.fileno())


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
