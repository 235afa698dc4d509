"""What notebooks call: ``simulator.run``, ``sweep`` and ``plan``, which return pandas tables.

>>> import simulator
>>> found = simulator.run("scenarios/quickstart.yaml", {"engine.max_num_seqs": 64})  # doctest: +SKIP
>>> found.requests.ttft_s.quantile(0.99)  # doctest: +SKIP
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simulator.metrics.frames import requests_frame, steps_frame
from simulator.planning import answer as words
from simulator.planning.on_ray import executor
from simulator.planning.optimisers.answer import Optimised
from simulator.planning.optimisers.file import OptimiserFile
from simulator.planning.optimisers.solve import optimise
from simulator.planning.outcome import Answer
from simulator.planning.question import read_question
from simulator.planning.report import page
from simulator.planning.runs import flat
from simulator.planning.solve import solve
from simulator.planning.sweep import Axis, frame
from simulator.planning.sweep import sweep as run_sweep
from simulator.scenario.config import Scenario
from simulator.scenario.load import load
from simulator.scenario.result import Result
from simulator.scenario.run import run as simulate

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Run:
    """One run. ``summary``: nested metrics; the whole ``result`` for those who want records."""

    result: Result

    @property
    def summary(self) -> dict[str, Any]:
        return self.result.summary

    @property
    def row(self) -> pd.Series[Any]:
        """The summary flat: ``latency.ttft_s.p99`` and so on."""
        import pandas as pd

        return pd.Series(flat(self.result.summary))

    @property
    def requests(self) -> pd.DataFrame:
        """One row per request; see ``requests_frame``."""
        found = self.result
        return requests_frame(found.records, found.trace, found.setup.slo, analysis=found.analysis)

    @property
    def steps(self) -> pd.DataFrame:
        """One row per span of equal steps; see ``steps_frame``."""
        return steps_frame(self.result.records)


@dataclass(frozen=True)
class Planned:
    """An answered plan: ``answer`` in one sentence, ``designs`` (the best first) and ``runs`` as tables."""

    found: Answer

    @property
    def answer(self) -> str:
        return words.sentence(self.found)

    @property
    def next_best(self) -> str:
        return words.next_sentence(self.found)

    @property
    def designs(self) -> pd.DataFrame:
        return words.frame(words.design_rows(self.found))

    @property
    def runs(self) -> pd.DataFrame:
        return words.frame(words.probe_rows(self.found))

    def write(self, folder: str | Path) -> dict[str, Path]:
        """The report, the tables and the recommended scenario. Raises UserError when the folder holds anything else."""
        words.check_folder(Path(folder))
        return words.write(self.found, Path(folder), page(self.found, Path(folder)))


def run(scenario: str | Path | Scenario, settings: Mapping[str, Any] | None = None, *, seed: int | None = None) -> Run:
    """Simulate a scenario (a file, with settings as in ``--set``, or a loaded one). Raises UserErrors."""
    if not isinstance(scenario, Scenario):
        scenario = load(scenario, [f"{path}={_text(value)}" for path, value in (settings or {}).items()])
    elif settings:
        raise TypeError("settings go with a scenario's file, not with a loaded scenario")
    return Run(simulate(scenario, seed))


def sweep(
    scenario: str | Path,
    fields: Mapping[str, Sequence[Any]],
    *,
    seeds: int = 1,
    jobs: int | None = None,
    on: str = "processes",
    folder: str | Path | None = None,
) -> pd.DataFrame:
    """Every combination of the fields' values; one row each. jobs: runs at the same time; None: one, or all that a Ray
    cluster has room for. on: ``processes`` of this machine, ``ray`` or ``ray:ADDRESS``. folder: keep (and reuse) the
    runs there. Raises UserErrors."""
    axes = [Axis(path, tuple(_text(value) for value in values)) for path, values in fields.items()]
    if folder is not None:
        return frame(run_sweep(scenario, axes, Path(folder), seeds=seeds, on=executor(on, jobs)))
    with tempfile.TemporaryDirectory() as temporary:
        return frame(run_sweep(scenario, axes, Path(temporary) / "sweep", seeds=seeds, on=executor(on, jobs)))


def plan(
    path: str | Path, *, jobs: int = 1, pictures: bool = False, folder: str | Path | None = None
) -> Planned | Optimised:
    """Answer a plan file; ``Optimised`` where it names an optimiser. folder: keep (and reuse) the runs there.

    pictures: also the runs behind the report's curves, which an optimiser's answer has none of. Raises UserErrors.
    """
    kept = None if folder is None else Path(folder)
    file = read_question(path)
    if isinstance(file, OptimiserFile):
        return optimise(file, jobs=jobs, folder=kept)
    return Planned(solve(file, jobs=jobs, pictures=pictures, folder=kept))


def _text(value: Any) -> str:
    """As ``--set`` wants it: text as it stands, anything else as JSON, which YAML reads."""
    return value if isinstance(value, str) else json.dumps(value)
