"""Two runs held against each other, request by request where they served the same requests."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simulator.core.errors import UserError
from simulator.metrics.stats import Floats, Ints

if TYPE_CHECKING:
    import pandas as pd

BLOCKS = 40  # stretches of consecutive requests that are drawn together
RESAMPLES = 1000
FILES = ("requests.parquet", "summary.json", "provenance.json")
LATENCIES = ("ttft_s", "tpot_s", "e2e_s", "queue_time_s")
STATISTICS: Mapping[str, float | None] = {"mean": None, "p50": 50.0, "p99": 99.0}
# Numbers of a whole run: no interval from one run of each.
WHOLE = (
    ("throughput.request_per_s", True),
    ("throughput.output_tokens_per_s", True),
    ("goodput_request_per_s", True),
    ("engine.utilization", None),
    ("engine.kv_usage.mean", None),
    ("engine.prefix_hit_ratio_run", True),
    ("engine.preemptions_run", False),
    ("cost.usd_per_hour", False),
    ("cost.usd_per_million_output_tokens", False),
    ("energy.kwh", False),
)


@dataclass(frozen=True)
class Run:
    """A run's folder, read."""

    folder: Path
    requests: pd.DataFrame
    summary: dict[str, Any]
    provenance: dict[str, Any]


@dataclass(frozen=True)
class Difference:
    """One metric: ``b - a`` with its interval. ``low`` None: no interval from one run of each.

    verdict: ``B better``, ``B worse``, ``no difference seen`` (the interval holds 0), or empty.
    """

    metric: str
    a: float | None
    b: float | None
    difference: float | None
    low: float | None
    high: float | None
    relative: float | None
    verdict: str


@dataclass(frozen=True)
class Comparison:
    """``pairing``: how requests were matched, in words; ``paired`` False: the runs' requests are not the same."""

    a: str
    b: str
    paired: bool
    pairing: str
    compared_requests: int
    confidence: float
    notes: tuple[str, ...]
    rows: tuple[Difference, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def read_run(folder: Path | str) -> Run:
    """Raises UserError when the folder is not that of a run."""
    import pandas as pd

    folder = Path(folder)
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        what = "no such folder." if not folder.exists() else f"is not the folder of a run: it has no {missing[0]}."
        raise UserError(what, where=str(folder), remedy="Name a folder that `windtunnel run` has written.")
    try:
        summary, provenance = (json.loads((folder / name).read_text(encoding="utf-8")) for name in FILES[1:])
        return Run(folder, pd.read_parquet(folder / FILES[0]), summary, provenance)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot be read: {error}.", where=str(folder), remedy="Run the scenario again.") from error


def compare(a: Run, b: Run, *, confidence: float = 0.95) -> Comparison:
    """Differences ``b - a`` of latencies and SLO attainment with intervals, and of the whole runs' numbers without.

    Intervals are percentiles of 1,000 resamples of 40 blocks of consecutive requests (moving a block at a time keeps
    requests that queued behind each other together: Künsch 1989, DOI 10.1214/aos/1176347265). Where the runs served
    the same requests, a resample draws the same requests of both, so that what they share cancels out. They say how
    much another stretch of such a load would change the difference, not what another calibration would.
    """
    paired, pairing = _pairing(a, b)
    picked_a, picked_b = _measured(a), _measured(b)
    rng = np.random.default_rng(0)
    rows: list[Difference] = []
    for column in (*LATENCIES, "meets_slo"):
        if column in a.requests and column in b.requests:
            rows += _differences(a, b, column, picked_a, picked_b, paired=paired, rng=rng, confidence=confidence)
    rows += [_whole(a, b, name, more_is_better) for name, more_is_better in WHOLE]
    kept = tuple(row for row in rows if row.a is not None or row.b is not None)
    count = int((picked_a & picked_b).sum()) if paired else min(int(picked_a.sum()), int(picked_b.sum()))
    return Comparison(str(a.folder), str(b.folder), paired, pairing, count, confidence, tuple(_notes(a, b)), kept)


def _pairing(a: Run, b: Run) -> tuple[bool, str]:
    x, y = a.requests, b.requests
    if len(x) != len(y):
        return False, f"not paired: {len(x):,} and {len(y):,} requests"
    for name in ("prompt_tokens", "output_tokens"):
        if not np.array_equal(x[name].to_numpy(), y[name].to_numpy()):
            return False, f"not paired: the requests differ in {name}"
    if np.array_equal(x["arrival_s"].to_numpy(), y["arrival_s"].to_numpy(), equal_nan=True):
        return True, "paired: the same requests at the same times"
    return True, "paired: the same requests, arriving at other times"


def _measured(run: Run) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Requests that arrive inside the run's window."""
    arrival, window = run.requests["arrival_s"].to_numpy(dtype=float), run.summary["window"]
    with np.errstate(invalid="ignore"):
        return np.asarray((arrival >= window["start_s"]) & (arrival <= window["end_s"]))


def _values(run: Run, column: str, keep: np.ndarray[Any, np.dtype[np.bool_]]) -> Floats:
    """NaN where there is nothing to compare."""
    values = run.requests[column].astype("Float64").to_numpy(dtype=float, na_value=np.nan)
    return np.where(keep, values, np.nan)


def _differences(
    a: Run,
    b: Run,
    column: str,
    picked_a: np.ndarray[Any, np.dtype[np.bool_]],
    picked_b: np.ndarray[Any, np.dtype[np.bool_]],
    *,
    paired: bool,
    rng: np.random.Generator,
    confidence: float,
) -> list[Difference]:
    x, y = _values(a, column, picked_a), _values(b, column, picked_b)
    if paired:
        known = ~np.isnan(x) & ~np.isnan(y)
        x, y = x[known], y[known]
    else:
        x, y = x[~np.isnan(x)], y[~np.isnan(y)]
    statistics = {"mean": None} if column == "meets_slo" else STATISTICS
    if not len(x) or not len(y):
        return [Difference(_name(column, name), None, None, None, None, None, None, "") for name in statistics]
    draws_x = _draws(rng, len(x))
    draws_y = draws_x if paired else _draws(rng, len(y))
    out = []
    for name, percentile in statistics.items():
        left, right = _statistic(x, percentile), _statistic(y, percentile)
        spread = _resampled(y, percentile, draws_y) - _resampled(x, percentile, draws_x)
        tail = 50.0 * (1.0 - confidence)
        low, high = (float(edge) for edge in np.percentile(spread, [tail, 100.0 - tail]))
        better = column == "meets_slo"
        out.append(_row(_name(column, name), left, right, low, high, more_is_better=better))
    return out


def _name(column: str, statistic: str) -> str:
    return "share within SLO" if column == "meets_slo" else f"{column} {statistic}"


def _statistic(values: Floats, percentile: float | None) -> float:
    return float(values.mean() if percentile is None else np.percentile(values, percentile))


def _draws(rng: np.random.Generator, n: int) -> Ints:
    """How often each of a run's blocks is in each resample (resamples, blocks)."""
    blocks = min(BLOCKS, n)
    return np.asarray(rng.multinomial(blocks, np.full(blocks, 1.0 / blocks), size=RESAMPLES))


def _resampled(values: Floats, percentile: float | None, draws: Ints) -> Floats:
    """The statistic of every resample."""
    n, blocks = len(values), draws.shape[1]
    block = np.arange(n) * blocks // n
    if percentile is None:
        sums = np.bincount(block, weights=values, minlength=blocks)
        sizes = np.bincount(block, minlength=blocks)
        return np.asarray((draws @ sums) / (draws @ sizes))
    order = np.argsort(values, kind="stable")
    ordered, block = values[order], block[order]
    out = np.empty(len(draws))
    for index, counts in enumerate(draws):
        below = np.cumsum(counts[block])
        at = np.searchsorted(below, percentile / 100.0 * (below[-1] - 1), side="right")
        out[index] = ordered[min(int(at), n - 1)]
    return out


def _row(
    name: str, a: float | None, b: float | None, low: float | None, high: float | None, *, more_is_better: bool | None
) -> Difference:
    difference = None if a is None or b is None else b - a
    relative = None if difference is None or not a else difference / abs(a)
    verdict = ""
    if low is not None and high is not None and more_is_better is not None:
        if low <= 0.0 <= high:
            verdict = "no difference seen"
        else:
            verdict = "B better" if (low > 0.0) == more_is_better else "B worse"
    return Difference(name, a, b, difference, low, high, relative, verdict)


def _whole(a: Run, b: Run, name: str, more_is_better: bool | None) -> Difference:
    return _row(name, _at(a.summary, name), _at(b.summary, name), None, None, more_is_better=more_is_better)


def _at(summary: Mapping[str, Any], path: str) -> float | None:
    here: Any = summary
    for key in path.split("."):
        here = here.get(key) if isinstance(here, Mapping) else None
    return float(here) if isinstance(here, int | float) else None


def _notes(a: Run, b: Run) -> list[str]:
    notes = []
    for letter, run in (("A", a), ("B", b)):
        if run.summary["stability"]["verdict"] != "stable":
            notes.append(
                f"{letter} is {run.summary['stability']['verdict']}: its latencies depend on how long the run lasts."
            )
    said: list[tuple[str, Callable[[Run], Any]]] = [
        ("versions", lambda run: run.provenance.get("versions")),
        ("SLOs", lambda run: (run.summary.get("slo") or {}).get("limits_s")),
        ("calibrations", lambda run: (run.provenance.get("calibration") or {}).get("name")),
    ]
    notes += [f"The runs have different {what}." for what, of in said if of(a) != of(b)]
    return notes
