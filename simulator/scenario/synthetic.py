"""The ``workload.synthetic`` fields: arrivals, lengths and sessions; each builds its object of ``traces.generate``."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

from simulator.scenario.spec import (
    Bool,
    Count,
    Fraction,
    NonNegative,
    NonNegativeNumber,
    Number,
    Positive,
    PositiveNumber,
    PositiveSeconds,
    Seconds,
    spec,
)
from traces.generate import Arrivals, Distribution, Documents, Lengths, Sessions, diurnal
from traces.generate import arrivals as arrive
from traces.generate import distributions as dist

Correlation = Annotated[float, Field(strict=True, ge=-1, le=1, allow_inf_nan=False)]


@spec
class Poisson:
    """Independent arrivals."""

    process: Literal["poisson"]
    rate: PositiveNumber
    """Requests per second."""

    def build(self) -> Arrivals:
        return arrive.Poisson(self.rate)


@spec
class Gamma:
    """Gamma gaps, as `vllm bench serve --burstiness` draws them."""

    process: Literal["gamma"]
    rate: PositiveNumber
    """Requests per second."""
    burstiness: PositiveNumber = 1.0
    """Shape of the gaps: 1 is Poisson, below 1 burstier, above 1 more even."""

    def build(self) -> Arrivals:
        return arrive.Gamma(self.rate, self.burstiness)


@spec
class Weibull:
    """Weibull gaps."""

    process: Literal["weibull"]
    rate: PositiveNumber
    """Requests per second."""
    shape: PositiveNumber
    """1 is Poisson, below 1 burstier."""

    def build(self) -> Arrivals:
        return arrive.Weibull(self.rate, self.shape)


@spec
class Constant:
    """Evenly spaced arrivals."""

    process: Literal["constant"]
    rate: PositiveNumber
    """Requests per second."""

    def build(self) -> Arrivals:
        return arrive.Constant(self.rate)


@spec
class AtOnce:
    """Everything at 0 s: offline batch inference."""

    process: Literal["at_once"]

    def build(self) -> Arrivals:
        return arrive.AtOnce()


@spec
class Gaps:
    """Independent gaps from an empirical distribution, stretched to the rate."""

    process: Literal["gaps"]
    rate: PositiveNumber
    """Requests per second."""
    q: tuple[Fraction, ...]
    """Probabilities, rising from 0 to 1."""
    values: tuple[NonNegativeNumber, ...]
    """Gaps at those probabilities, in any unit."""

    def build(self) -> Arrivals:
        return arrive.Gaps(self.rate, self.q, self.values)


@spec
class OnOff:
    """Bursts: two rates, each for exponential times."""

    process: Literal["on_off"]
    rate_on: PositiveNumber
    """Requests per second while on."""
    rate_off: NonNegativeNumber = 0.0
    """Requests per second while off."""
    mean_on_s: PositiveSeconds
    """Mean time on."""
    mean_off_s: PositiveSeconds
    """Mean time off."""

    def build(self) -> Arrivals:
        return arrive.OnOff(self.rate_on, self.mean_on_s, self.mean_off_s, self.rate_off)


@spec
class RateCurve:
    """A rate that changes over time, linear between the given points."""

    process: Literal["rate_curve"]
    times_s: tuple[Seconds, ...]
    """Times, from 0; two equal times are a jump."""
    rates: tuple[NonNegativeNumber, ...]
    """Requests per second at those times."""
    burstiness: PositiveNumber = 1.0
    """Local burstiness, as in gamma."""
    repeat: Bool = True
    """Start over at the end (true) or hold the last rate (false)."""

    def build(self) -> Arrivals:
        gaps = arrive.Poisson(1.0) if self.burstiness == 1 else arrive.Gamma(1.0, self.burstiness)
        return arrive.RateCurve(self.times_s, self.rates, gaps, self.repeat)


@spec
class Diurnal:
    """A sine day."""

    process: Literal["diurnal"]
    rate: PositiveNumber
    """Mean requests per second."""
    amplitude: Fraction = 0.5
    """The peak is (1 + amplitude) times the mean."""
    peak_s: Seconds = 14 * 3600.0
    """Time of the peak."""
    period_s: PositiveSeconds = 86_400.0
    """Length of the day."""

    def build(self) -> Arrivals:
        return diurnal(self.rate, amplitude=self.amplitude, peak_s=self.peak_s, period_s=self.period_s)


ArrivalsSpec = Annotated[
    Poisson | Gamma | Weibull | Constant | AtOnce | Gaps | OnOff | RateCurve | Diurnal, Field(discriminator="process")
]


@spec
class Fixed:
    """Always the same value."""

    distribution: Literal["fixed"]
    value: NonNegativeNumber
    """The value. A plain number stands for this distribution."""

    def build(self) -> Distribution:
        return dist.Fixed(self.value)


@spec
class Uniform:
    """Equally likely between two bounds, both included."""

    distribution: Literal["uniform"]
    low: NonNegativeNumber
    """Lower bound."""
    high: NonNegativeNumber
    """Upper bound."""

    def build(self) -> Distribution:
        return dist.Uniform(self.low, self.high)


@spec
class Normal:
    """Normal; values outside the bounds move to the bound."""

    distribution: Literal["normal"]
    mean: Number
    """Mean."""
    std: NonNegativeNumber
    """Standard deviation."""
    low: NonNegativeNumber = 0.0
    """Lower bound."""
    high: NonNegativeNumber | None = None
    """Upper bound; null: none."""

    def build(self) -> Distribution:
        return dist.Normal(self.mean, self.std, self.low, _or_infinity(self.high))


@spec
class LogNormal:
    """Log-normal; values outside the bounds move to the bound."""

    distribution: Literal["lognormal"]
    median: PositiveNumber
    """Median."""
    sigma: NonNegativeNumber
    """Standard deviation of the logarithm."""
    low: NonNegativeNumber = 0.0
    """Lower bound."""
    high: NonNegativeNumber | None = None
    """Upper bound; null: none."""

    def build(self) -> Distribution:
        return dist.LogNormal(self.median, self.sigma, self.low, _or_infinity(self.high))


@spec
class Exponential:
    """Exponential."""

    distribution: Literal["exponential"]
    mean: PositiveNumber
    """Mean."""

    def build(self) -> Distribution:
        return dist.Exponential(self.mean)


@spec
class Geometric:
    """1, 2, 3, ... with the given mean: turns of a conversation."""

    distribution: Literal["geometric"]
    mean: Annotated[float, Field(strict=True, ge=1, allow_inf_nan=False)]
    """Mean."""

    def build(self) -> Distribution:
        return dist.Geometric(self.mean)


@spec
class Quantiles:
    """Empirical: values at given probabilities, linear between them."""

    distribution: Literal["quantiles"]
    q: tuple[Fraction, ...]
    """Probabilities, rising from 0 to 1."""
    values: tuple[NonNegativeNumber, ...]
    """Values at those probabilities."""

    def build(self) -> Distribution:
        return dist.Quantiles(self.q, self.values)


class _FixedShorthand:
    """A plain number is ``{distribution: fixed, value: ...}``."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self._expand, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [{"type": "number", "minimum": 0, "description": "always this value"}, handler(schema)]}

    def _expand(self, value: Any) -> Any:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return {"distribution": "fixed", "value": value} if is_number else value


DistributionSpec = Annotated[
    Fixed | Uniform | Normal | LogNormal | Exponential | Geometric | Quantiles,
    Field(discriminator="distribution"),
    _FixedShorthand(),
]


@spec
class LengthsSpec:
    """Prompt and output lengths."""

    prompt: DistributionSpec
    """Prompt tokens."""
    output: DistributionSpec
    """Output tokens."""
    correlation: Correlation = 0.0
    """Rank correlation (Spearman) of the two."""

    def build(self) -> Lengths:
        return Lengths(self.prompt.build(), self.output.build(), self.correlation)


def _fixed(value: float) -> Fixed:
    return Fixed(distribution="fixed", value=value)


@spec
class SessionsSpec:
    """Conversations: later turns carry the whole history, and share its prefix. Arrivals then start conversations."""

    turns: DistributionSpec = field(default_factory=lambda: _fixed(1))
    """Requests per conversation."""
    think_time_s: DistributionSpec = field(default_factory=lambda: _fixed(0))
    """From the end of a turn to the next (closed_loop) or from arrival to arrival."""
    new_tokens: DistributionSpec | None = None
    """Prompt tokens a later turn adds; null: drawn like the first turn's."""
    closed_loop: Bool = True
    """A turn waits for the answer to the one before."""
    turns_correlation: Correlation = 0.0
    """Rank correlation of a conversation's first prompt and its number of turns."""
    shared_prefix_tokens: NonNegative = 0
    """Tokens put in front of every conversation (a system prompt)."""
    groups: Annotated[int, Field(strict=True, ge=1, le=10_000_000)] = 1
    """Different shared prefixes."""
    zipf: NonNegativeNumber = 0.0
    """Popularity of the groups: rank to the power of minus this."""
    edit_probability: Fraction = 0.0
    """Chance that a turn rewrites part of the history, which ends the sharing there."""
    max_context_tokens: Annotated[int, Field(strict=True, ge=2, le=2**53)] | None = None
    """A conversation ends before prompt plus output exceed this."""
    block_tokens: Positive = 16
    """Tokens per prefix block."""

    def build(self) -> Sessions:
        return Sessions(
            turns=self.turns.build(),
            think_time_s=self.think_time_s.build(),
            new_tokens=self.new_tokens.build() if self.new_tokens else None,
            closed_loop=self.closed_loop,
            turns_correlation=self.turns_correlation,
            shared_prefix_tokens=self.shared_prefix_tokens,
            groups=self.groups,
            zipf=self.zipf,
            edit_probability=self.edit_probability,
            max_context_tokens=self.max_context_tokens,
            block_tokens=self.block_tokens,
        )


@spec
class DocumentsSpec:
    """What a retriever puts in front of every prompt (RAG); requests share documents, wherever they stand."""

    count: Annotated[int, Field(strict=True, ge=1, le=100_000_000)]
    """Documents in the collection."""
    tokens: DistributionSpec
    """Tokens of a document."""
    per_request: Annotated[int, Field(strict=True, ge=1, le=1000)] = 1
    """Different documents in each prompt."""
    zipf: NonNegativeNumber = 0.0
    """Popularity of the documents: rank to the power of minus this."""
    shared_prefix_tokens: NonNegative = 0
    """Tokens of a system prompt before them."""
    block_tokens: Positive = 16
    """Tokens per prefix block."""

    def build(self) -> Documents:
        return Documents(
            count=self.count,
            tokens=self.tokens.build(),
            per_request=self.per_request,
            zipf=self.zipf,
            shared_prefix_tokens=self.shared_prefix_tokens,
            block_tokens=self.block_tokens,
        )


@spec
class Synthetic:
    """Requests drawn from given distributions."""

    num_requests: Count
    """Requests to draw."""
    arrivals: ArrivalsSpec
    """When they come."""
    lengths: LengthsSpec
    """How long they are."""
    sessions: SessionsSpec | None = None
    """How they form conversations; null: they do not."""
    documents: DocumentsSpec | None = None
    """What is retrieved for each of them; `lengths.prompt` is then the question. null: nothing."""

    def __post_init__(self) -> None:
        if self.sessions is not None and self.documents is not None:
            raise ValueError("give either 'sessions' or 'documents'.")


def _or_infinity(value: float | None) -> float:
    return float("inf") if value is None else value
