"""Nearest valid name, for errors that tell the user what was meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, valid: Iterable[str]) -> str | None:
    """The valid name closest to ``name`` (case and ``-_. `` apart), or None when none is close."""
    by_key: dict[str, str] = {}
    for candidate in valid:
        by_key.setdefault(_key(candidate), candidate)
    wanted = _key(name)
    close = difflib.get_close_matches(wanted, by_key, n=1, cutoff=0.6)
    if close:
        return by_key[close[0]]
    holding = [key for key in by_key if len(wanted) >= 3 and wanted in key]
    return by_key[min(holding, key=len)] if holding else None


def suggestion(name: str, valid: Iterable[str], *, noun: str = "valid names") -> str:
    """A remedy: "Did you mean 'x'?", or the list of valid names when nothing is close."""
    names = sorted(valid)
    close = nearest(name, names)
    if close is not None:
        return f"Did you mean {close!r}?"
    if not names:
        return f"There are no {noun}."
    shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    return f"{noun[0].upper()}{noun[1:]}: {shown}."


def _key(name: str) -> str:
    return name.lower().translate(str.maketrans("", "", "-_. "))
