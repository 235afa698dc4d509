"""The fields of a plan file: a question about a space of designs."""

from __future__ import annotations

from dataclasses import field
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from simulator.scenario.spec import Count, Name, NonNegativeNumber, Positive, PositiveNumber, Str, spec

PlanName = Annotated[str, Field(strict=True, pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$", max_length=100)]
Share = Annotated[float, Field(strict=True, gt=0, lt=1, allow_inf_nan=False)]
Values = Annotated[tuple[Any, ...], Field(min_length=1)]
NamedValues = Annotated[dict[str, Any], Field(min_length=1)]


@spec
class ApiPrice:
    """What an API asks for the same tokens."""

    input_usd_per_mtok: NonNegativeNumber
    """USD per million prompt tokens."""
    output_usd_per_mtok: NonNegativeNumber
    """USD per million output tokens."""
    cached_input_usd_per_mtok: NonNegativeNumber | None = None
    """USD per million prompt tokens that hit its cache, as often as the best design's hits; null: no discount."""

    def __post_init__(self) -> None:
        if not self.input_usd_per_mtok + self.output_usd_per_mtok:
            raise ValueError("an API that costs nothing is always cheaper.")


@spec
class Plan:
    """One question."""

    name: PlanName | None = None
    """Short name, used for the folder of the answer; default: the file's name."""
    question: Str = ""
    """What is asked, in words; shown in the report."""
    scenario: Name | dict[str, Any]
    """What all designs share: a scenario file (relative to the plan), or its fields."""
    find: Literal["cheapest", "fewest-gpus", "highest-rate", "lowest-bill"] = "cheapest"
    """cheapest, fewest-gpus: to serve `rate` within the SLO, adding copies of a design as needed. highest-rate: what
    each design sustains as it stands. lowest-bill: which design, as it stands, serves the load at its own times within
    the SLO at the lowest cost of what it held, autoscaling and faults included."""
    by: Literal["rate", "rate-per-usd", "rate-per-gpu"] = "rate"
    """What highest-rate ranks by."""
    rate: PositiveNumber | None = None
    """Requests per second to serve."""
    space: dict[str, Values | NamedValues] = field(default_factory=dict)
    """Fields of the scenario and their values, as a list or by name; every combination is a design."""
    max_copies: Positive = 64
    """Most copies of a design (its replicas, or all of its groups) that are tried."""
    max_gpus: Positive | None = None
    """Budget: no design with more GPUs."""
    max_usd_per_hour: PositiveNumber | None = None
    """Budget: no design that costs more."""
    replications: Annotated[int, Field(strict=True, ge=1, le=100)] = 3
    """Runs with other seeds (the scenario's and those that follow) behind every answer."""
    confidence: Share = 0.95
    """Of the intervals."""
    tolerance: Annotated[float, Field(strict=True, gt=0, le=0.5, allow_inf_nan=False)] = 0.02
    """How close the search for a rate comes, relative."""
    top: Positive | Literal["all"] = 3
    """Places of the ranking to be certain of; designs that cannot reach them are left unfinished. all: rank each."""
    api_price: ApiPrice | None = None
    """Held against the best design: the rate from which GPUs of one's own are cheaper."""
    slo_factors: tuple[PositiveNumber, ...] = (0.5, 0.7, 1.4, 2.0)
    """The SLO's limits times these, for the picture of cost against SLO; of the best few designs. Empty: no picture."""
    requests: Count | None = None
    """Requests per run; null: as many as the scenario's workload has."""

    def __post_init__(self) -> None:
        if self.find in ("cheapest", "fewest-gpus") and self.rate is None:
            raise ValueError(f"'find: {self.find}' needs a 'rate' to serve, in requests per second.")
        if self.find == "highest-rate" and self.rate is not None:
            raise ValueError("'rate' is what 'find: highest-rate' answers; leave it out, or find: cheapest.")
        if self.find == "lowest-bill" and self.rate is not None:
            raise ValueError("'find: lowest-bill' serves the load at its own times; leave 'rate' out.")
        if self.find == "lowest-bill" and self.max_gpus is not None:
            raise ValueError("'max_gpus' is not for 'find: lowest-bill': bound the replicas of the designs.")
        if self.find != "highest-rate" and self.by != "rate":
            raise ValueError("'by' is for 'find: highest-rate'.")


@cache
def plan_adapter() -> TypeAdapter[Plan]:
    return TypeAdapter(Plan)
