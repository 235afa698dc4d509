"""The ``workload`` fields: a trace file, a fitted preset or a synthetic mix; then transforms; then the loop."""

from __future__ import annotations

from dataclasses import field, fields
from typing import Annotated, Literal

from pydantic import Field

from simulator.scenario.spec import (
    Bool,
    Count,
    Fraction,
    Int,
    Name,
    NonNegativeNumber,
    Number,
    Positive,
    PositiveNumber,
    PositiveSeconds,
    Seconds,
    Shorthand,
    Str,
    spec,
)
from simulator.scenario.synthetic import ArrivalsSpec, Synthetic


@spec
class TraceFile:
    """Requests read from a file."""

    path: Name
    """Trace file (.gz is read as it is), relative to the scenario file."""
    format: Name | None = None
    """Format (`windtunnel trace formats`); null: found out from the file."""
    strict: Bool = False
    """Refuse the file when a row is bad, instead of counting and skipping it."""
    options: dict[str, Bool | Int | Number | Str] = field(default_factory=dict)
    """The format's own options (`windtunnel trace formats`); a wrong name is answered with the right ones."""


@spec
class Preset:
    """Requests drawn from a generator fitted to a real trace."""

    name: Name
    """Preset such as azure-conv (`windtunnel trace presets`)."""
    num_requests: Count = 1000
    """Requests to draw."""
    rate: PositiveNumber | None = None
    """Mean requests per second; null: that of the real trace."""
    steady: Bool = False
    """Leave the changes of the rate over hours out."""


@spec
class Window:
    """A stretch of the trace; what is left starts at time 0 again."""

    start_s: Seconds = 0.0
    """Start."""
    end_s: PositiveSeconds
    """End (exclusive)."""

    def __post_init__(self) -> None:
        if self.end_s <= self.start_s:
            raise ValueError(f"end_s ({self.end_s:g}) must be after start_s ({self.start_s:g}).")


@spec
class Clip:
    """Bounds on lengths; null: no bound."""

    max_prompt_tokens: Positive | None = None
    """Longest prompt, tokens."""
    max_output_tokens: Positive | None = None
    """Longest output, tokens."""


@spec
class Cascade:
    """Every request asks one model after the other until an answer is accepted (FrugalGPT)."""

    models: Annotated[tuple[Name, ...], Field(min_length=2)]
    """Labels in the order they are asked, the cheapest first; groups serve them by `serves`."""
    stop: tuple[Fraction, ...]
    """For each model but the last: the probability that its answer is accepted. An input, not simulated."""
    scorer_s: Seconds = 0.0
    """From an answer to the question to the next model."""

    def __post_init__(self) -> None:
        if len(self.stop) != len(self.models) - 1:
            needed = len(self.models) - 1
            raise ValueError(f"{needed + 1} models need {needed} values of stop, not {len(self.stop)}.")


@spec
class ChooseModel:
    """Each request asks one of two models (RouteLLM)."""

    strong: Name
    """Label of the strong model."""
    weak: Name
    """Label of the weak model."""
    strong_share: Fraction
    """Probability that a request asks the strong one. Which share keeps which quality is an input."""


@spec
class Tenants:
    """Who a conversation (or request, where there are none) belongs to."""

    count: Annotated[int, Field(strict=True, ge=1, le=1_000_000)]
    """Tenants."""
    zipf: NonNegativeNumber = 0.0
    """Their popularity: rank to the power of minus this."""


@spec
class Document:
    """A long document, the prompt of the request, worked through in pieces (Parrot's programs)."""

    chunk_tokens: Positive = 1024
    """Tokens of a piece."""
    output_tokens: Positive = 50
    """Tokens of each summary."""
    gap_s: Seconds = 0.0
    """From an answer to the calls that use it: the client's round trip."""


@spec
class Branches:
    """Lines of thought over one prompt, looked at after every round (self-consistency, tree search; Dynasor)."""

    count: Positive
    """Lines."""
    rounds: Positive
    """Rounds of each."""
    round_tokens: Positive
    """Tokens that a line writes in a round."""
    stop_share: Fraction = 0.0
    """Share of programs that are sure enough after `stop_rounds`; that answers stay right is an input."""
    stop_rounds: Positive = 1
    """Rounds of those."""
    gang: Bool = False
    """Requests of a program have its place in the order of arrival as priority: for `scheduling_policy: priority`."""
    gap_s: Seconds = 0.0
    """From the end of a round to the next."""
    block_tokens: Positive = 16
    """Tokens of a block of the prefixes that lines and rounds share."""

    def __post_init__(self) -> None:
        if self.stop_rounds != 1 and not self.stop_share:
            raise ValueError("'stop_rounds' is of the programs that stop early: give 'stop_share'.")


@spec
class AdapterMix:
    """Which adapter a request asks for."""

    count: Annotated[int, Field(strict=True, ge=1, le=1_000_000)]
    """Adapters."""
    zipf: NonNegativeNumber = 0.0
    """Their popularity: rank to the power of minus this."""
    in_turn: Bool = False
    """One after the other instead of drawn."""
    merged: Bool = False
    """They ask for a model of that name too, for groups of replicas that serve a merged copy (`serves`)."""

    def __post_init__(self) -> None:
        if self.in_turn and self.zipf:
            raise ValueError("adapters in turn are all alike; leave 'zipf' out.")


@spec
class Transform:
    """One change of the trace. Exactly one field is set; transforms apply in the order they are listed."""

    scale_rate: PositiveNumber | None = None
    """Multiply the arrival rate (2: twice as fast)."""
    to_rate: PositiveNumber | None = None
    """Stretch or squeeze the trace to this mean rate, requests per second."""
    arrivals: ArrivalsSpec | None = None
    """The same requests, in order, at the times of an arrival process."""
    window: Window | None = None
    """Keep a stretch of time."""
    sample: Annotated[float, Field(strict=True, gt=0, le=1, allow_inf_nan=False)] | None = None
    """Keep each conversation (or request, where there are none) with this probability."""
    repeat: Positive | None = None
    """Play the trace this many times, one after the other."""
    copies: Positive | None = None
    """Every request so often at once: samples of one prompt, or batches of equal lengths."""
    clip: Clip | None = None
    """Clip prompt and output lengths."""
    head: Count | None = None
    """Keep the first so many requests."""
    cascade: Cascade | None = None
    """Ask one model after the other."""
    choose_model: ChooseModel | None = None
    """Ask a strong or a weak model."""
    chain: Document | None = None
    """Each request becomes calls one after the other: every piece of its prompt with the summary so far."""
    map_reduce: Document | None = None
    """Each request becomes a call per piece of its prompt, and one over their summaries."""
    branches: Branches | None = None
    """Each request becomes several lines of thought over its prompt."""
    tenants: Annotated[Tenants, Shorthand("count", number=True)] | None = None
    """Draw tenants. A plain number is how many."""
    adapters: Annotated[AdapterMix, Shorthand("count", number=True)] | None = None
    """Draw adapters. A plain number is how many."""
    answers: Literal["in_next_turn"] | None = None
    """A turn's prompt holds the answers to the turns it continues, so that what they generated is a prefix hit."""
    cache_salt: Literal["tenant", "session"] | None = None
    """Requests hit the prefix cache's blocks of their own tenant (or conversation) only, as with vLLM's cache_salt."""

    def __post_init__(self) -> None:
        given = [f.name for f in fields(self) if getattr(self, f.name) is not None]
        if len(given) != 1:
            named = f" ({', '.join(given)})" if given else ""
            raise ValueError(f"a transform sets exactly one of its fields; this sets {len(given)}{named}.")


@spec
class ClosedLoop:
    """A fixed number of users, each sending its next request when the last one has finished."""

    users: Positive
    """Concurrent users (vLLM's --max-concurrency). Arrival times of the trace are ignored."""


@spec
class Workload:
    """What arrives. Exactly one of `trace`, `preset` and `synthetic`."""

    trace: Annotated[TraceFile, Shorthand("path")] | None = None
    """Requests read from a file. Plain text is its path."""
    preset: Annotated[Preset, Shorthand("name")] | None = None
    """Requests drawn from a fitted generator. Plain text is its name."""
    synthetic: Synthetic | None = None
    """Requests drawn from given distributions."""
    transforms: tuple[Transform, ...] = ()
    """Changes applied to the trace, in order."""
    closed_loop: ClosedLoop | None = None
    """Concurrent users instead of arrival times."""

    def __post_init__(self) -> None:
        given = [name for name in ("trace", "preset", "synthetic") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of trace, preset and synthetic; this has {len(given)}.")
