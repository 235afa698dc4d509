"""Conversations: turns that follow each other, histories that grow, and the prefixes this shares.

Prompt of turn ``k`` = shared prefix + everything said before (prompts and outputs) + new tokens. Its full blocks carry
chained ids: a later turn has the ids of all it inherits, conversations of one group those of their shared prefix.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.core.errors import TraceError
from traces.generate.distributions import Distribution, Fixed, below_one, whole
from traces.generate.lengths import Lengths, coupled_uniforms
from traces.trace import Floats, Ints, PrefixBlocks

NOMINAL_TPOT_S = (
    0.03  # stands in for the unknown response time where an arrival must be written down before it is known
)


@dataclass(frozen=True, slots=True)
class Sessions:
    """How requests form conversations.

    turns: requests per conversation. think_time_s: from the end of a turn to the next arrival (closed loop), or from
    arrival to arrival (open loop). new_tokens: prompt tokens that a later turn adds; None draws them like the first
    turn's. turns_correlation: Spearman's rho between a conversation's first prompt and its number of turns.
    shared_prefix_tokens: put in front of every conversation, one text per group; groups are drawn with probability
    proportional to ``rank ** -zipf``. edit_probability: chance that a later turn rewrites a uniformly chosen tail of
    the history (edit, regenerate, trim), which ends the sharing there. max_context_tokens: a conversation ends
    before prompt + output would exceed it. block_tokens: tokens per id.
    """

    turns: Distribution = field(default_factory=lambda: Fixed(1))
    think_time_s: Distribution = field(default_factory=lambda: Fixed(0))
    new_tokens: Distribution | None = None
    closed_loop: bool = True
    turns_correlation: float = 0.0
    shared_prefix_tokens: int = 0
    groups: int = 1
    zipf: float = 0.0
    edit_probability: float = 0.0
    max_context_tokens: int | None = None
    block_tokens: int = 16

    def __post_init__(self) -> None:
        for name, low in (("shared_prefix_tokens", 0), ("groups", 1), ("block_tokens", 1), ("zipf", 0)):
            if not getattr(self, name) >= low:
                raise TraceError(f"sessions: {name} must be >= {low}, not {getattr(self, name)}")
        for name in ("turns", "new_tokens"):
            drawn = getattr(self, name)
            if drawn is not None and below_one(drawn) == 1.0:
                raise TraceError(f"sessions: every value drawn for {name} is 0: give 1 or more")
        if not 0 <= self.edit_probability <= 1:
            raise TraceError(f"sessions: edit_probability must lie in [0, 1], not {self.edit_probability}")
        if not -1 <= self.turns_correlation <= 1:
            raise TraceError(f"sessions: turns_correlation must lie in [-1, 1], not {self.turns_correlation}")
        if self.max_context_tokens is not None and self.max_context_tokens < 2:
            raise TraceError(f"sessions: max_context_tokens must be >= 2, not {self.max_context_tokens}")


@dataclass(frozen=True, slots=True)
class Turns:
    """Rows of all conversations, conversation by conversation. ``kept`` is the share of the history a turn inherits."""

    session: Ints
    turn: Ints
    arrival: Floats
    think_time: Floats
    prompt_tokens: Ints
    output_tokens: Ints
    kept: Floats  # 1: all of it

    def select(self, index: NDArray[Any]) -> Turns:
        return Turns(**{f.name: getattr(self, f.name)[index] for f in fields(self)})


def sample_turns(
    starts: Floats, lengths: Lengths, sessions: Sessions, rng_lengths: np.random.Generator, rng: np.random.Generator
) -> Turns:
    """One conversation per start. Lengths come from ``rng_lengths``, everything else from ``rng``."""
    n = len(starts)
    u_first, u_turns = coupled_uniforms(n, sessions.turns_correlation, rng)
    count = whole(sessions.turns, u_turns)
    session = np.repeat(np.arange(n), count)
    turn = np.arange(len(session)) - np.repeat(np.cumsum(count) - count, count)
    added, output = lengths.sample(len(session), rng_lengths)
    if sessions.turns_correlation:
        added[turn == 0] = whole(lengths.prompt, u_first)
    if sessions.new_tokens is not None:
        added = np.where(turn == 0, added, whole(sessions.new_tokens, rng.random(len(session))))
    added = added + np.where(turn == 0, sessions.shared_prefix_tokens, 0)
    first = np.flatnonzero(turn == 0)
    said = np.cumsum(added + output)
    before = np.repeat(said[first] - added[first] - output[first], count)
    prompt = said - before - output
    think = sessions.think_time_s.ppf(rng.random(len(session)))
    wait = np.where(turn == 0, 0.0, think)
    if sessions.closed_loop:
        wait[1:] += np.where(turn[1:] == 0, 0.0, output[:-1] * NOMINAL_TPOT_S)
    clock = np.cumsum(wait)
    arrival = np.repeat(starts - clock[first], count) + clock
    edited = (turn > 0) & (rng.random(len(session)) < sessions.edit_probability)
    kept = np.where(edited, rng.random(len(session)), 1.0)
    closed = np.where((turn > 0) & sessions.closed_loop, think, np.nan)
    turns = Turns(session, turn, np.maximum(arrival, 0.0), closed, prompt, output, kept)
    return turns.select(_fits(prompt + output, turn, sessions.max_context_tokens))


def _fits(total: Ints, turn: Ints, limit: int | None) -> NDArray[np.bool_]:
    """Rows before their conversation outgrows the limit (the total only grows); a first turn always stays."""
    return np.ones(len(total), dtype=bool) if limit is None else (total <= limit) | (turn == 0)


def _groups(n: int, sessions: Sessions, rng: np.random.Generator) -> Ints:
    weight = np.arange(1, sessions.groups + 1) ** -float(sessions.zipf)
    return np.searchsorted(np.cumsum(weight / weight.sum()), rng.random(n), side="right").clip(max=sessions.groups - 1)


def prefix_blocks(turns: Turns, sessions: Sessions, rng: np.random.Generator) -> PrefixBlocks:
    """Chained ids of every row's full blocks.

    One range of ids per group for the shared prefixes, then one per conversation, then one per edit (what follows an
    edit differs from everything before). The rows of a conversation must be neighbours, and its first ones.
    """
    size, session = sessions.block_tokens, turns.session
    count = turns.prompt_tokens // size
    offsets = np.concatenate(([0], np.cumsum(count)))
    position = np.arange(offsets[-1]) - np.repeat(offsets[:-1], count)
    shared = sessions.shared_prefix_tokens // size
    num = int(session.max()) + 1 if len(session) else 0
    longest = np.zeros(num, dtype=np.int64)
    np.maximum.at(longest, session, count)
    base = sessions.groups * shared + np.cumsum(longest) - longest
    ids = np.repeat(base[session], count) + position
    next_id = sessions.groups * shared + int(longest.sum())
    end = np.searchsorted(session, session, side="right")
    for row in np.flatnonzero(turns.kept < 1):
        cut = max(int(turns.kept[row] * count[row - 1]), shared)
        for later in range(row, end[row]):
            ids[offsets[later] + cut : offsets[later + 1]] = next_id + np.arange(max(count[later] - cut, 0))
        next_id += max(int(longest[session[row]]) - cut, 0)
    group = _groups(num, sessions, rng)
    if shared:
        leading = position < shared
        ids[leading] = np.repeat(group[session] * shared, count)[leading] + position[leading]
    return PrefixBlocks(offsets, ids, size)
