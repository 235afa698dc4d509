"""The folder of one run: tables, summary, report and the exports that were asked for."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from simulator.core.errors import UserError
from simulator.metrics.analysis import Analysis, analyse
from simulator.metrics.frames import requests_frame, steps_frame
from simulator.metrics.slo import Slo
from simulator.metrics.summary import Summary
from simulator.replica.records import SimulationRecords
from simulator.report.exports import to_aiperf, to_perfetto, to_vllm_bench
from simulator.report.files import atomic_json, atomic_path
from simulator.report.html import write_report
from traces.trace import Trace

EXPORTS = {"vllm-bench": "vllm_bench.json", "aiperf": "profile_export_aiperf.json", "perfetto": "trace.json"}


def write_results(
    directory: Path | str,
    *,
    title: str,
    summary: Summary,
    records: SimulationRecords,
    trace: Trace | None = None,
    scenario_yaml: str = "",
    provenance: Mapping[str, Any] | None = None,
    slo: Slo | None = None,
    exports: Collection[str] = (),
    tables: bool = True,
    model_id: str = "",
    max_num_seqs: int | None = None,
    max_num_batched_tokens: int | None = None,
    analysis: Analysis | None = None,
) -> list[Path]:
    """Write ``requests.parquet``, ``steps.parquet``, ``report.html``, the exports and ``summary.json``, in that order.

    Every file is written whole or not at all, and a ``summary.json`` of an earlier run is removed first: where there
    is one, the folder is complete.

    exports: names of ``EXPORTS``.

    Raises:
        UserError: an unknown export.
    """
    unknown = sorted(set(exports) - set(EXPORTS))
    if unknown:
        raise UserError(f"unknown export {unknown[0]!r}", remedy=f"Known: {', '.join(EXPORTS)}.")
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").unlink(missing_ok=True)
    found = analysis if analysis is not None else analyse(records, slo)
    written: list[Path] = []
    if tables:
        for name, frame in (
            ("requests.parquet", requests_frame(records, trace, slo, analysis=found)),
            ("steps.parquet", steps_frame(records)),
        ):
            with atomic_path(folder / name) as temporary:
                frame.to_parquet(temporary, index=False)
            written.append(folder / name)
    written.append(
        write_report(
            folder / "report.html",
            title=title,
            summary=summary,
            records=records,
            trace=trace,
            scenario_yaml=scenario_yaml,
            provenance=provenance,
            slo=slo,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            analysis=found,
        )
    )
    for name in exports:
        data = _export(name, summary, records, found, model_id=model_id, provenance=provenance)
        written.append(atomic_json(folder / EXPORTS[name], data))
    written.append(atomic_json(folder / "summary.json", summary))
    return written


def _export(
    name: str,
    summary: Summary,
    records: SimulationRecords,
    found: Analysis,
    *,
    model_id: str,
    provenance: Mapping[str, Any] | None,
) -> dict[str, Any]:
    if name == "vllm-bench":
        return to_vllm_bench(summary, records, model_id=model_id, analysis=found)
    if name == "aiperf":
        return to_aiperf(summary, records, config=provenance, analysis=found)
    return to_perfetto(records, analysis=found)
