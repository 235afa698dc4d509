"""The capacity-planning page: the answer first, then what it stands on. One file, no network, no scripts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from simulator import __version__
from simulator.planning import answer as words
from simulator.planning.capacity import t_half_width
from simulator.planning.outcome import Answer, Outcome
from simulator.planning.pictures import BEST
from simulator.planning.probe import Probe
from simulator.report import html
from simulator.report.svg import Limit, Series, line_chart, number
from simulator.report.words import accuracy

PLACES = ("best", "2nd", "3rd", "4th", "5th")
MAX_ROWS = 60  # designs shown; all are in designs.csv


def page(answer: Answer, folder: Path) -> str:
    """HTML text. folder: where it will lie, for the recommended scenario's paths."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    best = answer.best
    return environment.get_template("report.html").render(
        style=_style(environment),
        title=answer.file.plan.question or answer.file.name,
        version=__version__,
        sentence=words.sentence(answer),
        next_best=words.next_sentence(answer),
        tone="good" if best is not None else "bad",
        state="answer" if best is not None else "infeasible",
        binding=_binding(best),
        tiles=_tiles(answer),
        figures=[figure for figure in (_goodput(answer), _against_slo(answer)) if figure is not None],
        columns=_columns(answer),
        rows=_rows(answer),
        hidden=max(0, len(answer.outcomes) - MAX_ROWS),
        scenario="" if best is None else words.recommended(answer, folder),
        commands=words.serve_commands(answer),
        accuracy=[f"{gpu}: {accuracy({'calibration': said})}" for gpu, said in answer.calibration.items()],
        effort=_effort(words.effort(answer)),
        method=_method(answer),
    )


def _style(environment: Environment) -> Markup:
    """That of a run's report."""
    text = (Path(html.__file__).parent / "report.html").read_text(encoding="utf-8")
    css = text[text.index("<style>") + len("<style>") : text.index("</style>")]
    return Markup(environment.from_string(css).render())  # noqa: S704  the package's own file


def _binding(best: Outcome | None) -> dict[str, str] | None:
    if best is None or best.binding is None:
        return None
    probe = best.binding
    return {"name": probe.constraint, "why": probe.why, "evidence": probe.evidence, "next": probe.next_step}


def _tiles(answer: Answer) -> list[tuple[str, str, str]]:
    """(name, value, note)."""
    best, plan = answer.best, answer.file.plan
    done = words.effort(answer)
    looked = f"{done['designs_never_run']} ruled out without a run"
    tiles = [("Designs", str(done["designs"]), looked)]
    if best is not None and best.bill is not None:
        hours = best.probes[0].requests / best.probes[0].rate / 3600.0
        tiles = [
            ("Bill", f"${best.bill.usd_per_hour:,.2f}", f"per hour, on demand; {words.interval(answer, best)}"),
            ("In all", f"${best.bill.usd_per_hour * hours:,.0f}", f"for the {hours:,.0f} hours of the load"),
            ("Hardware", number(best.gpus_held or 0.0), "GPUs on average"),
            ("Limits used", f"{best.slack:.0%}", "the largest share of an SLO limit"),
            *_token_price(best),
            *tiles,
        ]
    if best is not None and best.sustained is not None:
        tiles = [
            ("Hardware", str(best.gpus), "GPUs" + ("" if best.copies == 1 else f" in {best.copies} copies")),
            ("Price", "–" if best.usd_per_hour is None else f"${best.usd_per_hour:,.2f}", "per hour, on demand"),
            ("Sustains", number(best.sustained.rate), f"requests/s; {words.interval(answer, best)}"),
            *([("Headroom", f"{best.sustained.rate / plan.rate - 1:.0%}", f"over {number(plan.rate)} requests/s")]
              if plan.rate else []),
            *_token_price(best),
            *tiles,
        ]  # fmt: skip
    return tiles


def _token_price(best: Outcome) -> list[tuple[str, str, str]]:
    met = [probe for probe in best.probes if probe.meets and probe.copies == best.copies and probe.fraction == 1.0]
    prices = [p.usd_per_million_output_tokens for p in met if p.usd_per_million_output_tokens is not None]
    if not prices:
        return []
    return [("Token price", f"${sum(prices) / len(prices):,.2f}", "per million output tokens at this load")]


def _goodput(answer: Answer) -> dict[str, Any] | None:
    best = answer.best
    if best is None or best.sustained is None or not answer.curves.get(best.design.index):
        return None
    series, most = [], 0.0
    for place, outcome in enumerate(answer.ranked[:2]):
        x, mean, _ = _mean_goodput(answer.curves.get(outcome.design.index, ()), answer.file.plan.confidence)
        if len(x):
            series.append(Series(PLACES[place], x, mean, colour=1 + place, area=place == 0))
            most = max(most, float(x[-1]))
    line = np.array([0.0, most])
    series.append(Series("offered", line, line, colour=4))
    asked = () if answer.file.plan.rate is None else (Limit(answer.file.plan.rate, "asked"),)
    at = float(np.interp(best.sustained.rate, series[0].x, series[0].y))
    svg = line_chart(
        series,
        x_label="offered requests/s",
        y_label="requests/s within every limit",
        summary="Goodput of the best two designs against the offered rate",
        x_range=(0.0, most),
        x_limits=asked,
        dots=((best.sustained.rate, at, f"sustains {number(best.sustained.rate)}"),),
    )
    _, _, half = _mean_goodput(answer.curves[best.design.index], answer.file.plan.confidence)
    wide = float(np.max(half)) if len(half) else 0.0
    caption = (
        f"Mean of {len(best.sustained.by_seed)} replications. The best design's knee lies at "
        f"{number(best.sustained.rate)} requests/s ({words.interval(answer, best)}): above it the SLO's percentile is "
        f"missed, and goodput leaves the offered line. A run lasts until its last answer, which keeps goodput a "
        f"little under that line. Widest interval of a point: ±{number(wide)} requests/s."
    )
    return {"title": "Goodput against rate", "svg": Markup(svg), "caption": caption}  # noqa: S704  svg.py escapes


def _mean_goodput(probes: Sequence[Probe], confidence: float) -> tuple[Any, Any, Any]:
    """(rates, mean goodput, half width of its interval), a point per rate."""
    rates = sorted({probe.rate for probe in probes})
    values = [[p.goodput_request_per_s or 0.0 for p in probes if p.rate == rate] for rate in rates]
    mean = np.array([float(np.mean(found)) for found in values])
    return np.array(rates), mean, np.array([t_half_width(found, confidence) for found in values])


def _against_slo(answer: Answer) -> dict[str, Any] | None:
    if not answer.slo_runs:
        return None
    plan = answer.file.plan
    series = []
    for place, outcome in enumerate(answer.ranked[:BEST]):
        points = {factor: value for index, factor, value in answer.slo_runs if index == outcome.design.index}
        points[1.0] = outcome.sustained.rate if plan.find == "highest-rate" and outcome.sustained else outcome.cost
        factors = sorted(points)
        y = np.array([np.nan if points[f] is None else points[f] for f in factors], dtype=float)
        if np.isfinite(y).any():
            series.append(Series(PLACES[place], np.array(factors), y, colour=1 + place))
    if not series:
        return None
    what = {"cheapest": "USD per hour", "fewest-gpus": "GPUs", "highest-rate": "requests/s sustained"}[plan.find]
    svg = line_chart(
        series,
        x_label="SLO limits, times those asked for",
        y_label=what,
        summary=f"{what} of the best designs as the limits of the SLO are multiplied",
        x_log=True,
        x_limits=(Limit(1.0, "asked"),),
    )
    caption = (
        "The best designs again, with every limit of the SLO multiplied; first replication. A curve that ends cannot "
        "meet the tighter limits within the budget."
    )
    title = "Rate against SLO" if plan.rate is None else "Cost against SLO"
    return {"title": title, "svg": Markup(svg), "caption": caption}  # noqa: S704  svg.py escapes


def _columns(answer: Answer) -> list[str]:
    fields = [path.rpartition(".")[2] for path in answer.file.plan.space]
    return ["", *fields, "copies", "GPUs", "$/h", "sustains", "limits used", "at most", "what binds, or why not"]


def _rows(answer: Answer) -> list[dict[str, Any]]:
    rows = []
    for place, outcome in enumerate(answer.outcomes[:MAX_ROWS], 1):
        ranked = outcome.state == "ranked"
        found = outcome.sustained
        cells = [str(place) if ranked else "–"]
        cells += [one.short for one in outcome.design.settings]
        cells += [
            str(outcome.copies) if ranked else "",
            number(outcome.gpus_held or outcome.gpus or 0) if ranked else "",
            f"{outcome.usd_per_hour:,.2f}" if ranked and outcome.usd_per_hour is not None else "",
            "" if found is None else f"{number(found.rate)} ({number(found.low)}–{number(found.high)})",
            f"{outcome.slack:.0%}" if ranked and answer.file.plan.find != "highest-rate" else "",
            "" if outcome.bound is None else number(outcome.bound),
        ]
        text = words.binding(outcome) if ranked else f"{outcome.state}: {outcome.reason}"
        rows.append({"cells": cells, "text": text.replace("dominated: dominated", "dominated"), "state": outcome.state})
    return rows


def _effort(done: dict[str, Any]) -> str:
    whole, early = done["cpu_s_per_whole_run"], done["cpu_s_per_stopped_run"]
    left = ", ".join(f"{count} by {name}" for name, count in sorted(done["left_out_by"].items(), key=lambda p: -p[1]))
    text = f"{done['designs']} designs; {done['designs_never_run']} were never run"
    text += f" (left out: {left})" if left else ""
    text += (
        f". {done['runs']} runs of up to {done['requests_per_run']:,} requests took {done['cpu_s']:,.0f} CPU seconds"
    )
    text += "" if whole is None else f", {number(whole)} s each"
    if early is not None:
        saved = done["cpu_s_saved_by_stopping"]
        text += f"; {done['runs_stopped_early']} were certain to miss and stopped after {number(early)} s"
        text += f", which saved {saved:,.0f} CPU seconds"
    return f"{text}."


def _method(answer: Answer) -> list[str]:
    plan = answer.file.plan
    best = answer.best
    out = [
        "All designs serve the same requests with the same seeds, stretched in time to each rate.",
        "A run meets the SLO when it is not overloaded and its percentiles are within their limits (hardly any lost).",
        f"Rates are found by bisection to {plan.tolerance:.0%} in each replication.",
        "Intervals are Student's t over the replications, plus half the last bracket of the search.",
        "They cover the draw of the load, not the error of the step times.",
    ]
    if best is not None and len({*_seeds(best)}) == 1:
        out.append("One replication only: the interval says nothing of another draw of the load.")
    if plan.top != "all":
        out.append(
            f"The first {plan.top} places are certain; designs that cannot reach them are left unfinished (dominated)."
        )
    return out


def _seeds(outcome: Outcome) -> list[int]:
    return [probe.seed for probe in outcome.probes if probe.meets]
