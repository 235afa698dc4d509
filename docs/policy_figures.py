"""Write each policy's figures from the scoreboard into docs/survey.md: ``python docs/policy_figures.py [BOARD]``.

A system's figures stand with the policies that its proposal or a variant uses and its baseline does not.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from simulator.faults import FAULTS
from simulator.kv.eviction import EVICTIONS
from simulator.routing import ROUTERS
from simulator.scaling import CONTROLLERS, SCALERS
from simulator.scheduling import POLICIES
from simulator.survey.load import merged, system_files

ROOT = Path(__file__).parent.parent
DOCUMENT = ROOT / "docs" / "survey.md"
BEGIN, END = "<!-- policies: begin (generated) -->", "<!-- policies: end (generated) -->"
HEAD = "| kind | policy | first figure of each system that proposes it | verdict | measured against it |"
USUAL = {"vllm", "vllm-v0", "static", "orca"}
KINDS = {"engine": POLICIES, "router": ROUTERS, "decode_router": ROUTERS, "scaling": SCALERS, "clocks": CONTROLLERS,
         "faults": FAULTS}  # fmt: skip


Policy = tuple[str, str]  # (kind, name)


def used(body: Any, key: str = "") -> Iterator[Policy]:
    """(kind, policy) wherever a scenario names one."""
    if isinstance(body, dict):
        for name, value in body.items():
            if name == "policy" and key in KINDS:
                yield KINDS[key].kind, str(value)
            elif name in {"router", "decode_router"} and isinstance(value, str):
                yield ROUTERS.kind, value
            elif name == "eviction" and isinstance(value, str) and value in EVICTIONS.names():
                yield EVICTIONS.kind, value
            else:
                yield from used(value, name)
    elif isinstance(body, list):
        for value in body:
            yield from used(value, key)


def systems_by_policy() -> tuple[dict[Policy, list[str]], dict[Policy, list[str]]]:
    """Systems that propose a policy, and those that measure against it."""
    proposed: dict[Policy, list[str]] = defaultdict(list)
    against: dict[Policy, list[str]] = defaultdict(list)
    for file in system_files(ROOT / "scenarios" / "survey"):
        bodies = file.system.bodies
        before = set(used(merged(file, "baseline"))) if "baseline" in bodies else set()
        later = {p for name in bodies if name != "baseline" for p in used(merged(file, name))}
        for measure in file.system.measure.values():
            later |= {(POLICIES.kind, str(v)) for path, v in measure.set.items() if path == "engine.policy"}
            if measure.optimise is not None and measure.optimise.optimiser in POLICIES.names():  # it schedules by it
                later.add((POLICIES.kind, measure.optimise.optimiser))
        shared = {p for p in later & before if p[0] == POLICIES.kind and p[1] not in USUAL}  # options differ
        before -= shared
        for policy in sorted(later - before):
            proposed[policy].append(file.name)
        for policy in sorted(before):
            against[policy].append(file.name)
    return proposed, against


def table(board: Path) -> list[str]:
    rows = {row["name"]: row for row in json.loads(board.read_text(encoding="utf-8"))["systems"]}
    proposed, against = systems_by_policy()
    lines = [HEAD, "|---|---|---|---|---|"]
    for registry in (POLICIES, ROUTERS, SCALERS, CONTROLLERS, FAULTS, EVICTIONS):
        for name in sorted(registry.names()):
            here = [rows[system] for system in proposed.get((registry.kind, name), []) if system in rows]
            figures = "<br>".join(f"{row['system']}: {row['ours'].split(';')[0]}" for row in here) or "-"
            verdicts = "<br>".join(row["verdict"] for row in here) or "-"
            beaten = [s for s in against.get((registry.kind, name), []) if s in rows]
            others = ", ".join(rows[s]["system"].split(" (")[0] for s in beaten)
            lines.append(f"| {registry.kind} | `{name}` | {figures} | {verdicts} | {others or '-'} |")
    return lines


def main() -> None:
    board = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "runs" / "survey" / "scoreboard.json"
    text = DOCUMENT.read_text(encoding="utf-8")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    DOCUMENT.write_text(before + "\n".join([BEGIN, "", *table(board), "", END]) + after, encoding="utf-8")
    print(f"written: {DOCUMENT.name}, from {board}")


if __name__ == "__main__":
    main()
