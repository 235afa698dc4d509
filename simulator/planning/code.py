"""Which code made a result."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

import simulator
import traces


@cache
def code_digest() -> str:
    """SHA-256 of the version and of every file of the package: results of other code are not shown as this one's."""
    digest = hashlib.sha256(simulator.__version__.encode())
    for package in (simulator, traces):
        root = Path(str(package.__file__)).parent
        for path in sorted(root.rglob("*")):
            if path.suffix in {".py", ".yaml", ".json", ".gz", ".csv"} and path.is_file():
                digest.update(str(path.relative_to(root)).encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()
