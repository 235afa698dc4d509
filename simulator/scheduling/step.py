"""What an engine policy answers: which tokens the next step computes."""

from __future__ import annotations

from simulator.scheduling.request import Request


class Step:
    """A plan: the decoding batch (less ``held``) makes one token each, and ``chunks`` of prompts are computed."""

    __slots__ = (
        "admitted",
        "chunks",
        "completed",
        "decodes",
        "extra_s",
        "held",
        "preempted",
        "prefill_tokens",
        "requests",
    )

    def __init__(self, *, decodes: bool) -> None:
        self.decodes = decodes
        self.chunks: list[tuple[int, int]] = []  # (new tokens, tokens computed before)
        self.requests: list[Request] = []  # of the chunks
        self.completed: list[Request] = []  # whose chunk yields a token at the end of the step
        self.admitted: list[Request] = []
        self.preempted: list[Request] = []
        self.held: list[Request] = []  # decoding requests left out of this step
        self.prefill_tokens = 0
        self.extra_s = 0.0  # s, time on top of the computation (swapping)


DECODE = Step(decodes=True)
"""Every decoding request makes a token and nothing else happens: the plan repeats until something changes."""
