"""Many systems in parallel processes. Finished ones are kept on disk, so that a killed survey goes on where it was."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from simulator.core.errors import UserError
from simulator.planning.code import code_digest
from simulator.report.files import atomic_json
from simulator.survey.evaluate import Outcome, evaluate
from simulator.survey.load import SystemFile, read_system

SCHEMA = 1
RESULTS = "systems"  # folder of kept results, one file per system
MARKER = "survey.json"


@dataclass(frozen=True)
class Status:
    """How far a survey is. ``eta_s`` None: nothing to tell it from yet."""

    finished: int
    total: int
    running: tuple[str, ...]
    elapsed_s: float
    eta_s: float | None


Progress = Callable[[Status], None]


def key(file: SystemFile) -> str:
    """What a kept result is of: the system's file and the code."""
    return hashlib.sha256(f"{SCHEMA}/{file.sha256}/{code_digest()}".encode()).hexdigest()


def kept(file: SystemFile, folder: Path) -> Outcome | None:
    """The result of an earlier run of the same file by the same code; None: there is none."""
    row = _stored(file, folder)
    return outcome_of(row["outcome"]) if row is not None and row.get("key") == key(file) else None


def _stored(file: SystemFile, folder: Path) -> dict[str, Any] | None:
    try:
        row = json.loads((folder / RESULTS / f"{file.name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return row if isinstance(row, dict) and row.get("schema") == SCHEMA else None


def outcome_of(row: dict[str, Any]) -> Outcome:
    """An ``Outcome`` from its JSON."""
    from simulator.survey.evaluate import Found

    return Outcome(**{**row, "checks": tuple(Found(**check) for check in row["checks"])})


def run_survey(
    files: Sequence[SystemFile], folder: Path, *, jobs: int, fresh: bool = False, progress: Progress | None = None
) -> dict[str, Outcome]:
    """Every system's outcome by name, in the order of ``files``.

    jobs: processes at a time. fresh: run again what is kept. Raises the UserError of the first system whose file is
    wrong; others that have finished by then are kept. An interruption loses only the systems that were running.
    """
    done = {file.name: found for file in files if not fresh and (found := kept(file, folder)) is not None}
    done |= {file.name: evaluate(file) for file in files if file.system.not_reproduced is not None}  # nothing runs
    todo = [file for file in files if file.name not in done]
    (folder / RESULTS).mkdir(parents=True, exist_ok=True)
    pool = _Pool(todo, folder, jobs, {file.name: _expected(file, folder) for file in todo})
    begin = time.perf_counter()
    try:
        done.update(pool.results(lambda: _report(pool, len(done), len(files), begin, progress)))
    finally:
        pool.stop()
    return {file.name: done[file.name] for file in files}


def _expected(file: SystemFile, folder: Path) -> float | None:
    """Seconds that the system took the last time, whatever code and file it was."""
    row = _stored(file, folder)
    return float(row["outcome"]["seconds"]) if row is not None else None


def _report(pool: _Pool, finished: int, total: int, begin: float, progress: Progress | None) -> None:
    if progress is not None:
        elapsed = time.perf_counter() - begin
        progress(Status(finished, total, tuple(pool.running), elapsed, pool.eta_s()))


class _Pool:
    """One process per system, ``jobs`` at a time, the longest first: a crash of one is that one's alone."""

    def __init__(self, files: Sequence[SystemFile], folder: Path, jobs: int, expected: dict[str, float | None]) -> None:
        self.folder, self.jobs, self.expected = folder, max(1, jobs), expected
        self.waiting = sorted(files, key=lambda file: -(expected[file.name] or 0.0))
        self.running: dict[str, tuple[SystemFile, SpawnProcess, float]] = {}
        self.took: list[float] = []

    def results(self, tick: Callable[[], None]) -> Iterator[tuple[str, Outcome]]:
        while self.waiting or self.running:
            while self.waiting and len(self.running) < self.jobs:
                self._start(self.waiting.pop(0))
            tick()
            wait([process.sentinel for _, process, _ in self.running.values()], timeout=0.5)
            for name, (file, process, started) in list(self.running.items()):
                if process.is_alive():
                    continue
                process.join()
                del self.running[name]
                self.took.append(time.perf_counter() - started)
                yield name, self._collect(file, process.exitcode)

    def _start(self, file: SystemFile) -> None:
        context = multiprocessing.get_context("spawn")
        process = context.Process(target=work, args=(str(file.path), str(self.folder), key(file)), daemon=True)
        process.start()
        self.running[file.name] = (file, process, time.perf_counter())

    def _collect(self, file: SystemFile, code: int | None) -> Outcome:
        outcome = kept(file, self.folder)
        if outcome is not None:
            return outcome
        trouble = self.folder / RESULTS / f"{file.name}.error.json"
        if trouble.exists():
            row = json.loads(trouble.read_text(encoding="utf-8"))
            trouble.unlink()
            raise UserError(row["message"], where=row["where"], remedy=row["remedy"])
        raise UserError(
            f"its process ended with code {code} and no result.",
            where=str(file.path),
            remedy="Run it again by its name; with --jobs 1 if memory was short.",
        )

    def eta_s(self) -> float | None:
        """Seconds left, if systems take as long as the last time, and unknown ones as long as the others."""
        known = [seconds for seconds in self.expected.values() if seconds] + self.took
        if not known:
            return None
        usual = sum(known) / len(known)
        now = time.perf_counter()
        left = sum(self.expected[file.name] or usual for file in self.waiting)
        left += sum(
            max((self.expected[name] or usual) - (now - started), 0.0) for name, (_, _, started) in self.running.items()
        )
        return left / self.jobs

    def stop(self) -> None:
        for _, process, _ in self.running.values():
            process.terminate()
        for _, process, _ in self.running.values():
            process.join()


def work(path: str, folder: str, known_as: str) -> None:
    """One system in a process of its own: evaluates it and leaves the result, or its error, in the folder.

    known_as: the key of file and code as its parent knows them; code may be edited meanwhile.
    """
    file = read_system(Path(path))
    target = Path(folder) / RESULTS / f"{file.name}.json"
    try:
        outcome = evaluate(file)
    except UserError as error:
        said = {"message": error.message, "where": error.where, "remedy": error.remedy}
        atomic_json(target.with_suffix(".error.json"), said)
        return
    except KeyboardInterrupt:
        return
    except BaseException:
        traceback.print_exc()
        raise
    atomic_json(target, {"schema": SCHEMA, "key": known_as, "system": file.name, "outcome": asdict(outcome)})
