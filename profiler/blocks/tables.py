"""Batches of LLMServingSim's profiler in which attention is not of one kind: chunks beside decodes, uneven decodes.

``attention.csv``: one chunk (``prefill_chunk`` new tokens after ``kv_prefill``) beside ``n_decode`` decodes of
``kv_decode`` tokens each. ``skew.csv``: ``nb`` decodes of ``kv_big`` tokens, which come first, and ``n - nb`` of
``kvs``; ``t_skew_us`` is that batch, ``t_mean_us`` the same number of decodes of the mean length, both of three kernels
together, as comparison with ``attention.csv`` shows. ``pc`` = 0: decodes alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from simulator.core.errors import CalibrationError

KERNELS = 3  # per time in skew.csv


@dataclass(frozen=True, slots=True)
class Mixed:
    """Equal decodes beside one chunk; seconds of one layer."""

    decodes: int
    context: int  # tokens, of all decodes, their new ones included
    chunk: int
    chunk_s: float  # the same chunk alone
    alone_s: float  # the same decodes alone
    seconds: float


@dataclass(frozen=True, slots=True)
class Uneven:
    """Decodes alone, ``long`` of them with ``longest`` keys and first in the batch, the others with ``short``."""

    decodes: int
    long: int
    longest: int
    short: int
    mean: int
    equal_s: float  # as many of the mean length
    slower: float  # than those


def mixed_batches(folder: Path) -> list[Mixed]:
    """Raises CalibrationError."""
    raw = _read(folder, "attention.csv.gz", ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "time_us"))
    keys = raw[["prefill_chunk", "kv_prefill", "n_decode", "kv_decode"]].to_numpy(dtype=int).tolist()
    seconds = (raw["time_us"].to_numpy(dtype=float) * 1e-6).tolist()
    found = {(a, b, c, d): s for (a, b, c, d), s in zip(keys, seconds, strict=True)}
    rows = []
    for (chunk, computed, decodes, each), s in found.items():
        chunk_s, alone_s = found.get((chunk, computed, 0, 0)), found.get((0, 0, decodes, each))
        if chunk and decodes and chunk_s is not None and alone_s is not None:
            rows.append(Mixed(decodes, decodes * (each + 1), chunk, chunk_s, alone_s, s))
    return rows


def uneven_batches(folder: Path) -> list[Uneven]:
    """Those of decodes alone. Raises CalibrationError."""
    columns = ("n", "nb", "pc", "kvs", "kv_big", "kv_mean", "t_mean_us", "t_skew_us")
    raw = _read(folder, "skew.csv.gz", columns)
    rows = raw.loc[raw["pc"] == 0]
    integers = rows[["n", "nb", "kv_big", "kvs", "kv_mean"]].to_numpy(dtype=int).tolist()
    times = rows[["t_mean_us", "t_skew_us"]].to_numpy(dtype=float).tolist()
    return [
        Uneven(n, nb, big + 1, short + 1, mean + 1, equal * 1e-6 / KERNELS, uneven / equal)
        for (n, nb, big, short, mean), (equal, uneven) in zip(integers, times, strict=True)
    ]


def _read(folder: Path, name: str, columns: tuple[str, ...]) -> pd.DataFrame:
    path = folder / name
    try:
        raw = pd.read_csv(path)
    except (OSError, pd.errors.ParserError, UnicodeDecodeError) as error:
        raise CalibrationError(f"Not a readable CSV file: {error}.", where=str(path)) from error
    missing = [c for c in columns if c not in raw]
    if missing:
        raise CalibrationError(f"Column {missing[0]!r} is missing.", where=str(path))
    return raw
