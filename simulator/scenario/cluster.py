"""The ``cluster`` fields: groups of equal replicas and the policies between them."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field

from simulator.scenario.admission import AdmissionSpec
from simulator.scenario.engine import EngineSpec, HardwareSpec, ModelSpec
from simulator.scenario.spec import Bool, Int, Name, Number, Positive, PositiveNumber, Seconds, Shorthand, Str, spec

GroupName = Annotated[str, Field(strict=True, pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$", max_length=100)]


@spec
class RouterSpec:
    """Which replica a request goes to. Plain text is a router's name."""

    policy: Name = "round-robin"
    """Router: a registered name (`windtunnel policies`) or package.module:Class."""
    options: dict[str, Bool | Int | Number | Str] = field(default_factory=dict)
    """The router's own options; a wrong name or value is answered with the right ones."""
    metrics_interval_s: Seconds = 0.05
    """Engines report their queues, KV usage and cached blocks to the router so often; 0: at every request."""


@spec
class GroupSpec:
    """Equal replicas. Fields of `engine` that are not given are those of the scenario's."""

    name: GroupName
    """Name in tables and reports."""
    replicas: Positive = 1
    """How many."""
    role: Literal["both", "prefill", "decode"] = "both"
    """What of a request is computed here: its prompt, its output tokens after the first, or both."""
    model: Annotated[ModelSpec, Shorthand("name")] | None = None
    """Model served; null: the scenario's."""
    hardware: Annotated[HardwareSpec, Shorthand("gpu")] | None = None
    """Hardware of each replica; null: the scenario's."""
    engine: EngineSpec | None = None
    """Serving engine; null: the scenario's."""
    serves: Name | None = None
    """Label of the trace's `model` column that is served here; null: any."""
    weight: PositiveNumber | None = None
    """Work done per second relative to other groups, for routers that ask; null: from the price of a typical step."""


@spec
class ClusterSpec:
    """Replicas and the policies between them."""

    replicas: Positive = 1
    """Replicas of the scenario's own model, hardware and engine, where `groups` is empty."""
    groups: tuple[GroupSpec, ...] = ()
    """Groups of replicas that differ."""
    router: Annotated[RouterSpec, Shorthand("policy")] = field(default_factory=RouterSpec)
    """Which replica a request goes to. Plain text is a router's name."""
    admission: AdmissionSpec | None = None
    """Who is let in; null: everybody, at once."""

    def __post_init__(self) -> None:
        names = [group.name for group in self.groups]
        if len(set(names)) < len(names):
            raise ValueError(f"group names must differ: {', '.join(names)}.")
        if self.groups and self.replicas != 1:
            raise ValueError("give either 'replicas' or 'groups' with replicas of their own.")
