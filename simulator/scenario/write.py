"""The run's folder: everything a run leaves on disk, written whole or not at all."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import Any, Literal

from simulator.core.errors import UserError
from simulator.metrics.frames import requests_frame, steps_frame
from simulator.report import write_report
from simulator.report.exports import to_aiperf, to_perfetto, to_vllm_bench
from simulator.report.files import atomic_dir
from simulator.scenario.load import to_yaml, with_paths
from simulator.scenario.run import Result

MARKER = "provenance.json"  # every run folder holds one; only such a folder (or an empty one) is ever replaced


def check_folder(folder: Path) -> None:
    """Raises UserError when results cannot go there: it holds something else, or is not a folder."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError("is a file, not a folder for results.", where=str(folder), remedy="Choose another --out.")
    if any(folder.iterdir()) and not (folder / MARKER).exists():
        raise UserError(
            "holds files that are not a run's results; they would be replaced.",
            where=str(folder),
            remedy="Choose a new or empty folder, or one of an earlier run.",
        )


def write(
    result: Result,
    folder: str | Path,
    *,
    report: bool = True,
    perfetto: bool = False,
    steps: Literal["none", "spans", "all"] = "none",
) -> dict[str, Path]:
    """Write the run's folder, replacing that of an earlier run. Returns file name -> path.

    Raises UserError when the folder holds anything else, or cannot be written.
    """
    target = Path(folder)
    check_folder(target)
    scenario_yaml = scenario_text(result, target)
    try:
        with atomic_dir(target) as temporary:
            _write_tables(result, temporary, steps)
            _write_exports(result, temporary, perfetto=perfetto)
            (temporary / "scenario.yaml").write_text(scenario_yaml, encoding="utf-8")
            _json(temporary / MARKER, result.provenance)
            if report:
                _write_report(result, temporary / "report.html", scenario_yaml, target)
            names = sorted(path.name for path in temporary.iterdir())
    except OSError as error:
        raise UserError(f"cannot be written: {error}.", where=str(target), remedy="Choose another --out.") from error
    return {name: target / name for name in names}


def scenario_text(result: Result, folder: Path) -> str:
    """The scenario as run, its paths relative to the folder it is written to."""
    moved = with_paths(result.scenario, lambda path: os.path.relpath(path, folder))
    return to_yaml(moved)


def command(folder: Path) -> str:
    """What reproduces the run."""
    return f"windtunnel run {shlex.quote(str(folder / 'scenario.yaml'))}"


def _write_tables(result: Result, folder: Path, steps: str) -> None:
    frame = requests_frame(result.records, result.trace, result.setup.slo, analysis=result.analysis)
    frame.to_parquet(folder / "requests.parquet", index=False)
    if steps != "none":
        steps_frame(result.records, expand=steps == "all").to_parquet(folder / "steps.parquet", index=False)


def _write_exports(result: Result, folder: Path, *, perfetto: bool) -> None:
    _json(folder / "summary.json", result.summary)
    vllm = to_vllm_bench(result.summary, result.records, model_id=result.setup.model.name, analysis=result.analysis)
    _json(folder / "vllm_bench.json", vllm)
    _json(folder / "aiperf.json", to_aiperf(result.summary, result.records, analysis=result.analysis))
    if perfetto:
        events = to_perfetto(result.records, analysis=result.analysis)
        (folder / "trace.json").write_text(json.dumps(events, allow_nan=False), encoding="utf-8")


def _json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")
