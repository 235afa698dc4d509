"""``windtunnel check``."""

from __future__ import annotations

from typing import Annotated

import typer

from simulator.cli.console import out
from simulator.cli.options import ScenarioFile, Settings


def check(
    scenario: ScenarioFile,
    settings: Settings = None,
    show: Annotated[bool, typer.Option("--show", help="Print the scenario with every default filled in.")] = False,
) -> None:
    """Validate a scenario without running it: fields, names, its trace, and whether the model fits."""
    from simulator.scenario.build import build_cluster, build_groups
    from simulator.scenario.energy import intensities
    from simulator.scenario.load import anchored, at, located, to_yaml
    from simulator.scenario.run import resolved, simulation
    from simulator.scenario.source import override, read_source
    from simulator.scenario.trace import make_trace

    source = override(read_source(scenario), settings or [])
    experiment = anchored(source)
    with located(source):
        groups = build_groups(experiment)
        cluster = build_cluster(experiment, groups)
        intensities(experiment)
        trace = make_trace(experiment.workload, experiment.seed)
        with at("workload"):
            simulation(experiment, cluster, trace)  # what routers and tiers refuse shows when they meet the trace
    if show:
        print(to_yaml(resolved(experiment, groups)), end="")
        return
    out().print(f"{scenario}: fine.", markup=False, soft_wrap=True)
    for setup in groups:
        text = f"{setup.replicas} x {setup.model.name} on {setup.num_gpus} x {setup.gpu.name}: "
        ranks = setup.args.data_parallel_size
        each = f" ({setup.memory.kv_tokens:,} on each of {ranks} ranks)" if ranks > 1 else ""
        text += f"{ranks * setup.memory.kv_tokens:,} tokens of KV cache{each}."
        out().print(text, markup=False, soft_wrap=True)
