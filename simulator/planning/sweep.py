"""Every combination of fields, here or on a Ray cluster; what has been run once is not run again."""

from __future__ import annotations

import hashlib
import itertools
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simulator import __version__
from simulator.core.errors import ScenarioError, UserError
from simulator.cost.calibration import describe
from simulator.planning.code import code_digest
from simulator.planning.pool import Eta, Executor, Processes
from simulator.planning.runs import WORKSHOP, Row, flat, run_key
from simulator.planning.store import Store
from simulator.report.files import atomic_json, atomic_path
from simulator.scenario.config import Scenario
from simulator.scenario.load import anchored, digest
from simulator.scenario.run import run
from simulator.scenario.source import Source, override, read_source

if TYPE_CHECKING:
    import pandas as pd

OPEN, CLOSE, QUOTES = "[{(", "]})", "\"'"


@dataclass(frozen=True)
class Axis:
    """A field and its values, as text that ``--set`` understands."""

    path: str
    choices: tuple[str, ...]


@dataclass(frozen=True)
class Task:
    """One run to make."""

    index: int
    source: Source
    settings: tuple[tuple[str, str], ...]
    seed: int | None  # None: the scenario's


@dataclass(frozen=True)
class Status:
    """How far a sweep is. ``reused``: runs found in the store. ``eta_s`` None: nothing to tell it from yet."""

    finished: int
    total: int
    reused: int
    invalid: int
    elapsed_s: float
    eta_s: float | None


Progress = Callable[[Status], None]


def parse_axis(text: str) -> Axis:
    """``a.b=1,2,4``; commas inside brackets and quotes do not separate. Raises ScenarioError."""
    path, equals, values = text.partition("=")
    found = tuple(split_values(values))
    if not equals or not path.strip() or not all(found):
        remedy = "Example: --set engine.max_num_seqs=64,128,256"
        raise ScenarioError("is not of the form path=value,value.", where=f"--set {text}", remedy=remedy)
    return Axis(path.strip(), found)


def split_values(text: str) -> Iterator[str]:
    """The parts of ``1,[2,3],"4,5"``."""
    depth, quote, begin = 0, "", 0
    for position, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in QUOTES:
            quote = letter
        elif letter in OPEN:
            depth += 1
        elif letter in CLOSE:
            depth -= 1
        elif letter == "," and not depth:
            yield text[begin:position].strip()
            begin = position + 1
    yield text[begin:].strip()


def tasks_of(source: Source, axes: Sequence[Axis], seeds: int) -> list[Task]:
    """All combinations, the last axis fastest, then the seeds: the scenario's and those that follow it.

    Raises ScenarioError when an axis is given twice.
    """
    paths = [axis.path for axis in axes]
    for path in paths:
        if paths.count(path) > 1:
            remedy = "Give all its values in one --set."
            raise ScenarioError("is swept twice.", where=f"--set {path}", remedy=remedy)
    first = source.data.get("seed", 0)
    start = first if isinstance(first, int) and not isinstance(first, bool) else 0
    found: list[Task] = []
    for values in itertools.product(*(axis.choices for axis in axes)):
        settings = tuple(zip(paths, values, strict=True))
        for seed in range(seeds):
            found.append(Task(len(found), source, settings, None if seeds == 1 else start + seed))
    return found


def scenario_of(task: Task) -> Scenario:
    """The scenario of a task. Raises ScenarioError."""
    settings = [f"{path}={value}" for path, value in task.settings]
    seed = [] if task.seed is None else [f"seed={task.seed}"]
    return anchored(override(task.source, [*settings, *seed]))


def run_task(task: Task) -> Row:
    """One run as a row; a combination that cannot be built or run is a row that says why."""
    row: Row = {"status": "invalid", "settings": dict(task.settings), "seed": task.seed}
    begin = time.perf_counter()
    try:
        scenario = scenario_of(task)
        row |= {"seed": scenario.seed, "scenario_sha256": digest(scenario)}
        groups = WORKSHOP.groups(scenario)
        result = run(scenario, groups=groups, trace=WORKSHOP.trace(scenario))
    except UserError as error:
        return row | {"reason": str(error), "run_wall_s": round(time.perf_counter() - begin, 3)}
    calibrations = {group.gpu.name: describe(group.gpu, group.calibration, group.notes) for group in groups}
    return row | {
        "status": "ok",
        "reason": None,
        "calibration": {name: said.get("name") or said.get("source") for name, said in calibrations.items()},
        "summary": flat(result.summary),
        "run_wall_s": round(time.perf_counter() - begin, 3),
    }


def key_of(task: Task) -> str:
    """Of the scenario where there is one, else of what was asked for."""
    try:
        return run_key(scenario_of(task))
    except UserError as error:
        asked = f"{task.source.data!r}/{task.settings!r}/{task.seed}/{error}/{code_digest()}"
        return hashlib.sha256(asked.encode()).hexdigest()


def run_keyed(asked: tuple[str, Task]) -> Row:
    """A run where it is made: another process, another machine. Raises UserError where its key is not what was asked
    for: a file it reads, or the code, differ there, and the row would be of something else."""
    key, task = asked
    if key_of(task) != key:
        raise UserError(
            f"a run on {platform.node()} would not be the one asked for: a file that the scenario reads (its trace, a "
            "config.json), or the code, is not there or has changed.",
            remedy="Let them stay as they are while a sweep runs, at the same absolute path on every machine.",
        )
    return run_task(task)


def sweep(
    scenario: str | Path,
    axes: Sequence[Axis],
    folder: Path,
    *,
    seeds: int = 1,
    on: Executor | None = None,
    progress: Progress | None = None,
) -> list[Row]:
    """Run what the folder does not hold yet; returns the rows of all combinations, in their order.

    A row is on disk as soon as its run has finished. Interrupted at any point, the same call goes on where it was.
    on: where runs are made, None: in this process.
    Raises ScenarioError when the scenario cannot be read, UserError when the folder cannot be used.
    """
    source = read_source(scenario)
    source = replace(source, folder=source.folder.resolve())
    tasks = tasks_of(source, axes, seeds)
    keys = [key_of(task) for task in tasks]
    store = Store(folder)
    try:
        atomic_json(folder / "sweep.json", _asked(source, axes, seeds))
        left = {key: task for key, task in zip(keys, tasks, strict=True) if key not in store.rows}
        eta, reused = Eta(len(left)), len(set(keys)) - len(left)

        def tick() -> None:
            if progress is not None:
                invalid = sum(store.rows[key]["status"] != "ok" for key in keys if key in store.rows)
                done = reused + eta.done
                progress(Status(done, len(set(keys)), reused, invalid, eta.elapsed_s, eta.left_s))

        for (key, _), row in (on or Processes(1)).spread(run_keyed, left.items(), tick=tick):
            store.add({"key": key, **row, "version": __version__, "code_sha256": code_digest()})
            eta.done += 1
            tick()
        return [store.rows[key] | {"settings": dict(task.settings)} for key, task in zip(keys, tasks, strict=True)]
    finally:
        known = [
            store.rows[key] | {"settings": dict(task.settings)}
            for key, task in zip(keys, tasks, strict=True)
            if key in store.rows
        ]
        if known:
            write_tables(known, folder)
        store.close()


def _asked(source: Source, axes: Sequence[Axis], seeds: int) -> dict[str, Any]:
    return {
        "scenario": source.name,
        "body": source.data,
        "axes": {axis.path: list(axis.choices) for axis in axes},
        "seeds": seeds,
        "version": __version__,
    }


def frame(rows: Sequence[Row]) -> pd.DataFrame:
    """One line per run: the swept fields, status and reason, the summary's numbers, then where it all comes from."""
    import pandas as pd

    return pd.DataFrame([_line(row) for row in rows])


def _line(row: Row) -> Row:
    settings: Mapping[str, str] = row["settings"]
    line: Row = {**settings, "seed": row["seed"], "status": row["status"], "reason": row["reason"]}
    line |= row.get("summary", {})
    calibration: Mapping[str, str] = row.get("calibration", {})
    origin = {"key": row["key"], "scenario_sha256": row.get("scenario_sha256"), "version": row["version"]}
    said = "; ".join(f"{gpu}: {source}" for gpu, source in calibration.items())
    origin |= {"code_sha256": row["code_sha256"], "calibration": said, "run_wall_s": row["run_wall_s"]}
    return line | origin


def write_tables(rows: Sequence[Row], folder: Path) -> None:
    """``results.csv`` and ``results.parquet`` of the rows."""
    table = frame(rows)
    with atomic_path(folder / "results.csv") as path:
        table.to_csv(path, index=False)
    with atomic_path(folder / "results.parquet") as path:
        table.convert_dtypes().to_parquet(path, index=False)
