"""Summary statistics of plain, repeat-counted and time-weighted samples.

Percentiles are linear interpolation between order statistics (``numpy.percentile``'s default, definition 7 of
Hyndman and Fan 1996, DOI 10.2307/2684934), so they agree with vLLM's and AIPerf's benchmark tools.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Stats = dict[str, float | int | None]

PERCENTILES = (50.0, 90.0, 95.0, 99.0)
_NAMES = [f"p{p:g}" for p in PERCENTILES]
_NOTHING: Stats = {"count": 0, **dict.fromkeys(["mean", "std", "min", *_NAMES, "max"])}
_SORT_ALL_BELOW = 1 << 16
_KEY_SHIFT = 44  # float64 bits dropped from a bucket key: 256 buckets per octave


def grouped(keys: Ints, groups: int) -> list[Ints]:
    """Positions of each key 0 .. groups - 1 in ``keys``, ascending; others are left out. One sort at most."""
    if len(keys) and (keys[1:] >= keys[:-1]).all():
        order, ordered = np.arange(len(keys)), keys
    else:
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
    bounds = np.searchsorted(ordered, np.arange(groups + 1))
    return [order[begin:end] for begin, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)]


def describe(values: Floats) -> Stats:
    """``{count, mean, std, min, p50, p90, p95, p99, max}`` of ``values`` (n,), NaN left out; None where empty."""
    kept = values[~np.isnan(values)]
    if not len(kept):
        return dict(_NOTHING)
    quantiles = np.percentile(kept, PERCENTILES)
    moments = {"count": len(kept), "mean": float(kept.mean()), "std": float(kept.std())}
    return {**moments, "min": float(kept.min()), **_named(quantiles), "max": float(kept.max())}


def describe_counted(values: Floats, counts: Ints) -> Stats:
    """As ``describe`` of ``numpy.repeat(values, counts)``, without building it. Values must be >= 0."""
    total = int(counts.sum())
    if not total:
        return dict(_NOTHING)
    present = counts > 0
    mean = float(values @ counts) / total
    variance = float(((values - mean) ** 2) @ counts) / total
    low, high = values[present].min(), values[present].max()
    quantiles = counted_percentiles(values, counts, PERCENTILES)
    moments = {"count": total, "mean": mean, "std": variance**0.5}
    return {**moments, "min": float(low), **_named(quantiles), "max": float(high)}


def counted_percentiles(values: Floats, counts: Ints, percentiles: Sequence[float]) -> Floats:
    """Exact percentiles of ``numpy.repeat(values, counts)``; values (n,) >= 0, counts (n,) >= 0, NaN if empty.

    Large inputs are not sorted: a counted histogram over the leading bits of the floats, which order like the
    floats themselves, finds the buckets that hold the wanted ranks, and only those are sorted.
    """
    total = int(counts.sum())
    if total == 0:
        return np.full(len(percentiles), np.nan)
    position = np.asarray(percentiles, dtype=np.float64) / 100.0 * (total - 1)
    lower = np.floor(position).astype(np.int64)
    upper = np.minimum(lower + 1, total - 1)
    ranks = np.unique(np.concatenate([lower, upper]))
    found = _order_statistics(values, counts, ranks)
    low = found[np.searchsorted(ranks, lower)]
    high = found[np.searchsorted(ranks, upper)]
    return np.asarray(low + (high - low) * (position - lower))


def _order_statistics(values: Floats, counts: Ints, ranks: Ints) -> Floats:
    """The ``ranks``-th smallest (from 0, ascending) of ``numpy.repeat(values, counts)``."""
    if len(values) <= _SORT_ALL_BELOW:
        return _sorted_lookup(values, counts, ranks)
    keys = (values + 0.0).view(np.int64) >> _KEY_SHIFT  # + 0.0 turns -0.0 into 0.0
    keys -= keys.min()
    histogram = np.bincount(keys, weights=counts).astype(np.int64)
    below = np.concatenate([[0], np.cumsum(histogram)])
    bucket = np.searchsorted(below, ranks, side="right") - 1
    wanted = np.zeros(len(histogram), dtype=bool)
    wanted[bucket] = True
    inside = wanted[keys]
    skipped = np.concatenate([[0], np.cumsum(np.where(wanted, 0, histogram))])
    return _sorted_lookup(values[inside], counts[inside], ranks - skipped[bucket])


def _sorted_lookup(values: Floats, counts: Ints, ranks: Ints) -> Floats:
    order = np.argsort(values)
    cumulative = np.cumsum(counts[order])
    return np.asarray(values[order][np.searchsorted(cumulative, ranks, side="right")])


def describe_over_time(values: Floats, seconds: Floats) -> Stats:
    """Time-weighted ``{mean, min, p50, p90, p95, p99, max}``: value ``values[i]`` held for ``seconds[i]``.

    The p-th percentile is the smallest value at or below which at least p % of the time was spent.
    """
    held = seconds > 0
    values, seconds = values[held], seconds[held]
    if not len(values):
        return dict.fromkeys(["mean", "min", *_NAMES, "max"])
    order = np.argsort(values)
    elapsed = np.cumsum(seconds[order])
    at = np.searchsorted(elapsed, np.asarray(PERCENTILES) / 100.0 * elapsed[-1])
    quantiles = values[order][np.minimum(at, len(values) - 1)]
    mean = float(values @ seconds) / float(elapsed[-1])
    return {"mean": mean, "min": float(values.min()), **_named(quantiles), "max": float(values.max())}


def _named(quantiles: Floats) -> dict[str, float]:
    return dict(zip(_NAMES, quantiles.tolist(), strict=True))
