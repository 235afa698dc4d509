"""Finds out what a file or folder is, from what it holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from profiler.validate import closed_loop, kernels, phases, rates, requests, steps
from profiler.validate.reading import MeasurementError, header_of
from profiler.validate.residuals import Comparison, Metric, Residual
from profiler.validate.served import Options

Compare = Callable[[Path, Options], Comparison]
Summary = Callable[[Sequence[Residual]], list[Metric]]


@dataclass(frozen=True, slots=True)
class Measured:
    """A file or folder and how to compare it."""

    kind: str
    path: Path
    compare: Compare


# Columns by which a kind of CSV file is told: few, so that a file that lacks another one is told what it lacks.
TABLES: dict[str, tuple[frozenset[str], Compare]] = {
    closed_loop.KIND: (frozenset({"silicon_ttft_ms", "conc"}), closed_loop.compare),
    phases.KIND: (frozenset({"phase_type", "t_start"}), phases.compare),
    steps.KIND: (frozenset({"step.id", "batch.num_decode_reqs"}), steps.compare),
    rates.KIND: (frozenset({"rate_rps", "tpot_mean_ms"}), rates.compare),
}
SUMMARIES: dict[str, Summary] = {m.KIND: m.summary for m in (closed_loop, phases, steps, rates, requests, kernels)}
KINDS = tuple(SUMMARIES)


def discover(path: Path) -> list[Measured]:
    """The measurements at ``path``: one file or folder of a kind, or all below a folder, in order of their names.

    Raises MeasurementError when there is none.
    """
    if not path.exists():
        raise MeasurementError("no such file or folder.", where=str(path))
    found = list(_walk(path)) if path.is_dir() else [m for m in [_file(path)] if m]
    if not found:
        raise MeasurementError(
            "holds no measurement of a known kind.", where=str(path), remedy=f"Known kinds: {', '.join(KINDS)}."
        )
    return found


def _walk(folder: Path) -> Iterator[Measured]:
    if (folder / "requests.jsonl").is_file():
        yield Measured(requests.KIND, folder, requests.compare)
        return
    if kernels.is_kernels(folder):
        yield Measured(kernels.KIND, folder, kernels.compare)
        return
    for child in sorted(folder.iterdir()):
        if child.is_dir():
            yield from _walk(child)
        elif (measured := _file(child)) is not None:
            yield measured


def _file(path: Path) -> Measured | None:
    if kernels.is_measured(path):
        return Measured(kernels.KIND, path, kernels.compare)
    if not path.name.endswith((".csv", ".csv.gz")):
        return None
    header = frozenset(header_of(path))
    for kind, (columns, compare) in TABLES.items():
        if columns <= header:
            return Measured(kind, path, compare)
    return None
