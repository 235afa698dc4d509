"""Small fixed scenarios whose summary numbers are kept: a change of behaviour must be meant.

Requests are made without random numbers (points of a Weyl sequence), so no library's generator can move them. All but
one scenario have closed-form step costs: a new calibration leaves them alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import isclose
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.cluster.plan import single
from simulator.cluster.simulation import Simulation
from simulator.cost.analytic import FixedCost, LinearCost
from simulator.cost.interface import StepCost
from simulator.cost.overhead import EngineOverhead
from simulator.cost.roofline import RooflineCost
from simulator.hardware.gpu import gpu
from simulator.metrics import summarize
from simulator.metrics.slo import Slo
from simulator.model.catalogue import model
from simulator.replica.records import SimulationRecords
from simulator.scheduling import EngineArgs
from tests.scheduling.invariants import (
    check,
    clock_never_runs_back,
    computed_is_owed,
    ends_once,
    every_token_is_made_once,
    nobody_is_left,
)
from traces.prefix import from_rows
from traces.trace import Trace

EXPECTED = Path(__file__).parent / "expected"
COMMAND = "python tests/golden/regenerate.py"
RELATIVE = 1e-9
LEFT_OUT = {
    "schema",
    "reason",
    "num_events",
    "relative_gap",
    "classes",
    "cost",
    "name",
}  # words, costs of running, noise
Numbers = dict[str, Any]


def points(n: int, stream: int) -> NDArray[np.float64]:
    """``n`` numbers spread evenly over (0, 1), another order for each stream: multiples of an irrational, modulo 1."""
    step = (np.sqrt(5.0), np.sqrt(2.0), np.sqrt(3.0), np.sqrt(7.0), np.sqrt(11.0))[stream]
    return np.asarray((np.arange(1, n + 1) * step) % 1.0)


def trace(n: int, rate: float, prompt: int, output: int, **columns: Any) -> Trace:
    """Gaps like those of a Poisson process; lengths uniform up to twice the given means."""
    arrival = np.cumsum(-np.log(points(n, 0)) / rate)
    prompts, outputs = (1 + (points(n, k) * (2 * mean - 1)).astype(np.int64) for k, mean in ((1, prompt), (2, output)))
    return Trace(arrival, prompts, outputs, **columns)


def sharing(n: int) -> Trace:
    """Eight families of prompts that share their first 0 to 480 tokens, in blocks of 16."""
    plain = trace(n, 6.0, 400, 60)
    family = (points(n, 3) * 8).astype(np.int64)
    shared = (points(n, 4) * 31).astype(np.int64)
    rows = [
        [1000 * f + k for k in range(min(s, p // 16))]
        for f, s, p in zip(family.tolist(), shared.tolist(), plain.prompt_tokens.tolist(), strict=True)
    ]
    return replace(plain, prefix=from_rows(rows, 16))


def moe() -> StepCost:
    overhead = EngineOverhead(gpu_gap_s=2e-4, cpu_step_s=7e-4, cpu_per_sequence_s=6e-6, async_scheduling=True)
    return RooflineCost(model("Qwen/Qwen3-30B-A3B"), gpu("H100-SXM"), tensor_parallel_size=2, overhead=overhead)


LINEAR = LinearCost(0.006, 2.5e-5, 4e-5, 1e-8, 4e-10)
PLAIN = EngineArgs(max_num_seqs=64, max_num_batched_tokens=1024, enable_prefix_caching=False, async_scheduling=False)


@dataclass(frozen=True)
class Scenario:
    """What is run."""

    trace: Callable[[], Trace]
    args: EngineArgs = PLAIN
    cost: Callable[[], StepCost] = lambda: LINEAR
    num_gpu_blocks: int = 4000
    users: int | None = None
    max_model_len: int = 0
    horizon_s: float | None = None


SCENARIOS = {
    "fcfs": Scenario(lambda: trace(300, 8.0, 500, 80), max_model_len=1100),  # the longest ones are turned away
    "fcfs-async": Scenario(lambda: trace(300, 8.0, 500, 80), replace(PLAIN, async_scheduling=True)),
    "priority-preempting": Scenario(
        lambda: trace(200, 12.0, 300, 120, priority=(points(200, 3) * 3).astype(np.int64)),
        replace(PLAIN, scheduling_policy="priority", async_scheduling=True),
        num_gpu_blocks=200,
    ),
    "prefix-caching": Scenario(
        lambda: sharing(300), replace(PLAIN, enable_prefix_caching=True, async_scheduling=True), num_gpu_blocks=500
    ),
    "closed-loop-horizon": Scenario(
        lambda: trace(400, 1.0, 300, 60), replace(PLAIN, max_num_seqs=12), lambda: FixedCost(0.01, 2e-5),
        users=16, horizon_s=20.0,
    ),
    "pipeline-2": Scenario(
        lambda: trace(200, 10.0, 300, 60), replace(PLAIN, pipeline_parallel_size=2, max_num_batched_tokens=512)
    ),
    "moe-roofline": Scenario(lambda: trace(200, 20.0, 600, 100), replace(PLAIN, async_scheduling=True), moe),
}  # fmt: skip


def run(name: str) -> tuple[Simulation, SimulationRecords]:
    s = SCENARIOS[name]
    built = Simulation(
        s.trace(),
        single(s.args, s.cost(), s.num_gpu_blocks, max_model_len=s.max_model_len),
        closed_loop_users=s.users,
        horizon_s=s.horizon_s,
    )
    return built, built.run()


def check_invariants(name: str, built: Simulation, records: SimulationRecords) -> None:
    """Raises AssertionError. Numbers of a run that loses a request are not worth keeping."""
    scenario = SCENARIOS[name]
    if scenario.args.pipeline_parallel_size == 1:
        check(records, built.trace, built.replicas[0].engine.state, drained=scenario.horizon_s is None)
        return
    ends_once(records, built.trace, drained=True)
    clock_never_runs_back(records)
    nobody_is_left(built.replicas[0].engine.state)
    every_token_is_made_once(records)
    computed_is_owed(records, built.replicas[0].engine.state)


def numbers(records: SimulationRecords, trace: Trace) -> Numbers:
    """Summary numbers by dotted name; then sums over all requests, which feel a change of any one of them."""
    summary = summarize(records, trace, Slo(ttft_s=0.5, tpot_s=0.05))
    found: Numbers = {}
    _flatten("", summary, found)
    requests = records.requests
    for column in ("scheduled", "first_token", "finish"):
        found[f"sum_over_requests.{column}_s"] = float(np.nansum(getattr(requests, column)))
    weights = np.arange(1, len(requests.status) + 1)
    found["sum_over_requests.row_times_finish_s"] = float(np.nansum(requests.finish * weights))
    return found


def _flatten(prefix: str, value: Any, found: Numbers) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            if key not in LEFT_OUT:
                _flatten(f"{prefix}.{key}" if prefix else key, item, found)
    else:
        found[prefix] = value


def differences(was: Numbers, now: Numbers) -> list[str]:
    """A line per number that is not the same: counts and words exactly, floats to 1e-9."""
    lines = []
    for key in [*was, *(key for key in now if key not in was)]:
        old, new = was.get(key, "(not there)"), now.get(key, "(gone)")
        if isinstance(old, float) and isinstance(new, float):
            if isclose(old, new, rel_tol=RELATIVE, abs_tol=1e-12):
                continue
        elif type(old) is type(new) and old == new:
            continue
        lines.append(f"{key:48} {_text(old):>22} {_text(new):>22} {_change(old, new):>12}")
    return lines


def _text(value: object) -> str:
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def _change(old: object, new: object) -> str:
    if isinstance(old, int | float) and isinstance(new, int | float) and old:
        return f"{100 * (new / old - 1):+.3g} %"
    return ""


def report(name: str, lines: list[str]) -> str:
    """What a failing test prints."""
    head = f"{'metric':48} {'was':>22} {'is':>22} {'change':>12}"
    return "\n".join(
        [f"golden scenario {name!r}: {len(lines)} numbers changed", head, *lines, f"If this is meant: {COMMAND} {name}"]
    )


def read(name: str) -> Numbers:
    found: Numbers = json.loads((EXPECTED / f"{name}.json").read_text(encoding="utf-8"))
    return found


def write(name: str, found: Numbers) -> None:
    (EXPECTED / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
