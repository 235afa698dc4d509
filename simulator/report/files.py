"""Write whole or not at all: an interrupted run leaves no half file that looks like a result."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from simulator.core.errors import UserError

if sys.platform != "win32":
    import fcntl

_MARK = ".tmp"


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` on success, remove it on any exception.

    Missing parent folders are made. The temporary name ends like ``path``, for writers that look at the suffix. What a
    killed writer of the same path left behind goes too.
    """
    target = Path(path)
    _clean(target)
    with _workplace(target) as place:
        temporary = place / f"new{target.suffix}"
        temporary.touch()
        yield temporary
        _sync(temporary)
        temporary.replace(target)


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
    _clean(target)
    if target.exists() and not replace and not (target.is_dir() and not any(target.iterdir())):
        raise UserError(f"{target} exists and is not empty", remedy="Name another folder, or remove this one.")
    with _workplace(target) as place:
        temporary = place / "new"
        temporary.mkdir()
        yield temporary
        _swap(temporary, target, place / "was")


def _swap(temporary: Path, target: Path, was: Path) -> None:
    if target.exists():
        target.replace(was)
    try:
        temporary.rename(target)
    except BaseException:  # Ctrl-C too: ``was`` goes with the rest of the workplace
        if was.exists() and not target.exists():
            was.rename(target)
        raise


@contextmanager
def _workplace(target: Path) -> Iterator[Path]:
    """A hidden folder ``.NAME-xxxx.tmp`` beside the target, locked while in use and gone afterwards."""
    target.parent.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix=f".{target.name}-", suffix=_MARK, dir=target.parent))
    lock = _lock(place)
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)
        _unlock(lock)


def _clean(target: Path) -> None:
    """Remove the folders that killed writers of this target left; if one died in the middle of a swap, undo it.

    A writer that lives holds the lock of its folder, which the system releases however the writer ends. An empty folder
    may be one that is about to be locked, and is left alone.
    """
    if sys.platform == "win32":
        return  # no such locks: nothing tells the dead from the living
    for place in target.parent.glob(f".{_literal(target.name)}-????????{_MARK}"):
        if not place.is_dir() or not any(place.iterdir()):
            continue
        lock = _lock(place)
        if lock is None:
            continue
        was = place / "was"
        if was.exists() and not target.exists():
            with suppress(OSError):
                was.rename(target)
        shutil.rmtree(place, ignore_errors=True)
        _unlock(lock)


def _literal(name: str) -> str:
    """The name without the characters that mean something to glob."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def _lock(folder: Path) -> int | None:
    """Descriptor of the locked folder; None when somebody else has it, it is gone, or locks are not to be had."""
    if sys.platform == "win32":
        return None
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _unlock(descriptor: int | None) -> None:
    if descriptor is not None:
        os.close(descriptor)


def _sync(path: Path) -> None:
    with path.open("rb") as handle:
        os.fsync(handle.fileno())
