"""What a controller knows of a replica beforehand: step times and power at each clock, as a profiling run tells."""

from __future__ import annotations

from typing import Protocol


class Profile(Protocol):
    """One replica of a group. Clocks are shares of the maximum core clock."""

    max_num_seqs: int
    idle_w: float  # all its GPUs

    def decode_s(self, batch: int, context_tokens: int, clock: float) -> float:
        """A step in which ``batch`` requests make a token each over ``context_tokens`` tokens together, s."""
        ...

    def prompt_s(self, tokens: int, clock: float) -> float:
        """A step that computes so many prompt tokens, s."""
        ...

    def watts(self, tokens: int, clock: float) -> float:
        """Power of all its GPUs while a step of so many tokens runs."""
        ...
