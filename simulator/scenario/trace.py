"""The requests of a scenario: read or drawn, then transformed."""

from __future__ import annotations

from simulator.core.random import streams
from simulator.scenario.load import at
from simulator.scenario.transforms import transformed
from simulator.scenario.workload import Workload
from traces.formats import read_trace
from traces.generate import Generators, generate, synthesize
from traces.trace import Trace


def make_trace(workload: Workload, seed: int) -> Trace:
    """The requests of a scenario. Raises UserErrors whose ``where`` names the field."""
    trace = _source(workload, seed)
    for index, step in enumerate(workload.transforms):
        with at(f"workload.transforms.{index}"):
            trace = transformed(trace, step, streams(seed), index)
    return trace


def _source(workload: Workload, seed: int) -> Trace:
    generators = Generators.of(seed)
    if workload.trace is not None:
        with at("workload.trace"):
            given = workload.trace
            return read_trace(given.path, given.format, strict=given.strict, **given.options)
    if workload.preset is not None:
        preset = workload.preset
        with at("workload.preset"):
            return generate(
                preset.name,
                num_requests=preset.num_requests,
                rate=preset.rate,
                steady=preset.steady,
                generators=generators,
            )
    mix = workload.synthetic
    assert mix is not None
    with at("workload.synthetic"):
        return synthesize(
            arrivals=mix.arrivals.build(),
            lengths=mix.lengths.build(),
            sessions=mix.sessions.build() if mix.sessions else None,
            documents=mix.documents.build() if mix.documents else None,
            num_requests=mix.num_requests,
            generators=generators,
        )
