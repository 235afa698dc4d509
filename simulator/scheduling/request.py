"""One request inside an engine: counters only."""

from __future__ import annotations

from simulator.kv.prefix import BlockTable


class Request:
    """Counters of a request. There is no prefill or decode phase, only tokens still to compute.

    While the request *decodes* (its only work is one token per step) its ``num_computed_tokens`` is
    ``offset + token_steps`` of its engine, so that a step of the whole batch costs one addition.
    """

    __slots__ = (
        "adapter",
        "arrival",
        "cached_tokens",
        "computed",
        "decoding",
        "extra_ranges",
        "first_token",
        "first_token_step",
        "last_step",
        "offset",
        "order",
        "output_tokens",
        "preemptions",
        "priority",
        "prompt_tokens",
        "range_start",
        "row",
        "scheduled",
        "table",
        "target",
    )

    def __init__(
        self,
        row: int,
        arrival: float,
        prompt_tokens: int,
        output_tokens: int,
        priority: int = 0,
        table: BlockTable | None = None,
    ) -> None:
        self.row = row  # of the trace
        self.arrival = arrival  # s
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens  # to generate
        self.priority = priority
        self.table = table
        self.target = prompt_tokens  # tokens known when it was (last) admitted: computing them yields the next token
        self.computed = 0  # tokens computed or in flight; stale while decoding
        self.decoding = False
        self.offset = 0
        self.last_step = 0  # token step count at which its last token is made, while decoding
        self.order = 0  # admission number: position in ``running``
        self.cached_tokens = -1
        self.preemptions = 0
        self.scheduled = -1.0  # s
        self.first_token = -1.0  # s
        self.first_token_step = 0
        self.range_start = -1.0  # s
        self.extra_ranges: list[tuple[int, int, float]] | None = None
