"""``run(scenario, seed) -> Result``: pure. The command line, notebooks and sweeps all call it."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from simulator import __version__
from simulator.cluster.plan import ClusterPlan
from simulator.cluster.simulation import Simulation
from simulator.cost.calibration import describe
from simulator.cost.finetuning import job_of
from simulator.metrics import analyse, summarize
from simulator.metrics.finetuning import summarize_finetuning
from simulator.metrics.summary import summary_window
from simulator.replica.records import SimulationRecords
from simulator.scenario.build import build_cluster, build_groups
from simulator.scenario.config import Scenario
from simulator.scenario.energy import energy_plan, paid_per_hour
from simulator.scenario.engine import EngineSpec
from simulator.scenario.load import at, digest
from simulator.scenario.result import Result
from simulator.scenario.setup import Setup
from simulator.scenario.trace import make_trace
from simulator.scheduling import EngineArgs
from traces.trace import Trace

Progress = Callable[[float, int, int], None]  # (simulated seconds, requests that arrived, requests in the trace)


def run(
    scenario: Scenario,
    seed: int | None = None,
    *,
    progress: Progress | None = None,
    groups: Sequence[Setup] | None = None,
    trace: Trace | None = None,
) -> Result:
    """Simulate a scenario. Same scenario and seed: same records and summary, on every machine.

    seed: instead of the scenario's own. progress: called now and then. groups, trace: built before, by ``build_groups``
    and ``make_trace``, for callers that run many variations. Raises UserErrors whose ``where`` names the field of the
    scenario that is wrong.
    """
    wall, cpu = time.perf_counter(), time.process_time()
    scenario = scenario if seed is None else replace(scenario, seed=seed)
    groups = build_groups(scenario) if groups is None else tuple(groups)
    setup, cluster = groups[0], build_cluster(scenario, groups)
    trace = make_trace(scenario.workload, scenario.seed) if trace is None else trace
    with at("workload"):
        records = simulation(scenario, cluster, trace, progress).run()
    simulated = time.perf_counter(), time.process_time()
    energy = None if any(group.nodes for group in groups) else energy_plan(scenario, groups)  # of unlike GPUs: unknown
    analysis = analyse(records, setup.slo)
    with at("run"):
        window = summary_window(records, measured_window(scenario, records))
        summary = summarize(
            records,
            trace,
            setup.slo,
            window,
            usd_per_hour=usd_per_hour(groups) if cluster.life is None else paid_per_hour(groups, records, window),
            energy=energy,
            analysis=analysis,
        )
        jobs = {group.name: job_of(group.cost) for group in cluster.groups}
        finetuning = summarize_finetuning(records, [jobs[replica.group] for replica in records.replicas], window)
        if finetuning is not None:
            summary["finetuning"] = finetuning
    scenario = resolved(scenario, groups)
    run_time = {
        "simulation_wall_s": round(simulated[0] - wall, 3),
        "simulation_cpu_s": round(simulated[1] - cpu, 3),
    }
    provenance = {**_provenance(scenario, groups, trace), "run_time": run_time}
    return Result(scenario, groups, cluster, trace, records, analysis, summary, provenance)


def simulation(scenario: Scenario, cluster: ClusterPlan, trace: Trace, progress: Progress | None = None) -> Simulation:
    """A scenario's simulation, ready to run. Raises UserErrors where its parts do not fit together."""
    loop = scenario.workload.closed_loop
    return Simulation(
        trace,
        cluster,
        closed_loop_users=loop.users if loop else None,
        horizon_s=scenario.run.horizon_s,
        step_mode=scenario.run.mode == "step",
        seed=scenario.seed,
        progress=progress,
    )


def _provenance(scenario: Scenario, groups: Sequence[Setup], trace: Trace) -> dict[str, Any]:
    """What a result came from. scenario: with its engines' defaults written out."""
    setup = groups[0]
    return {
        "scenario_sha256": digest(scenario),
        "seed": scenario.seed,
        "trace": {"source": trace.source, "requests": len(trace), "notes": list(trace.notes)},
        "calibration": describe(setup.gpu, setup.calibration, setup.notes),
        "groups": {
            group.name: {
                "replicas": f"{group.replicas} of {group.model.name} on {group.num_gpus} x {group.gpu.name}",
                "calibration": describe(group.gpu, group.calibration, group.notes),
            }
            for group in groups
            if len(groups) > 1
        },
        "gpu_source": setup.gpu.source,
        "model_source": setup.model.source,
        "engine_overhead": setup.cost.overhead.source,
        "versions": versions(),
    }


def measured_window(scenario: Scenario, records: SimulationRecords) -> tuple[float, float] | None:
    """Without warm-up and cool-down; None: nothing is cut."""
    spec, arrival = scenario.run, records.requests.arrival
    if not (spec.warmup_s or spec.cooldown_s) or not len(arrival):
        return None
    return float(arrival.min()) + spec.warmup_s, records.end - spec.cooldown_s


def usd_per_hour(groups: Sequence[Setup]) -> float | None:
    """Price of all replicas; None when that of one is not known."""
    prices = [None if group.usd_per_hour is None else group.usd_per_hour * group.replicas for group in groups]
    return None if None in prices else sum(price for price in prices if price is not None)


def resolved(scenario: Scenario, groups: Sequence[Setup]) -> Scenario:
    """The scenario with the engines' defaults written out."""
    if not scenario.cluster.groups:
        return replace(scenario, engine=_resolved(scenario.engine, groups[0].args))
    specs = tuple(
        replace(spec, engine=_resolved(spec.engine or scenario.engine, setup.args))
        for spec, setup in zip(scenario.cluster.groups, groups, strict=True)
    )
    return replace(scenario, cluster=replace(scenario.cluster, groups=specs))


def _resolved(engine: EngineSpec, args: EngineArgs) -> EngineSpec:
    return replace(
        engine,
        max_num_seqs=args.max_num_seqs,
        max_num_batched_tokens=args.max_num_batched_tokens,
        max_model_len=args.max_model_len,
        enable_prefix_caching=args.enable_prefix_caching,
        async_scheduling=args.async_scheduling,
    )


def versions() -> dict[str, str]:
    found = {"windtunnel": __version__, "python": platform.python_version()}
    for package in ("numpy", "simpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # vendored or frozen installs carry no metadata
            found[package] = "unknown"
    return found
