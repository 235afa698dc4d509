"""One self-contained ``report.html``: no network, no scripts, readable on screen, on paper and in the dark."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from simulator.metrics.analysis import Analysis, analyse
from simulator.metrics.energy import EnergyPlan
from simulator.metrics.slo import Slo
from simulator.metrics.summary import Summary
from simulator.replica.records import SimulationRecords
from simulator.report import words
from simulator.report.diagnosis import diagnose
from simulator.report.figures import Figure, breakdown_figure, distribution_figures, time_figures
from simulator.report.files import atomic_write
from simulator.report.fleet import cluster_tables, fleet_figures, tier_figure, tier_rows
from simulator.report.glossary import GLOSSARY
from simulator.report.page import pages
from simulator.report.power import power_figures
from traces.trace import Trace


def write_report(
    path: Path | str,
    *,
    title: str,
    summary: Summary,
    records: SimulationRecords,
    trace: Trace | None = None,
    scenario_yaml: str = "",
    provenance: Mapping[str, Any] | None = None,
    slo: Slo | None = None,
    max_num_seqs: int | None = None,
    max_num_batched_tokens: int | None = None,
    analysis: Analysis | None = None,
    energy: EnergyPlan | None = None,
) -> Path:
    """Render and write atomically; returns the path.

    summary: ``summarize(records, trace, slo, window)`` of the same run and SLO.
    provenance: shown as it stands, nested dicts flattened; ``command`` (how to reproduce the run) gets its own box,
        ``calibration`` should carry its stated error.
    max_num_seqs, max_num_batched_tokens: engine limits, to name the binding constraint.
    energy: what a cluster's GPUs draw, for its power over time.
    """
    found = analysis if analysis is not None else analyse(records, slo)
    page = _template().render(
        title=title,
        summary=summary,
        tone=words.tone(summary),
        state=words.state(summary),
        verdict=words.verdict_sentence(summary),
        diagnosis=diagnose(summary, records, max_num_seqs=max_num_seqs, max_num_batched_tokens=max_num_batched_tokens),
        tiles=words.tiles(summary),
        slo_rows=words.slo_rows(summary),
        latency_rows=words.latency_rows(summary["latency"]),
        breakdown_rows=words.breakdown_rows(summary),
        engine_rows=words.engine_rows(summary),
        tier_rows=tier_rows(summary),
        tier_figure=tier_figure(summary),
        cluster=None if summary["cluster"] is None else cluster_tables(summary["cluster"]),
        class_tables=words.class_tables(summary),
        accuracy=words.accuracy(dict(provenance or {})),
        trace_notes=[trace.source, *trace.notes] if trace is not None and "trace" not in (provenance or {}) else [],
        provenance=words.provenance_rows(dict(provenance or {})),
        command=(provenance or {}).get("command"),
        scenario_yaml=scenario_yaml,
        glossary=GLOSSARY,
        **_figures(summary, records, found, slo, energy),
    )
    return atomic_write(path, page)


def _figures(
    summary: Summary, records: SimulationRecords, found: Analysis, slo: Slo | None, energy: EnergyPlan | None
) -> dict[str, Any]:
    window, arrival = summary["window"], records.requests.arrival
    chosen = (arrival >= window["start_s"]) & (arrival <= window["end_s"])
    overloaded = summary["stability"]["verdict"] == "overloaded"
    breakdown = breakdown_figure(summary)
    return {
        "overloaded": overloaded,
        "distributions": [] if overloaded else distribution_figures(records, found, chosen, slo),
        "over_time": time_figures(records, found, slo),
        "fleet_figures": [*fleet_figures(records), *power_figures(summary, records, energy)],
        "breakdown": [] if breakdown is None else [breakdown],
    }


def _template() -> Any:
    environment = pages(Path(__file__).parent)
    environment.filters["seconds"] = words.seconds
    environment.filters["picture"] = _picture
    return environment.get_template("report.html")


def _picture(figure: Figure) -> Markup:
    svg = Markup(figure.svg)  # noqa: S704  svg.py escapes every label
    return Markup("<figure><h3>{}</h3>{}<figcaption>{}</figcaption></figure>").format(figure.title, svg, figure.caption)
