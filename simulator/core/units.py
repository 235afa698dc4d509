"""Quantities with units, as people write them: ``80GiB``, ``10 ms``, ``2.5k``.

Each function takes a number (already in the base unit) or a string and returns the base unit: bytes, seconds or a
plain number. A unit of the wrong kind, or an unknown one, is a UserError.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from simulator.core.errors import UserError
from simulator.core.names import suggestion

SECONDS: Mapping[str, float] = {
    "ns": 1e-9,
    "us": 1e-6,
    "µs": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "sec": 1.0,
    "min": 60.0,
    "h": 3600.0,
    "d": 86400.0,
}
BYTES: Mapping[str, float] = {
    "B": 1.0,
    **{f"{prefix}B": 1000.0**power for power, prefix in enumerate(("k", "M", "G", "T", "P"), start=1)},
    "KB": 1000.0,
    **{f"{prefix}iB": 1024.0**power for power, prefix in enumerate(("K", "M", "G", "T", "P"), start=1)},
}
COUNTS: Mapping[str, float] = {"k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12}

_QUANTITY = re.compile(r"\s*([+-]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*([A-Za-zµ]*)\s*")


def parse_seconds(value: float | str) -> float:
    """``10 ms`` -> 0.01; a bare number is seconds."""
    return _parse(value, SECONDS, "a duration", "10 ms")


def parse_bytes(value: float | str) -> float:
    """``80GiB`` -> 85899345920.0; a bare number is bytes. GB is decimal, GiB binary."""
    return _parse(value, BYTES, "a size", "80GiB")


def parse_count(value: float | str) -> float:
    """``2.5k`` -> 2500.0; a bare number is itself."""
    return _parse(value, COUNTS, "a number", "2.5k")


def _parse(value: float | str, units: Mapping[str, float], what: str, example: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise UserError(f"{value!r} is not {what}.", remedy=f"Write it like {example!r}.")
    if not isinstance(value, str):
        return _finite(float(value), value, what)
    match = _QUANTITY.fullmatch(value)
    if match is None:
        raise UserError(f"{value!r} is not {what}.", remedy=f"Write it like {example!r}.")
    number, unit = match.groups()
    if unit and unit not in units:
        remedy = suggestion(unit, units, noun="units")
        raise UserError(f"{value!r} is not {what}: unknown unit {unit!r}.", remedy=remedy)
    return _finite(float(number) * units.get(unit, 1.0), value, what)


def _finite(number: float, value: float | str, what: str) -> float:
    if not math.isfinite(number):
        raise UserError(f"{value!r} is not {what}: it must be finite.")
    return number


def format_seconds(seconds: float) -> str:
    """Three significant digits in the unit that suits: ``7.42 ms``, ``1.5 s``, ``12.3 min``."""
    if not math.isfinite(seconds):
        return "-"
    size = abs(seconds)
    for unit, scale, upto in (("µs", 1e-6, 1e-3), ("ms", 1e-3, 1.0), ("s", 1.0, 120.0), ("min", 60.0, 7200.0)):
        if size < upto * 0.9995:  # what rounds to 1,000 ms is shown as 1 s
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 3600:.3g} h"


def format_bytes(size: float) -> str:
    """Binary units, one decimal: ``79.6 GiB``, ``512 B``."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(size) < 1000 or unit == "TiB":
            break
        size /= 1024
    digits = 0 if unit == "B" or abs(size) >= 100 else 1
    return f"{size:.{digits}f} {unit}"


def format_count(number: float) -> str:
    """``2500`` -> ``2,500``; fractions keep three significant digits."""
    if not math.isfinite(number):
        return "-"
    if number == int(number) or abs(number) >= 1000:
        return f"{number:,.0f}"
    return f"{number:.3g}"
