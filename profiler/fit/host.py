"""Rows of a table that time the host instead of the kernel.

A benchmark that launches a kernel outside of a CUDA graph waits for whichever is slower, the GPU or the CPU that feeds
it. Where every small shape of a table takes the same tens or hundreds of microseconds, that is the CPU: what engines
hide in graphs, and what says nothing of the kernel but that it took no longer. Such rows are told by a twin: another
format whose kernels do the same work and were timed without the wait. Its time, at the ratio that the two formats keep
where the GPU was the slower one, stands in (``crossval``).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from profiler.fit.operators import Recipe
from simulator.cost.correction import Floats

IDLE = 0.25  # a twin that takes less than this share of a row's time has shown who was waited for
USUAL = 0.2  # share of such rows that makes them the rule of a kernel, not a hiccup
MARGIN = 1.5  # the same wait varies by so much from row to row
NEIGHBOURS, HICCUP = 5, 1.2


def with_twin(rows: pd.DataFrame, frame: pd.DataFrame, twin: str | None, shape: Sequence[str]) -> pd.DataFrame:
    """``rows`` of one format with ``twin``, the seconds of the twin's row of the same shape, and ``host``: whether the
    row timed the host. Rows that did and have no twin are left out.

    frame: the whole table; shape: columns that name a point of it.
    """
    if twin is None or not (frame["dtype"] == twin).any():
        return rows
    others = frame.loc[(frame["dtype"] == twin).to_numpy()]
    usual = others.assign(twin=usual_seconds(others, shape)).groupby(list(shape), as_index=False)["twin"].median()
    rows = rows.merge(usual, on=list(shape), how="left")
    rows["host"] = timed_the_host(rows, shape)
    return rows.loc[~rows["host"] | rows["twin"].notna()].reset_index(drop=True)


def timed_the_host(rows: pd.DataFrame, shape: Sequence[str]) -> np.ndarray:
    """Whether each row's kernel waits as all small ones of its kind do, or, where these do, hiccups: its twin is
    idle too, and it takes ``HICCUP`` times what is usual around it.
    """
    seconds, idle = rows["seconds"].to_numpy(float), (rows["twin"] < IDLE * rows["seconds"]).to_numpy()
    host = np.zeros(len(rows), dtype=bool)
    for kernel in rows["kernel"].unique():
        own = (rows["kernel"] == kernel).to_numpy()
        if idle[own].mean() >= USUAL:
            host[own] = seconds[own] < MARGIN * np.median(seconds[own & idle])
    if host.any():
        host |= idle & (seconds > HICCUP * usual_seconds(rows, shape, ends=True))
    return host


def usual_seconds(rows: pd.DataFrame, shape: Sequence[str], *, ends: bool = False) -> Floats:
    """Each row's seconds, or the median of ``NEIGHBOURS`` along the first column of ``shape`` where that is less: what
    it would take without a hiccup of the machine. The first and the last row of a shape keep their own but with
    ``ends``: a single token often runs a kernel of its own.
    """
    order = rows.sort_values([*shape[1:], shape[0]])
    along = order.groupby(list(shape[1:]), sort=False)["seconds"]
    median = along.rolling(NEIGHBOURS, center=True, min_periods=1).median().to_numpy()
    inner = ((along.cumcount() > 0) & (along.cumcount(ascending=False) > 0)).to_numpy()
    own = order["seconds"].to_numpy(float)
    found = pd.Series(np.where(inner | ends, np.minimum(own, median), own), index=order.index)
    return np.asarray(found.reindex(rows.index), dtype=float)


def gpu_seconds(rows: pd.DataFrame, recipe: Recipe) -> Floats:
    """About what the GPU takes: as is usual around a row, or as its twin does where it timed the host."""
    seconds = usual_seconds(rows, recipe.columns) if recipe.dense else rows["seconds"].to_numpy(float)
    return np.where(rows["host"], rows["twin"], seconds) if "host" in rows else seconds
