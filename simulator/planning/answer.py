"""An answer in words and tables, and the folder it is written to."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simulator import __version__
from simulator.core.errors import UserError
from simulator.planning import costs
from simulator.planning.code import code_digest
from simulator.planning.command import commands
from simulator.planning.load import short
from simulator.planning.outcome import Answer, Outcome
from simulator.planning.probe import Bench, Probe
from simulator.planning.screen import places
from simulator.planning.store import NAME as RUNS
from simulator.report.files import atomic_json, atomic_path, atomic_write
from simulator.report.svg import number
from simulator.scenario.config import Scenario
from simulator.scenario.load import to_yaml, with_paths
from simulator.scenario.workload import Transform

if TYPE_CHECKING:
    import pandas as pd

MARKER = "plan.json"  # of a folder that holds an answer; one with runs alone is of a plan that was interrupted


def sentence(answer: Answer) -> str:
    """The answer first, in one sentence."""
    plan, best = answer.file.plan, answer.best
    if best is None:
        return _none(answer)
    what = hardware(best)
    if best.bill is not None:
        return (
            f"The lowest bill for this load within its SLO is that of {what}: {usd(best)} ({interval(answer, best)}), "
            f"with {best.slack:.0%} of the SLO's limits used."
        )
    assert best.sustained is not None
    carries = f"{per_second(best.sustained.rate)} ({interval(answer, best)})"
    if plan.find == "highest-rate":
        per = {"rate": "", "rate-per-usd": ", the most per dollar", "rate-per-gpu": ", the most per GPU"}[plan.by]
        carry = "sustains" if what.startswith("1 ") else "sustain"
        return f"{what} {carry} {carries} within its SLO{per}; what gives first is {binding(best)}."
    goal = "The cheapest way" if plan.find == "cheapest" else "The fewest GPUs"
    sure = "" if best.sustained.low >= (plan.rate or 0) else ", so that there is no sure headroom"
    return (
        f"{goal} to serve {per_second(plan.rate or 0)} within the SLO is {what} at {usd(best)}; it sustains "
        f"{carries}{sure}, and what gives first is {binding(best)}."
    )


def _none(answer: Answer) -> str:
    reasons: dict[str, int] = {}
    for outcome in answer.outcomes:
        reasons[outcome.pruned_by] = reasons.get(outcome.pruned_by, 0) + 1
    most = max(reasons, key=lambda name: reasons[name])
    example = next(outcome for outcome in answer.outcomes if outcome.pruned_by == most)
    return (
        f"Infeasible: none of the {len(answer.outcomes)} designs serves this within the SLO. Most often "
        f"({reasons[most]}): {most}: {example.design.label}: {example.reason}"
    )


def next_sentence(answer: Answer) -> str:
    """What comes second, and by how much."""
    best, second = answer.best, answer.next_best
    if best is None:
        return ""
    if second is None and any(outcome.state == "dominated" for outcome in answer.outcomes):
        return "The other designs are worse, or do not serve this; a larger `top` says by how much."
    if second is None:
        return "No other design serves this."
    if best.value is not None and second.value is not None:
        by = f"{1.0 - second.value / best.value:.1%} less"
    elif second.cost > 1.0005 * best.cost:
        by = f"{second.cost / best.cost - 1.0:.1%} more"
    else:
        used = f"{second.slack:.0%}", f"{best.slack:.0%}"
        closer = "as close" if used[0] == used[1] else "but closer"
        by = f"the same cost, {closer} to its limits ({used[0]} of them used, against {used[1]})"
    carries = ""
    if second.sustained is not None:
        carries = f"; it sustains {per_second(second.sustained.rate)} ({interval(answer, second)})"
    return f"Next best: {hardware(second)} at {usd(second)}, {by}{carries}."


def per_second(rate: float) -> str:
    """``1 request/s``, ``1.2 requests/s``."""
    said = number(rate)
    return f"{said} request{'s' * (said != '1')}/s"


def against_api(answer: Answer) -> str:
    """When own GPUs are cheaper than the API, in one sentence; empty where no API is held against them."""
    best, price = answer.best, answer.file.plan.api_price
    if best is None or price is None or best.usd_per_hour is None:
        return ""
    load = costs.load_of(answer, best)
    api = costs.api_usd(answer, load)
    asks = 3600.0 * load.rate * api
    share = best.usd_per_hour / asks
    here = "for this load" if best.bill is not None else f"at {per_second(load.rate)}"
    text = f"The API would bill ${asks:,.2f}/h {here}; own GPUs cost {share:.0%} of that."
    unit = costs.own_price(best)
    if not answer.sizes or unit is None:
        return text
    found = costs.break_even(unit, answer.sizes, api)
    if found.first is None:
        return f"{text} They are never cheaper, at any rate."
    again = "" if found.for_good is None else f", for good from {number(found.for_good)}"
    if found.for_good is not None and found.for_good <= found.first * 1.001:
        again = " on"
    return f"{text} They are cheaper from {per_second(found.first)}{again}."


def interval(answer: Answer, outcome: Outcome) -> str:
    """``95 % interval 21.0 to 22.4``."""
    plan, found = answer.file.plan, outcome.bill or outcome.sustained
    assert found is not None
    bounds = f"{number(found.low)} to {number(found.high)}"
    if len(found.by_seed) < 2:
        return "one replication" if outcome.bill else f"{bounds} by the search alone: one replication"
    return f"{plan.confidence:.0%} interval {bounds}, {len(found.by_seed)} replications"


def hardware(outcome: Outcome) -> str:
    """``3 replicas of 4 x H100-SXM (fp8, tensor_parallel_size 4)``."""
    scenario = _scenario(outcome)
    setups, scaling = Bench(scenario).groups, scenario.cluster.scaling
    copies = outcome.copies or 1
    parts = []
    for index, setup in enumerate(setups):
        count = str(setup.replicas * copies)
        if scaling is not None:
            least, _, most = places(scenario, index)
            count = f"{least} to {most}"
        gpus = f"{setup.num_gpus} x {setup.gpu.name}" if setup.num_gpus > 1 else setup.gpu.name
        role = f" ({setup.name})" if len(setups) > 1 else ""
        parts.append(f"{count} replica{'' if count == '1' else 's'} of {gpus}{role}")
    words = outcome.design.label.split(", ")
    rest = ", ".join(word for word in words if word not in parts[0].split() and not word.startswith("groups "))
    return " and ".join(parts) + (f" ({rest})" if rest else "")


def usd(outcome: Outcome) -> str:
    """``12 GPUs, $28.80/h``."""
    gpus = f"{outcome.gpus} GPU{'s' * (outcome.gpus != 1)}"
    if outcome.gpus_held is not None and outcome.gpus_held != outcome.gpus:
        gpus = f"{number(outcome.gpus_held)} GPUs on average"
    return gpus if outcome.usd_per_hour is None else f"{gpus}, ${outcome.usd_per_hour:,.2f}/h"


def binding(outcome: Outcome) -> str:
    """``TTFT (prefill compute)``: the limit missed just above, and what is full then."""
    probe = outcome.binding
    if probe is None:
        return "nothing within the rates tried"
    return f"{probe.constraint} ({probe.why})" if probe.why else probe.constraint


def _scenario(outcome: Outcome) -> Scenario:
    assert outcome.design.scenario is not None
    return outcome.design.scenario


def recommended(answer: Answer, folder: Path) -> str:
    """The scenario file of the best design at the rate in question, its paths relative to ``folder``."""
    best = answer.best
    assert best is not None
    scenario = Bench(_scenario(best)).scaled(best.copies or 1)
    if best.bill is None:
        assert best.sustained is not None
        rate = answer.file.plan.rate or best.sustained.rate
        more = (*scenario.workload.transforms, Transform(to_rate=rate))
        scenario = replace(scenario, workload=replace(scenario.workload, transforms=more))
    return to_yaml(with_paths(scenario, lambda _, path: os.path.relpath(path, folder)))


def serve_commands(answer: Answer) -> list[tuple[str, str]]:
    """How to start the best design."""
    best = answer.best
    if best is None:
        return []
    bench = Bench(_scenario(best))
    setups = tuple(replace(setup, replicas=setup.replicas * (best.copies or 1)) for setup in bench.groups)
    return commands(_scenario(best), setups)


def design_rows(answer: Answer) -> list[dict[str, Any]]:
    """One row per design, the best first."""
    rows = []
    for place, outcome in enumerate(answer.outcomes, 1):
        found, ranked = outcome.sustained, outcome.state == "ranked"
        row: dict[str, Any] = {"rank": place if ranked else None, "state": outcome.state}
        row |= {one.path: one.name or _plain(one.value) for one in outcome.design.settings}
        row |= {
            "copies": outcome.copies,
            "gpus": (outcome.gpus_held or outcome.gpus) if ranked else None,
            "usd_per_hour": outcome.usd_per_hour if ranked else None,
            "sustained_request_per_s": None if found is None else found.rate,
            "low": None if found is None else found.low,
            "high": None if found is None else found.high,
            "limits_used": outcome.slack if ranked and answer.file.plan.find != "highest-rate" else None,
            "bound_request_per_s": outcome.bound,
            "binding": None if outcome.binding is None else outcome.binding.constraint,
            "pruned_by": outcome.pruned_by or None,
            "reason": outcome.reason or None,
            "runs": len(outcome.probes),
        }
        rows.append(row)
    return rows


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, str | int | float) else short(value)


def probe_rows(answer: Answer) -> list[dict[str, Any]]:
    """One row per run that decided something."""
    labels = {outcome.design.index: outcome for outcome in answer.outcomes}
    rows = []
    for index, outcome in labels.items():
        more = outcome.sustained.probes if outcome.sustained is not None and answer.file.plan.rate else ()
        for probe in distinct((*outcome.probes, *more, *answer.curves.get(index, ()))):
            row = {"design": index, "label": outcome.design.label, "rate": probe.rate, "copies": probe.copies}
            row |= {"seed": probe.seed, "meets": probe.meets, "fraction": probe.fraction, "verdict": probe.verdict}
            row |= {f"{name}_s": value for name, value in probe.percentile_s.items()}
            row |= {"goodput_request_per_s": probe.goodput_request_per_s, "constraint": probe.constraint}
            rows.append(row | {"why": probe.why, "cpu_s": round(probe.cpu_s, 4)})
    return rows


def distinct(probes: Iterable[Probe]) -> list[Probe]:
    """Each run once: later searches ask again for runs of earlier ones."""
    return list({probe.key or id(probe): probe for probe in probes}.values())


def effort(answer: Answer) -> dict[str, Any]:
    """What the answer cost, and what pruning and early stopping saved."""
    probes = distinct(answer.all_probes)
    whole = [probe.cpu_s for probe in probes if probe.fraction == 1.0]
    early = [probe.cpu_s for probe in probes if probe.fraction < 1.0]
    unseen = [outcome for outcome in answer.outcomes if not outcome.probes]
    reasons: dict[str, int] = {}
    for outcome in answer.outcomes:
        if outcome.state != "ranked":
            reasons[outcome.pruned_by] = reasons.get(outcome.pruned_by, 0) + 1
    mean = sum(whole) / len(whole) if whole else None
    return {
        "designs": len(answer.outcomes),
        "designs_never_run": len(unseen),
        "left_out_by": reasons,
        "runs": len(probes),
        "runs_stopped_early": len(early),
        "requests_per_run": max((probe.requests for probe in probes), default=0),
        "cpu_s": sum(whole) + sum(early),
        "cpu_s_per_whole_run": mean,
        "cpu_s_per_stopped_run": sum(early) / len(early) if early else None,
        "cpu_s_saved_by_stopping": 0.0 if mean is None else max(mean * len(early) - sum(early), 0.0),
    }


def as_json(answer: Answer) -> dict[str, Any]:
    """Everything of the answer that a program may want."""
    best = answer.best
    return {
        "schema": "windtunnel.plan/1",
        "name": answer.file.name,
        "answer": sentence(answer),
        "next_best": next_sentence(answer),
        "feasible": best is not None,
        "designs": [{k: _finite(v) for k, v in row.items()} for row in design_rows(answer)],
        "costs": [asdict(bill) for bill in costs.bills(answer, best)] if best is not None else [],
        "against_api": against_api(answer),
        "energy": None if best is None or (used := costs.energy(answer, best)) is None else asdict(used),
        "serve": [command for _, command in serve_commands(answer)],
        "calibration": answer.calibration,
        "effort": effort(answer),
        "version": __version__,
        "code_sha256": code_digest(),
    }


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and abs(value) == float("inf") else value


def frame(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Rows as a table."""
    import pandas as pd

    return pd.DataFrame(list(rows))


def check_folder(folder: Path) -> None:
    """Raises UserError when answers cannot go there."""
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not _ours(folder))):
        raise UserError(
            "holds something that is not the answer to a plan.", where=str(folder), remedy="Choose another folder."
        )


def _ours(folder: Path) -> bool:
    return (folder / MARKER).exists() or (folder / RUNS).exists()


def write(answer: Answer, folder: Path, page: str) -> dict[str, Path]:
    """plan.json, designs.csv, probes.csv, report.html and, where there is an answer, scenario.yaml."""
    written = {MARKER: atomic_json(folder / MARKER, as_json(answer))}
    for name, rows in (("designs.csv", design_rows(answer)), ("probes.csv", probe_rows(answer))):
        with atomic_path(folder / name) as path:
            frame(rows).to_csv(path, index=False)
        written[name] = folder / name
    written["report.html"] = atomic_write(folder / "report.html", page)
    if answer.best is not None:
        written["scenario.yaml"] = atomic_write(folder / "scenario.yaml", recommended(answer, folder))
    return written
