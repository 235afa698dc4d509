"""The ``engine.lora_config`` fields."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from simulator.scenario.spec import Bool, NonNegative, Positive, spec

Module = Literal["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]


@spec
class LoraSpec:
    """LoRA adapters of the requests, under vLLM's names. Without it they cost nothing."""

    max_loras: Positive | None = None
    """Different adapters in a batch; vLLM's default is 1. null, with `unified_paging`: as many as fit."""
    max_lora_rank: Annotated[int, Field(strict=True, ge=1, le=512)] = 16
    """Rank that the slots of adapters are made for."""
    ranks: tuple[Annotated[int, Field(strict=True, ge=1, le=512)], ...] = ()
    """Ranks of the trace's adapters, in order and repeated; empty: all have `max_lora_rank`."""
    target_modules: tuple[Module, ...] = ()
    """Matrices adapted; empty: all of attention and MLP."""
    unified_paging: Bool = False
    """Adapters take KV blocks while they are used and are fetched ahead (S-LoRA), instead of `max_loras` slots."""

    merge_share: Annotated[float, Field(strict=True, gt=0, le=1, allow_inf_nan=False)] | None = None
    """Merge an adapter into the weights when this share of the requests waiting and running asks for it (dLoRA)."""
    merge_credit: NonNegative = 64
    """Requests with a merged adapter that may pass others before it is taken out again."""
    merge_pauses: Bool = False
    """Running requests for other adapters pause while one is merged, their KV where it is, instead of ending first."""

    def __post_init__(self) -> None:
        if self.max_loras is None and not self.unified_paging:
            raise ValueError("give max_loras, or unified_paging: true.")
        if any(rank > self.max_lora_rank for rank in self.ranks):
            raise ValueError(f"ranks exceed max_lora_rank = {self.max_lora_rank}.")
        if self.merge_share is not None and self.unified_paging:
            raise ValueError("adapters are merged from slots; leave unified_paging or merge_share out.")
        if self.merge_share is None and (self.merge_pauses or self.merge_credit != type(self).merge_credit):
            raise ValueError("nothing is merged without 'merge_share'.")
