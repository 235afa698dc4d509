"""A plan file that a surveyed system's optimiser answers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from simulator.core.errors import PolicyError, ScenarioError, UserError
from simulator.planning.load import base_of, located
from simulator.planning.optimisers import OPTIMISERS
from simulator.planning.optimisers.optimiser import Optimiser
from simulator.planning.spec import PlanName, Share
from simulator.scenario.config import Scenario
from simulator.scenario.load import anchored
from simulator.scenario.source import Source, read_source
from simulator.scenario.spec import Count, Name, Positive, Str, spec


@spec
class Optimisation:
    """One question."""

    name: PlanName | None = None
    """Short name, used for the folder of the answer; default: the file's name."""
    question: Str = ""
    """What is asked, in words; shown in the report."""
    scenario: Name | dict[str, Any]
    """What all designs share: a scenario file (relative to the plan), or its fields."""
    optimiser: Name
    """Who answers: a registered name (`windtunnel policies`) or package.module:Class."""
    options: dict[str, Any] = Field(default_factory=dict)
    """The optimiser's own options."""
    top: Positive = 3
    """Candidates that are simulated, those it likes best."""
    replications: Annotated[int, Field(strict=True, ge=1, le=100)] = 3
    """Runs with other seeds (the scenario's and those that follow) behind every simulated number."""
    confidence: Share = 0.95
    """Of the intervals."""
    tolerance: Annotated[float, Field(strict=True, gt=0, le=0.5, allow_inf_nan=False)] = 0.05
    """How close a search for a rate comes, relative."""
    requests: Count | None = None
    """Requests per run; null: as many as the scenario's workload has."""


@dataclass(frozen=True)
class OptimiserFile:
    """A question, with the optimiser that answers it and its options read."""

    name: str
    path: Path
    plan: Optimisation
    scenario: Scenario
    kind: type[Optimiser[Any]]
    options: Any


@cache
def optimisation_adapter() -> TypeAdapter[Optimisation]:
    return TypeAdapter(Optimisation)


def asks_optimiser(source: Source) -> bool:
    """Whether a plan's file names who answers."""
    return "optimiser" in source.data


def read_optimisation(path: str | Path) -> OptimiserFile:
    """Raises ScenarioError that names file, line and field."""
    source = read_source(path)
    try:
        plan = optimisation_adapter().validate_python(source.data)
    except ValidationError as error:
        raise located(error, source, Optimisation.__dataclass_fields__) from None
    kind, options = read_options(plan.optimiser, plan.options, source)
    file = Path(path)
    return OptimiserFile(plan.name or file.stem, file, plan, anchored(base_of(plan, source)), kind, options)


def read_options(
    name: str, given: dict[str, Any], source: Source, root: tuple[str | int, ...] = ()
) -> tuple[type[Optimiser[Any]], Any]:
    """The optimiser and its options. root: where ``optimiser`` and ``options`` stand. Raises ScenarioError."""
    try:
        kind = OPTIMISERS.get(name)
    except PolicyError as error:
        raise ScenarioError(error.message, where=source.where((*root, "optimiser")), remedy=error.remedy) from None
    found: object = kind  # package.module:Class names anything
    if not (isinstance(found, type) and issubclass(found, Optimiser)):
        where = source.where((*root, "optimiser"))
        raise ScenarioError(f"{name!r} is not an optimiser.", where=where, remedy="Derive it from Optimiser.")
    try:
        return kind, TypeAdapter(kind.Options).validate_python(given)
    except ValidationError as error:
        fields: dict[str, Any] = getattr(kind.Options, "__dataclass_fields__", {})
        raise located(error, source, fields, (*root, "options")) from None
    except UserError as error:
        where = source.where((*root, "options"))
        raise ScenarioError(error.message, where=where, remedy=error.remedy) from None
