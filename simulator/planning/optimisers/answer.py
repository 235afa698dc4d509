"""An optimiser's answer: its candidates, what simulations say of the best of them, and the folder both go to."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from simulator import __version__
from simulator.core.registry import first_line
from simulator.cost.calibration import describe
from simulator.planning.answer import MARKER
from simulator.planning.code import code_digest
from simulator.planning.command import commands
from simulator.planning.load import short
from simulator.planning.optimisers.optimiser import Candidate, Optimiser, Simulated
from simulator.report.files import atomic_json, atomic_path, atomic_write
from simulator.report.page import pages
from simulator.report.svg import number
from simulator.report.words import accuracy
from simulator.scenario.build import build_groups
from simulator.scenario.load import to_yaml, with_paths
from simulator.scenario.workload import TraceFile, Transform, Workload

if TYPE_CHECKING:
    import pandas as pd

REQUESTS = "requests.parquet"
MAX_ROWS = 60  # candidates shown; all are in designs.csv


@dataclass(frozen=True)
class Optimised:
    """``candidates``: the optimiser's choice first; ``found``: what simulations say, by place."""

    name: str
    question: str
    optimiser: Optimiser[Any]
    optimiser_name: str
    candidates: tuple[Candidate, ...]
    found: Mapping[int, Simulated]

    @property
    def best(self) -> Candidate | None:
        """The optimiser's choice; None: it found none."""
        first = self.candidates[0] if self.candidates else None
        return first if first is not None and first.design is not None else None

    @property
    def belief(self) -> float | None:
        """What the optimiser believes of its choice."""
        return None if self.best is None else self.best.belief

    @property
    def simulated(self) -> float | None:
        """What a simulation says of it."""
        found = self.found.get(0)
        return None if found is None or found.reason else found.value

    @property
    def gap(self) -> float | None:
        """Simulated over believed, less one."""
        return gap(self.candidates[0], self.found[0]) if self.simulated is not None else None

    @property
    def favourite(self) -> int | None:
        """The place of the candidate that does best of those that were simulated; None: none does what was asked."""
        known = [at for at, one in self.found.items() if not one.reason and self._worth(at) > -math.inf]
        return max(known, key=lambda at: (self._worth(at), -at), default=None)

    def _worth(self, at: int) -> float:
        return self.optimiser.worth(self.candidates[at], self.found[at])

    @property
    def answer(self) -> str:
        """In one sentence."""
        if self.best is None:
            return self._none()
        said = f"{self.optimiser_name} proposes {self.best.label} and believes in {self._amount(self.best.belief)}"
        found = self.found.get(0)
        if found is None:
            return f"{said}; it was not simulated."
        if found.reason:
            return f"{said}, but it cannot be simulated: {found.reason}"
        return f"{said}; simulated it is {number(found.value)} ({self.gap:+.0%}, {_interval(found)})."

    def _none(self) -> str:
        if not self.candidates:
            return f"Infeasible: {self.optimiser_name} finds no candidate."
        reasons = [one.reason for one in self.candidates]
        most = max(reasons, key=reasons.count)
        return f"Infeasible: none of the {len(reasons)} candidates can be; {reasons.count(most)} because: {most}"

    @property
    def second(self) -> str:
        """Whether another candidate does better when it is simulated; '' where there is nothing to say."""
        at, simulated = self.favourite, [one for one in self.found.values() if not one.reason]
        if at is None and simulated:
            return f"None of the {len(simulated)} that were simulated does what is asked: {self.optimiser.goal}."
        if at is None or len(simulated) < 2:
            return ""
        if at == 0:
            return f"Of the {len(simulated)} candidates that were simulated it is the best by {self.optimiser.goal}."
        one = self.candidates[at]
        return (
            f"Of the {len(simulated)} candidates that were simulated another is better by {self.optimiser.goal}: "
            f"{one.label}, {self._amount(self.found[at].value)} (believed: {number(one.belief)})."
        )

    def _amount(self, value: float) -> str:
        return f"{number(value)} {self.optimiser.quantity}"

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One row per candidate, the optimiser's choice first."""
        rows = []
        for at, one in enumerate(self.candidates):
            found = self.found.get(at)
            known = found is not None and not found.reason
            row: dict[str, Any] = {"rank": at + 1 if one.design is not None else None, "design": one.label}
            row |= {name: _plain(value) for name, value in one.columns.items()}
            row["belief"] = one.belief if one.design is not None else None
            row |= {name: getattr(found, name) if known else None for name in ("value", "low", "high")}
            row["simulated"] = row.pop("value")
            row["gap"] = gap(one, found) if found is not None and known else None
            row |= {} if found is None else {name: _plain(value) for name, value in found.columns.items()}
            rows.append(row | {"reason": one.reason or (found.reason if found is not None else "") or None})
        ours = _names(one.columns for one in self.candidates)
        more = _names(self.found[at].columns for at in sorted(self.found))
        order = ("rank", "design", *ours, "belief", "simulated", "low", "high", "gap", *more, "reason")
        return [{name: row.get(name) for name in order} for row in rows]

    @property
    def designs(self) -> pd.DataFrame:
        """``rows`` as a table."""
        import pandas as pd

        return pd.DataFrame(self.rows)

    def as_json(self) -> dict[str, Any]:
        """Everything of the answer that a program may want."""
        return {
            "schema": "windtunnel.optimised/1",
            "name": self.name,
            "optimiser": self.optimiser_name,
            "quantity": self.optimiser.quantity,
            "answer": self.answer,
            "simulations": self.second,
            "feasible": self.best is not None,
            "belief": self.belief,
            "simulated": self.simulated,
            "gap": self.gap,
            "designs": [{name: _finite(value) for name, value in row.items()} for row in self.rows],
            "serve": [command for _, command in self.commands()],
            "calibration": self.calibration(),
            "version": __version__,
            "code_sha256": code_digest(),
        }

    def commands(self) -> list[tuple[str, str]]:
        """How to start the design."""
        if self.best is None or self.best.design is None:
            return []
        scenario = self.best.design.scenario
        places: dict[str, list[str]] = {}
        for what, command in commands(scenario, build_groups(scenario)):
            places.setdefault(command, []).append(what)
        return [("; ".join(what), command) for command, what in places.items()]

    def calibration(self) -> dict[str, Any]:
        """By GPU: where step times come from."""
        if self.best is None or self.best.design is None:
            return {}
        groups = build_groups(self.best.design.scenario)
        return {group.gpu.name: describe(group.gpu, group.calibration, group.notes) for group in groups}

    def scenario(self, folder: Path) -> str:
        """The proposed design at the rate it is meant for, its paths relative to ``folder``."""
        assert self.best is not None and self.best.design is not None
        design = self.best.design
        scenario = with_paths(design.scenario, lambda _, path: os.path.relpath(path, folder))
        if design.requests is not None:
            scenario = replace(scenario, workload=Workload(trace=TraceFile(path=REQUESTS)))
        if design.rate is not None:
            more = (*scenario.workload.transforms, Transform(to_rate=design.rate))
            scenario = replace(scenario, workload=replace(scenario.workload, transforms=more))
        return to_yaml(scenario)

    def page(self, folder: Path) -> str:
        """The report, one file without network or scripts. folder: where it will lie."""
        environment = pages(Path(__file__).parent)
        hidden = {"low", "high"} | ({"reason"} if not any(row["reason"] for row in self.rows) else set())
        return environment.get_template("report.html").render(
            title=self.question or self.name,
            version=__version__,
            found=self,
            doc=first_line(type(self.optimiser)),
            columns=[name for name in self.rows[0] if name not in hidden] if self.candidates else [],
            shown=[_shown(row, hidden) for row in self.rows[:MAX_ROWS]],
            picture=Markup(self._picture()),  # noqa: S704  escaped there
            hidden=max(0, len(self.candidates) - MAX_ROWS),
            commands=self.commands(),
            scenario="" if self.best is None else self.scenario(folder),
            accuracy=[f"{gpu}: {accuracy({'calibration': said})}" for gpu, said in self.calibration().items()],
        )

    def _picture(self) -> str:
        """Belief and simulation of what was simulated, one below the other; '' where nothing was."""
        known = [(self.candidates[at], one) for at, one in self.found.items() if not one.reason][:8]
        most = max((value for one, found in known for value in (one.belief, found.high)), default=0.0)
        if not known or not math.isfinite(most) or most <= 0:
            return ""
        wide, each = 560.0, 58
        out = [f'<svg viewBox="0 0 640 {each * len(known) + 4}" role="img" aria-label="Belief against simulation">']
        for row, (one, found) in enumerate(known):
            top = each * row
            out.append(f'<text class="legend" x="2" y="{top + 14}">{escape(one.label)}</text>')
            for y, colour, value in ((top + 19, "fill4", one.belief), (top + 36, "fill1", found.value)):
                long = max(wide * value / most, 0.0)
                out.append(f'<rect class="{colour}" x="2" y="{y}" width="{long:.1f}" height="14"/>')
                out.append(f'<text class="legend" x="{long + 8:.1f}" y="{y + 12}">{number(value)}</text>')
        return "".join([*out, "</svg>"])

    def write(self, folder: str | Path) -> dict[str, Path]:
        """plan.json, designs.csv, report.html and, where there is an answer, scenario.yaml with its requests."""
        folder = Path(folder)
        written = {MARKER: atomic_json(folder / MARKER, self.as_json())}
        with atomic_path(folder / "designs.csv") as path:
            self.designs.to_csv(path, index=False)
        written["designs.csv"] = folder / "designs.csv"
        written["report.html"] = atomic_write(folder / "report.html", self.page(folder))
        if self.best is not None and self.best.design is not None:
            written["scenario.yaml"] = atomic_write(folder / "scenario.yaml", self.scenario(folder))
            if self.best.design.requests is not None:
                with atomic_path(folder / REQUESTS) as path:
                    self.best.design.requests.to_parquet(path)
                written[REQUESTS] = folder / REQUESTS
        return written


def gap(candidate: Candidate, found: Simulated) -> float | None:
    """Simulated over believed, less one."""
    return found.value / candidate.belief - 1.0 if candidate.belief else None


def _interval(found: Simulated) -> str:
    return f"interval {number(found.low)} to {number(found.high)}"


def _names(columns: Iterable[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for one in columns for name in one))


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, str | int | float) else short(value)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _shown(row: Mapping[str, Any], hidden: Collection[str]) -> dict[str, Any]:
    cells = []
    for name, value in row.items():
        if name in hidden:
            continue
        if name == "simulated" and value is not None:
            cells.append(f"{number(value)} ({number(row['low'])}–{number(row['high'])})")
        elif name == "gap" and value is not None:
            cells.append(f"{value:+.0%}")
        else:
            cells.append("" if value is None else number(value) if isinstance(value, float) else str(value))
    return {"cells": cells, "state": "ranked" if row["rank"] is not None else "infeasible"}
