"""The fields of a scenario: frozen dataclasses, validated as they stand. Docs and JSON Schema come from here."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field

from simulator.scenario.cluster import ClusterSpec
from simulator.scenario.engine import EngineSpec, HardwareSpec, ModelSpec
from simulator.scenario.lifecycle import EnergySpec
from simulator.scenario.spec import (
    Bool,
    Name,
    NonNegative,
    PositiveSeconds,
    Seconds,
    Shorthand,
    Str,
    spec,
)
from simulator.scenario.workload import Workload


@spec
class SloSpec:
    """Limits a request must meet to count as good. Plain text is a preset's name."""

    preset: Name | None = None
    """Preset such as mlperf-llama3.1-8b-server; limits given beside it replace its own."""
    ttft_s: PositiveSeconds | None = None
    """Time to first token."""
    tpot_s: PositiveSeconds | None = None
    """Time per output token after the first."""
    itl_s: PositiveSeconds | None = None
    """Every gap between two tokens."""
    e2e_s: PositiveSeconds | None = None
    """Arrival to last token."""
    percentile: Annotated[float, Field(strict=True, gt=0, le=100, allow_inf_nan=False)] | None = None
    """The run meets a limit when this percentile of the requests does (MLPerf, and the default: 99)."""

    def __post_init__(self) -> None:
        if all(value is None for value in (self.preset, self.ttft_s, self.tpot_s, self.itl_s, self.e2e_s)):
            raise ValueError("set at least one limit or a preset, or leave 'slo' out.")


@spec
class RunSpec:
    """How long to simulate, and what counts."""

    horizon_s: PositiveSeconds | None = None
    """Stop the clock here; requests still running are reported as in flight. null: until all are done."""
    warmup_s: Seconds = 0.0
    """Leave the first so many seconds after the first arrival out of the statistics."""
    cooldown_s: Seconds = 0.0
    """Leave the last so many seconds before the end of the run out of the statistics."""
    mode: Literal["span", "step"] = "span"
    """span: jump over steps in which the batch cannot change. step: one event per step; same results, slower."""


@spec
class OutputSpec:
    """What is written beside the summary."""

    steps: Literal["none", "spans", "all"] = "none"
    """steps.parquet: none, one row per span, or one row per engine step."""
    report: Bool = True
    """report.html."""
    perfetto: Bool = False
    """trace.json for ui.perfetto.dev."""


@spec
class Scenario:
    """One experiment."""

    name: Annotated[str, Field(strict=True, pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$", max_length=100)] | None = None
    """Short name (letters, digits, . _ -), used for the run's folder; default: the file's name."""
    description: Str = ""
    """What the experiment is about; shown in the report."""
    seed: NonNegative = 0
    """Seed of all random draws."""
    model: Annotated[ModelSpec, Shorthand("name")]
    """Model served. Plain text is a catalogue name."""
    hardware: Annotated[HardwareSpec, Shorthand("gpu")]
    """Hardware of each replica. Plain text is a catalogue name."""
    engine: EngineSpec = field(default_factory=EngineSpec)
    """Serving engine."""
    cluster: Annotated[ClusterSpec, Shorthand("replicas", number=True)] = field(default_factory=ClusterSpec)
    """Replicas and the policies between them. A plain number is that many replicas."""
    workload: Workload
    """What arrives."""
    slo: Annotated[SloSpec, Shorthand("preset")] | None = None
    """Service level objectives. Plain text is a preset's name."""
    energy: EnergySpec = field(default_factory=EnergySpec)
    """Energy and carbon of the GPUs."""
    run: RunSpec = field(default_factory=RunSpec)
    """Length of the run, and what is counted."""
    output: OutputSpec = field(default_factory=OutputSpec)
    """Files written."""

    def __post_init__(self) -> None:
        rented = [self.hardware, *(group.hardware for group in self.cluster.groups if group.hardware is not None)]
        if not self.cluster.faults and any(hardware.pricing == "spot" for hardware in rented):
            raise ValueError("'pricing: spot' is of GPUs that are taken away: say how in 'cluster.faults'.")
