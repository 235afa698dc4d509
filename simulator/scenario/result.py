"""What a run gives back, and the folder it is written to: whole or not at all."""

from __future__ import annotations

import json
import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from simulator.cluster.plan import ClusterPlan
from simulator.core.errors import UserError
from simulator.metrics.analysis import Analysis
from simulator.metrics.frames import requests_frame, steps_frame
from simulator.metrics.summary import Summary
from simulator.replica.records import SimulationRecords
from simulator.report.exports import to_aiperf, to_perfetto, to_vllm_bench
from simulator.report.files import atomic_dir
from simulator.report.html import write_report
from simulator.scenario.config import Scenario
from simulator.scenario.energy import energy_plan
from simulator.scenario.load import to_yaml, with_paths
from simulator.scenario.setup import Setup
from traces.trace import Trace

MARKER = "provenance.json"  # every run's folder holds one; only such a folder, or an empty one, is ever replaced


@dataclass(frozen=True)
class Result:
    """One run. ``summary`` is JSON-able; ``provenance`` holds what does not belong to the result itself."""

    scenario: Scenario  # as it was run: seed and engine defaults filled in
    groups: tuple[Setup, ...]  # of equal replicas
    cluster: ClusterPlan
    trace: Trace
    records: SimulationRecords
    analysis: Analysis
    summary: Summary
    provenance: dict[str, Any]

    @property
    def setup(self) -> Setup:
        """The first group's; of a run without groups the only one."""
        return self.groups[0]

    def write(
        self,
        folder: str | Path,
        *,
        report: bool | None = None,
        perfetto: bool | None = None,
        steps: Literal["none", "spans", "all"] | None = None,
    ) -> dict[str, Path]:
        """Write the run's folder, replacing that of an earlier run. Returns file name -> path.

        None: as the scenario's ``output`` says. Raises UserError when the folder holds anything else, or cannot be
        written; an interruption leaves what was there before.
        """
        target, output = Path(folder), self.scenario.output
        check_folder(target)
        try:
            with atomic_dir(target, replace=True) as temporary:
                self._write_tables(temporary, output.steps if steps is None else steps)
                self._write_exports(temporary, perfetto=output.perfetto if perfetto is None else perfetto)
                self._write_provenance(temporary, target)
                if output.report if report is None else report:
                    self._write_report(temporary / "report.html", target)
                names = sorted(path.name for path in temporary.iterdir())
        except OSError as error:
            remedy = "Choose another folder."
            raise UserError(f"cannot be written: {error}.", where=str(target), remedy=remedy) from error
        return {name: target / name for name in names}

    def scenario_yaml(self, folder: Path) -> str:
        """The scenario as run, its paths relative to the folder it is written to."""
        return to_yaml(with_paths(self.scenario, lambda _, path: os.path.relpath(path, folder)))

    def _write_tables(self, folder: Path, steps: str) -> None:
        requests = requests_frame(self.records, self.trace, self.setup.slo, analysis=self.analysis)
        requests.to_parquet(folder / "requests.parquet", index=False)
        if steps != "none":
            steps_frame(self.records, expand=steps == "all").to_parquet(folder / "steps.parquet", index=False)

    def _write_exports(self, folder: Path, *, perfetto: bool) -> None:
        loop = self.scenario.workload.closed_loop
        vllm = to_vllm_bench(
            self.summary,
            self.records,
            model_id=self.setup.model.name,
            label=self.scenario.name,
            max_concurrency=loop.users if loop else None,
            analysis=self.analysis,
        )
        _json(folder / "summary.json", self.summary)
        _json(folder / "vllm_bench.json", vllm)
        _json(folder / "aiperf.json", to_aiperf(self.summary, self.records, analysis=self.analysis))
        if perfetto:
            events = to_perfetto(self.records, analysis=self.analysis)
            (folder / "trace.json").write_text(json.dumps(events, allow_nan=False), encoding="utf-8")

    def _write_provenance(self, folder: Path, target: Path) -> None:
        (folder / "scenario.yaml").write_text(self.scenario_yaml(target), encoding="utf-8")
        _json(folder / MARKER, self.provenance)

    def _write_report(self, path: Path, target: Path) -> None:
        reproduce = f"windtunnel run {shlex.quote(str(target / 'scenario.yaml'))}"
        write_report(
            path,
            title=str(self.scenario.name),
            summary=self.summary,
            records=self.records,
            trace=self.trace,
            scenario_yaml=self.scenario_yaml(target),
            provenance={"command": reproduce, **self.provenance},
            slo=self.setup.slo,
            max_num_seqs=self.setup.args.max_num_seqs,
            max_num_batched_tokens=self.setup.args.max_num_batched_tokens,
            analysis=self.analysis,
            energy=energy_plan(self.scenario, self.groups),
        )


def check_folder(folder: Path) -> None:
    """Raises UserError when results cannot go there: it holds something else, or is not a folder."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError("is a file, not a folder for results.", where=str(folder), remedy="Choose another folder.")
    if any(folder.iterdir()) and not (folder / MARKER).exists():
        raise UserError(
            "holds files that are not a run's results; they would be replaced.",
            where=str(folder),
            remedy="Choose a new or empty folder, or one of an earlier run.",
        )


def _json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")
