"""The capacity-planning page: the answer first, then what it stands on. One file, no network, no scripts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from simulator import __version__
from simulator.planning import answer as words
from simulator.planning import charts, costs
from simulator.planning.outcome import Answer, Outcome
from simulator.report.page import pages
from simulator.report.svg import number
from simulator.report.words import accuracy

RANKED_BY = {"rate": "requests/s", "rate-per-usd": "requests/s per $/h", "rate-per-gpu": "requests/s per GPU"}
HOURS_OF_MONTH = 730.0
MAX_ROWS = 60  # designs shown; all are in designs.csv


def page(answer: Answer, folder: Path) -> str:
    """HTML text. folder: where it will lie, for the recommended scenario's paths."""
    environment = pages(Path(__file__).parent)
    best = answer.best
    return environment.get_template("report.html").render(
        title=answer.file.plan.question or answer.file.name,
        version=__version__,
        sentence=words.sentence(answer),
        next_best=words.next_sentence(answer),
        tone="good" if best is not None else "bad",
        state="answer" if best is not None else "infeasible",
        binding=_binding(best),
        tiles=_tiles(answer),
        bills=[] if best is None else _bills(answer, best),
        paid="" if best is None else _paid(answer, best),
        figures=charts.figures(answer),
        columns=_columns(answer),
        rows=_rows(answer),
        hidden=max(0, len(answer.outcomes) - MAX_ROWS),
        scenario="" if best is None else words.recommended(answer, folder),
        commands=words.serve_commands(answer),
        accuracy=[f"{gpu}: {accuracy({'calibration': said})}" for gpu, said in answer.calibration.items()],
        effort=_effort(words.effort(answer)),
        method=_method(answer),
    )


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
            *_token_price(answer, best),
            *tiles,
        ]
    if best is not None and best.sustained is not None:
        tiles = [
            ("Hardware", str(best.gpus), "GPUs" + ("" if best.copies == 1 else f" in {best.copies} copies")),
            ("Price", "–" if best.usd_per_hour is None else f"${best.usd_per_hour:,.2f}", "per hour, on demand"),
            ("Sustains", number(best.sustained.rate), f"requests/s; {words.interval(answer, best)}"),
            *([("Headroom", f"{best.sustained.rate / plan.rate - 1:.0%}", f"over {number(plan.rate)} requests/s")]
              if plan.rate else []),
            *_token_price(answer, best),
            *tiles,
        ]  # fmt: skip
    return tiles


def _bills(answer: Answer, best: Outcome) -> list[tuple[str, ...]]:
    """(way to pay, USD per hour, per month, per million output tokens, per million of all tokens)."""
    return [
        (one.name, *(f"${value:,.2f}" for value in (one.usd_per_hour, one.per_output, one.per_total)),
         f"${one.usd_per_hour * HOURS_OF_MONTH:,.0f}")
        for one in costs.bills(answer, best)
    ]  # fmt: skip


def _paid(answer: Answer, best: Outcome) -> str:
    """What the table of bills is of, and the energy."""
    load = costs.load_of(answer, best)
    hours = "around the clock" if best.bill is None else "on average over the load"
    text = (
        f"At {words.per_second(load.rate)} of {load.prompt_tokens:,.0f} prompt and {load.output_tokens:,.0f} output "
        f"tokens, {hours}."
    )
    if answer.file.plan.api_price is not None:
        cached = answer.file.plan.api_price.cached_input_usd_per_mtok
        text += "" if cached is None else f" The API bills {load.hits:.0%} of the prompts' tokens as cache hits."
        text += f" {words.against_api(answer)}"
    used = costs.energy(answer, best)
    if used is not None:
        text += (
            f" The GPUs draw {used.mean_w / 1000.0:,.2f} kW on average: {used.mean_w * 0.024:,.0f} kWh a day, "
            f"{number(used.kwh_per_million_output)} kWh per million output tokens."
        )
        if used.grams_per_kwh is not None and used.kg_co2_per_day is not None:
            mean, low, high = used.grams_per_kwh
            hours = "" if low == high else f" (hours from {low:,.0f} to {high:,.0f})"
            text += f" That is {number(used.kg_co2_per_day)} kg of CO2 a day, at {mean:,.0f} g/kWh{hours}."
    return text


def _token_price(answer: Answer, best: Outcome) -> list[tuple[str, str, str]]:
    bills = costs.bills(answer, best) if best.usd_per_hour else []
    return [("Token price", f"${bill.per_output:,.2f}", "per million output tokens at this load") for bill in bills[:1]]


def _columns(answer: Answer) -> list[str]:
    fields = [path.rpartition(".")[2] for path in answer.file.plan.space]
    plan = answer.file.plan
    last = RANKED_BY[plan.by] if plan.find == "highest-rate" else "limits used"
    return ["", *fields, "copies", "GPUs", "$/h", "sustains", last, "each at most", "what binds, or why not"]


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
            number(outcome.value) if outcome.value is not None else f"{outcome.slack:.0%}" if ranked else "",
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
    best, bill = answer.best, plan.find == "lowest-bill"
    out = [
        "All designs serve the same requests with the same seeds, "
        + ("at the load's own times." if bill else "stretched in time to each rate."),
        "A run meets the SLO when it is not overloaded and its percentiles are within their limits (hardly any lost).",
        "Bills are of the GPUs held, cold starts and drains included; intervals are Student's t over the replications."
        if bill
        else f"Rates are bisected to {plan.tolerance:.0%} in each replication; intervals are Student's t over "
        "the replications, plus half the last bracket of the search.",
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
