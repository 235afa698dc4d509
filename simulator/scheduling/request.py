"""One request inside an engine: counters only."""

from __future__ import annotations

from simulator.kv.prefix import BlockTable


class Request:
    """Counters of a request. There is no prefill or decode phase, only tokens still to compute.

    While the request *decodes* (its only work is one token per step) its ``num_computed_tokens`` is
    ``offset + token_steps`` of its engine, so that a step of the whole batch costs one addition.
    """

    __slots__ = (
        "arrival",
        "cached_tokens",
        "computed",
        "crossing",
        "decoding",
        "first_token_step",
        "lane",
        "last_step",
        "lost",
        "offset",
        "order",
        "output_tokens",
        "padding",
        "pause_s",
        "preemptions",
        "priority",
        "prompt_tokens",
        "reserved",
        "row",
        "session",
        "slo_class",
        "table",
        "target",
        "tenant",
    )
    # Set when the request is admitted: order, the admission number, and cached_tokens, its prefix hit. When it starts
    # to decode: lane, the batch it decodes in; offset; first_token_step; last_step, the token step count at its end.
    # crossing, the token step count at which its context reaches the model's sliding window, -1 from then on.
    # lost, the tokens it had computed when it was preempted; reserved, its blocks where the policy reserves them.
    cached_tokens: int
    crossing: int
    lost: int
    reserved: int
    lane: int
    order: int
    offset: int
    last_step: int

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
        self.tenant = 0  # label codes of the trace, for policies that ask; -1: the row has none
        self.slo_class = 0
        self.session = -1  # set, as pause_s, where turns wait for each other
        self.pause_s = -1.0  # from its end to the turn that waits for it; -1: none does
        self.target = prompt_tokens  # tokens known when it was (last) admitted: computing them yields the next token
        self.computed = 0  # tokens computed or in flight; stale while decoding
        self.decoding = False
        self.preemptions = 0
        self.padding = 0  # token steps it stays in the batch after its last token
        self.first_token_step = -1  # -1: has not decoded since it was admitted
