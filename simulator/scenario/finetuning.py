"""The ``engine.finetuning`` fields."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from simulator.cost.finetuning import Finetuning
from simulator.scenario.spec import Bytes, Positive, PositiveSeconds, spec


@spec
class FinetuningSpec:
    """A fine-tuning job of an adapter beside the requests, which never ends."""

    mode: Literal["co-serving", "time-slice"] = "co-serving"
    """In the steps of the requests (FlexLLM), or alone for a share of the time."""
    step_s: PositiveSeconds = 0.05
    """What steps are filled to with tokens of the job: the time between tokens that requests may have."""
    share: Annotated[float, Field(strict=True, gt=0, lt=1, allow_inf_nan=False)] | None = None
    """Of the time that time slices take while there are requests."""
    sequence_tokens: Positive = 8192
    """Length of the job's samples."""
    memory_bytes: Bytes = 0.0
    """Activations, gradients and optimizer of the job on each GPU, taken from the KV cache."""

    def __post_init__(self) -> None:
        if (self.share is not None) != (self.mode == "time-slice"):
            raise ValueError("give 'share' with mode time-slice, and with no other.")

    def build_job(self) -> Finetuning:
        return Finetuning(self.step_s, self.share, self.sequence_tokens)
