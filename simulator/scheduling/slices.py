"""Slice-level batching: static batches that last no longer than a slice of output tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from simulator.core.options import Range, read_options
from simulator.scheduling.args import EngineArgs
from simulator.scheduling.paging import waiting_queue
from simulator.scheduling.policy import POLICIES
from simulator.scheduling.request import Request
from simulator.scheduling.reserving import longest_reservation
from simulator.scheduling.state import EngineState
from simulator.scheduling.static import Static


@dataclass(frozen=True, slots=True)
class SliceOptions:
    """slice_tokens: output tokens after which a request that has more to say goes back to the router."""

    slice_tokens: Annotated[int, Range(1)] = 128


@POLICIES.register("slices")
class Slices(Static):
    """Slice-level scheduling's engine: static batches of one slice.

    Decides: as policy ``static``, but nobody decodes more than ``slice_tokens`` in a batch, so each request reserves KV
    for what it has and for that many more. Requests that are not done go back to the router, which sends them to a
    replica anew (their KV is dropped: prompt and answer so far are the prompt of their next slice).
    Why it helps: how long a batch takes and how much KV it needs is known without knowing how long answers are, so
    batches are larger than where ``max_model_len`` is reserved, short answers wait for a slice at most, and load that
    turns out uneven is evened at the next slice.
    Limits: every slice computes the context again; padding up to a slice is left; so continuous batching with paged KV
    gains nothing by it but the balance. Batches take who waits, in order; the paper sorts a pool of all requests into
    batches of similar lengths (its engine pads prompts, this one does not).
    Reference: Cheng et al., Slice-Level Scheduling (arXiv:2406.13511); goes together with router ``max-min``.
    """

    holds = False

    def __init__(self, args: EngineArgs) -> None:
        self.slice_tokens = self.slice_of(args)
        self.max_num_seqs = args.max_num_seqs

    @classmethod
    def slice_of(cls, args: EngineArgs) -> int:
        return read_options(SliceOptions, args.policy, args.options).slice_tokens

    def prepare(self, state: EngineState) -> None:
        state.waiting = waiting_queue(state.args)
        self.longest = longest_reservation(state)  # blocks

    def reservation(self, state: EngineState, request: Request) -> int:
        """Blocks for all tokens but the slice's last, which needs none."""
        return min(-(-(request.target + self.slice_tokens - 1) // state.block_size), self.longest)
