"""The ``engine.speculative_config`` fields."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field

from simulator.scenario.spec import Bool, Fraction, Name, NonNegative, Positive, Seconds, spec
from simulator.scheduling.args import Speculation

Drafts = Annotated[int, Field(strict=True, ge=1, le=128)]


@spec
class SpeculativeSpec:
    """Drafts that a step verifies, under vLLM's names. What is accepted is drawn; give one of `synthetic_*`."""

    method: Literal["draft_model", "eagle", "eagle3", "mtp", "medusa", "ngram", "suffix", "lookahead"]
    """Who drafts: a draft model, a layer on the target's hidden states (eagle, eagle3, mtp), heads (medusa), earlier
    text (ngram, suffix), or guesses that come out of the verifying step (lookahead)."""
    model: Name | None = None
    """Draft model, a name in the catalogue; method `draft_model` has this or `config`."""
    config: Name | None = None
    """Path of the draft model's Hugging Face config.json, relative to the scenario file."""
    num_speculative_tokens: Drafts
    """Tokens drafted per request and step; the depth, where drafts are trees."""
    tree_size: Annotated[int, Field(strict=True, ge=1, le=4096)] | None = None
    """Tokens verified per request and step beside its last one, where drafts are trees; null: as many as are drafted.
    Lookahead decoding with window W, n-grams of N and G guesses: (W + G) (N - 1)."""
    synthetic_acceptance_rates: tuple[Fraction, ...] | None = None
    """Probability that the first, the first two, ... drafted tokens are all accepted; as many as are drafted."""
    synthetic_acceptance_rate: Fraction | None = None
    """Probability that a drafted token is accepted where those before it are: rates a, a^2, ..."""
    synthetic_acceptance_length: Annotated[float, Field(strict=True, ge=1, allow_inf_nan=False)] | None = None
    """Mean tokens per step, the verifier's own included; drawn with the least variance, as vLLM does."""
    num_speculative_tokens_per_batch_size: tuple[tuple[Positive, Positive, NonNegative], ...] = ()
    """(first, last batch size, tokens drafted): by the number of decoding requests. Gaps keep the number before."""
    draft_tensor_parallel_size: Positive | None = None
    """GPUs that share the draft model: 1 or, null, as many as the target's."""
    quantization: Name | None = None
    """Weight quantization of the draft model; null: as it is published."""
    parallel_drafting: Bool = False
    """All drafted tokens in one pass of the draft model."""
    draft_s: Seconds = 0.0
    """Time that looking up drafts takes on the CPU, per step; for ngram, suffix and lookahead."""

    def __post_init__(self) -> None:
        ways = (self.synthetic_acceptance_rates, self.synthetic_acceptance_rate, self.synthetic_acceptance_length)
        if sum(way is not None for way in ways) != 1:
            raise ValueError("give exactly one of synthetic_acceptance_rates, _rate and _length.")
        rates, drafts = self.synthetic_acceptance_rates, self.num_speculative_tokens
        if rates is not None and len(rates) != drafts:
            raise ValueError(f"synthetic_acceptance_rates has {len(rates)} rates for {drafts} drafted tokens.")
        if rates is not None and any(later > earlier for earlier, later in pairwise(rates)):
            raise ValueError("synthetic_acceptance_rates must not rise: later tokens need the earlier ones.")
        if self.synthetic_acceptance_length is not None and self.synthetic_acceptance_length > drafts + 1:
            raise ValueError(f"synthetic_acceptance_length is at most {drafts + 1}, with {drafts} drafted tokens.")
        if (self.model is not None) + (self.config is not None) != (self.method == "draft_model"):
            raise ValueError("give one of 'model' and 'config' with method draft_model, and neither with another.")
        self._check_unused()
        self._check_schedule()

    def _check_unused(self) -> None:
        """Refuse what means nothing to the method."""
        runs = self.method in {"draft_model", "eagle", "eagle3", "mtp"}
        if self.parallel_drafting and not runs:
            raise ValueError(f"parallel_drafting means nothing to {self.method}.")
        for name in ("draft_tensor_parallel_size", "quantization"):
            if getattr(self, name) is not None and self.method != "draft_model":
                raise ValueError(f"{name} is the draft model's; {self.method} has none.")
        if self.draft_s and self.method not in {"ngram", "suffix", "lookahead"}:
            raise ValueError(f"draft_s is of drafts that are looked up; those of {self.method} are priced.")
        if self.tree_size is not None and self.tree_size < self.num_speculative_tokens:
            raise ValueError("tree_size is at least num_speculative_tokens, the depth of the tree.")

    def _check_schedule(self) -> None:
        before = 0
        for first, last, drafts in self.num_speculative_tokens_per_batch_size:
            if first <= before or last < first or (not before and first != 1):
                raise ValueError("batch sizes must begin at 1, ascend and not overlap.")
            if drafts > self.num_speculative_tokens:
                raise ValueError(f"{drafts} tokens exceed num_speculative_tokens.")
            before = last

    def build_args(self) -> Speculation:
        """What the engine needs of it."""
        schedule = tuple((first, drafts) for first, _, drafts in self.num_speculative_tokens_per_batch_size)
        return Speculation(self.method, self.num_speculative_tokens, self.rates(), self.tree_size, schedule)

    def rates(self) -> tuple[float, ...]:
        """Of acceptance, by position."""
        n, rate, length = self.num_speculative_tokens, self.synthetic_acceptance_rate, self.synthetic_acceptance_length
        if rate is not None:
            return tuple(rate**i for i in range(1, n + 1))
        if length is not None:
            return tuple(min(max(length - 1 - i, 0.0), 1.0) for i in range(n))
        assert self.synthetic_acceptance_rates is not None
        return self.synthetic_acceptance_rates
