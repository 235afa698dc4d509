"""The fields of a system's file in ``scenarios/survey/``: its claim, its setting, what is measured, the band."""

from __future__ import annotations

from dataclasses import field
from functools import cache
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from simulator.scenario.spec import Bool, Name, Number, Positive, PositiveNumber, Str, spec

Key = Annotated[str, Field(strict=True, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=60)]
Formula = Annotated[str, Field(strict=True, min_length=1, max_length=1000)]
Body = dict[str, Any]  # a scenario, or a part of one; validated as one when it is whole


@spec
class Sweep:
    """One run per value."""

    path: Name
    """Field that changes (`engine.max_num_seqs`), or `rate`: requests per second, the same requests stretched."""
    values: Annotated[tuple[Any, ...], Field(min_length=1)]
    """Its values."""


@spec
class CapacitySpec:
    """The highest rate that meets a target, found by bisection with the same requests stretched in time."""

    meets: Formula
    """What a run at that rate must hold, such as `latency.tpot_s.p99 <= 0.1`; may name what was measured before."""
    start: PositiveNumber = 1.0
    """Rate tried first, requests per second."""
    tolerance: PositiveNumber = 0.03
    """Relative width at which the search ends."""
    highest: PositiveNumber | None = None
    """Highest rate tried; null: none."""


@spec
class OptimiseSpec:
    """A system's own optimiser searches for designs of a variant; those it likes best are simulated (docs/planning.md).

    The result has one entry per candidate that can be, its choice first: `design`, `belief`, `simulated` and `gap`
    (null: not simulated), and the optimiser's own columns.
    """

    optimiser: Name
    """A registered name (`windtunnel policies`) or package.module:Class."""
    options: dict[str, Any] = field(default_factory=dict)
    """Its own options."""
    computed: dict[Key, Formula] = field(default_factory=dict)
    """Options whose values are formulas over what was measured before."""
    top: Positive = 1
    """Candidates that are simulated."""
    tolerance: PositiveNumber = 0.05
    """How close a search for a rate comes, relative."""


@spec
class Measure:
    """One run of a variant, a sweep of runs, or a search."""

    of: Key
    """Variant: baseline, proposal or one of `variants`."""
    set: dict[Name, Any] = field(default_factory=dict)
    """Fields that differ from the variant's, by dotted path."""
    rate: PositiveNumber | Formula | None = None
    """Stretch the requests to this rate, requests per second; or a formula over what was measured before."""
    sweep: Sweep | None = None
    """Several runs."""
    capacity: CapacitySpec | None = None
    """A search; the run kept is the one at the rate found, and `rate` is it (0: no rate meets the target)."""
    optimise: OptimiseSpec | None = None
    """A system's own search over designs of the variant."""
    values: dict[Key, Formula] = field(default_factory=dict)
    """More numbers, from formulas over the run's summary and the columns of `requests`."""
    keep: tuple[Key, ...] = ()
    """Columns of `requests` to keep, so that later formulas can compare request with request (`unloaded.e2e_s`)."""

    def __post_init__(self) -> None:
        if self.sweep is not None and self.capacity is not None:
            raise ValueError("give either a sweep or a capacity search.")
        others = (self.rate, self.sweep, self.capacity, self.values or None, self.keep or None)
        if self.optimise is not None and any(one is not None for one in others):
            raise ValueError("with 'optimise' there are no 'rate', 'sweep', 'capacity', 'values' and 'keep'.")
        if self.rate is not None and (self.capacity is not None or (self.sweep and self.sweep.path == "rate")):
            raise ValueError("the rate is what is searched or swept; leave 'rate' out.")


@spec
class Check:
    """One statement of the band."""

    name: Name
    """What is looked at, in words."""
    value: Formula
    """Formula over the measurements. A statement without bounds must be true."""
    low: Number | None = None
    """Lowest value within the band; null: none."""
    high: Number | None = None
    """Highest value within the band; null: none."""
    exact: Bool = False
    """The band states this as an exact property."""
    why: Str = ""
    """Why it misses, shown only when it does."""

    def __post_init__(self) -> None:
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"low ({self.low:g}) is above high ({self.high:g}).")


@spec
class Part:
    """A part of a mixed load: requests of one kind, with its labels."""

    workload: Body
    """As a scenario's `workload`."""
    tenant: Name | None = None
    """Label of the trace's `tenant` column."""
    model: Name | None = None
    """Label of the trace's `model` column."""
    adapter: Name | None = None
    """Label of the trace's `adapter` column."""
    slo_class: Name | None = None
    """Label of the trace's `slo_class` column."""
    priority: int | None = None
    """Value of the trace's `priority` column: smaller is served first."""


@spec
class PublishedPrice:
    """Step times by coefficients that a paper published, instead of a calibration. Milliseconds and tokens."""

    source: Str
    """Where they were published."""
    prefill: tuple[Number, Number, Number]
    """a, b, c of a prefill step: a + b sum(n) + c sum(n^2)."""
    decode: tuple[Number, Number, Number]
    """a, b, c of a decode step: a + b sum(context) + c batch."""
    decode_large: tuple[Number, Number, Number] | None = None
    """The same from `large_batch` requests on."""
    large_batch: Positive = 95
    """Smallest batch of `decode_large`."""
    kv_tokens: Positive | None = None
    """Tokens that the KV cache holds; null: what the memory of the GPU gives."""


@spec
class System:
    """One published system."""

    system: Name
    """Its name, as in the literature."""
    group: Str = ""
    """What kind of system it is."""
    claim: Name
    """What its authors claim, as stated."""
    paper: Name
    """Reference."""
    band: tuple[Check, ...] = ()
    """What an honest rebuild should show: the shape of the claim."""
    common: Body = field(default_factory=dict)
    """What all variants share of a scenario."""
    baseline: Body | None = None
    """The rest of the scenario that the system is compared with."""
    proposal: Body | None = None
    """The rest of the scenario with the system's idea."""
    variants: dict[Key, Body] = field(default_factory=dict)
    """More of them. In every variant, `like` names another that it starts from, `mix` lists parts of a mixed load,
    and `price` maps groups of replicas to published step times."""
    measure: dict[Key, Measure] = field(default_factory=dict)
    """Runs by name, in order."""
    setting: Str = ""
    """How the setting differs from the paper's, if it does."""
    not_modelled: Str = ""
    """What of the system is left out."""
    quality: Str = ""
    """What the quality of answers is taken to be, where it is an input."""
    not_reproduced: Str | None = None
    """Why it is not run here; null: it is."""

    def __post_init__(self) -> None:
        if self.not_reproduced is None and not (self.band and self.measure):
            raise ValueError("a system needs 'measure' and 'band', or 'not_reproduced' with the reason.")
        names = [check.name for check in self.band]
        if len(set(names)) < len(names):
            raise ValueError("names of checks must differ.")

    @property
    def bodies(self) -> dict[str, Body]:
        """Variants by name."""
        own = {"baseline": self.baseline, "proposal": self.proposal}
        return {name: body for name, body in own.items() if body is not None} | self.variants


@cache
def system_adapter() -> TypeAdapter[System]:
    return TypeAdapter(System)


@cache
def part_adapter() -> TypeAdapter[tuple[Part, ...]]:
    return TypeAdapter(tuple[Part, ...])


@cache
def price_adapter() -> TypeAdapter[dict[str, PublishedPrice]]:
    return TypeAdapter(dict[str, PublishedPrice])
