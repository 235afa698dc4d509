"""The scoreboard: one row per system, as table, CSV, JSON and one self-contained page."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from simulator import __version__
from simulator.core.errors import UserError
from simulator.report.files import atomic_json, atomic_write
from simulator.survey.evaluate import Found, Outcome
from simulator.survey.load import SystemFile

COLUMNS = ("name", "system", "group", "claim", "ours", "band", "verdict", "why", "not_modelled", "setting", "quality",
           "calibration", "paper", "seconds")  # fmt: skip

Row = dict[str, Any]


def row(file: SystemFile, outcome: Outcome) -> Row:
    """One system: flat text for tables, ``checks`` and ``measured`` in full."""
    system = file.system
    missed = [check for check in outcome.checks if not check.within]
    why = "; ".join(f"{check.name}: {check.why}" if check.why else check.name for check in missed)
    return {
        "name": file.name,
        "system": system.system,
        "group": system.group,
        "claim": system.claim,
        "ours": "; ".join(f"{check.name} {shown(check)}" for check in outcome.checks),
        "band": "; ".join(f"{check.name} {band(check)}" for check in outcome.checks),
        "verdict": outcome.verdict,
        "why": system.not_reproduced or why,
        "not_modelled": system.not_modelled,
        "setting": system.setting,
        "quality": system.quality,
        "calibration": "; ".join(f"{gpu}: {source}" for gpu, source in outcome.calibration.items()),
        "paper": system.paper,
        "seconds": round(outcome.seconds, 1),
        "checks": [_check(check) for check in outcome.checks],
        "measured": outcome.measured,
    }


def shown(check: Found) -> str:
    """What was found: a number, or yes and no for a statement."""
    if check.value is None:
        return "not measured"
    return ("yes" if check.value else "no") if check.statement else f"{check.value:.3g}"


def band(check: Found) -> str:
    """The bounds in words."""
    if check.statement:
        return "yes (exact)" if check.exact else "yes"
    if check.low is None:
        return f"at most {check.high:g}"
    if check.high is None:
        return f"at least {check.low:g}"
    return f"{check.low:g} to {check.high:g}"


def _check(check: Found) -> Row:
    return {"name": check.name, "ours": shown(check), "band": band(check), "within": check.within, "value": check.value,
            "low": check.low, "high": check.high, "exact": check.exact, "why": check.why}  # fmt: skip


def rows(files: Sequence[SystemFile], outcomes: Mapping[str, Outcome]) -> list[Row]:
    """In the order of groups, as the survey has them, then of names."""
    chosen = sorted(files, key=lambda file: (_group_order(file.system.group), file.name))
    return [row(file, outcomes[file.name]) for file in chosen]


def _group_order(group: str) -> tuple[int, str]:
    number = group.removeprefix("G").partition(" ")[0]
    return (int(number) if number.isdecimal() else 99, group)


def counts(table: Sequence[Row]) -> dict[str, int]:
    """Systems by verdict."""
    return {
        name: sum(row["verdict"] == name for row in table) for name in ("within band", "miss", "not reproduced here")
    }


def write(table: Sequence[Row], folder: Path) -> dict[str, Path]:
    """scoreboard.csv, .json and .html. Same rows: same bytes."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    data = {"version": __version__, "counts": counts(table), "systems": list(table)}
    return {
        "csv": atomic_write(folder / "scoreboard.csv", text.getvalue()),
        "json": atomic_json(folder / "scoreboard.json", data),
        "html": atomic_write(folder / "scoreboard.html", page(table)),
    }


BEGIN, END = "<!-- scoreboard: begin (generated) -->", "<!-- scoreboard: end -->"


def markdown(table: Sequence[Row]) -> str:
    """The rows as a table of a document."""
    found = counts(table)
    lines = [", ".join(f"{number} {verdict}" for verdict, number in found.items()) + ".", "",
             "| system | claim | ours (band) | verdict |", "|---|---|---|---|"]  # fmt: skip
    for row in table:
        checks = "<br>".join(
            f"{check['name']}: {check['ours']} ({check['band']})"
            + ("" if check["within"] else f" **miss**: {check['why']}")
            for check in row["checks"]
        )
        cells = (row["system"], row["claim"], checks or row["why"], row["verdict"])
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def write_document(table: Sequence[Row], path: Path) -> None:
    """Replace what stands between the markers of a document. Raises UserError where there are none."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    if BEGIN not in text or END not in text:
        raise UserError("has no place for the scoreboard.", where=str(path), remedy=f"Add the lines {BEGIN} and {END}.")
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    atomic_write(path, f"{before}{BEGIN}\n\n{markdown(table)}\n\n{END}{after}")


def page(table: Sequence[Row]) -> str:
    """The page: no scripts, no network."""
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True,
                              lstrip_blocks=True)  # fmt: skip
    environment.filters["pretty"] = lambda value: json.dumps(value, indent=1)
    template = environment.get_template("scoreboard.html")
    return template.render(rows=table, counts=counts(table), version=__version__)
