"""The ``cluster.clocks`` fields: clocks of GPUs that a controller changes while the simulation runs."""

from __future__ import annotations

from dataclasses import field

from simulator.scenario.spec import Bool, Int, Name, Number, PositiveSeconds, Str, spec


@spec
class ClocksSpec:
    """A controller that locks clocks of GPUs while the simulation runs."""

    policy: Name
    """Controller: a registered name (polca, slo-clock) or package.module:Class."""
    options: dict[str, Bool | Int | Number | Str] = field(default_factory=dict)
    """The controller's own options; a wrong name or value is answered with the right ones."""
    interval_s: PositiveSeconds = 2.0
    """It looks so often (POLCA's telemetry: 2 s)."""
