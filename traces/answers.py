"""Answers that the next turn repeats: blocks that a decode fills and a later prompt hits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from simulator.core.errors import TraceError
from traces.trace import Ints, Trace

LOOK_BACK = 16  # turns of a conversation that a prompt may continue: sub-agents run beside each other


def with_answers(trace: Trace) -> Trace:
    """Say that a turn's prompt holds the answers to the turns that it continues, token for token.

    True of chats whose client sends the history back; not where it drops part of the answer (reasoning). The blocks
    that a prompt's end and its answer fill are then those of the next turn's prompt, which an engine can hit. Raises
    TraceError when the trace has no conversations or no blocks.
    """
    for name in ("session", "prefix"):
        if getattr(trace, name) is None:
            raise TraceError(
                f"answers: the trace has no {name} column, so no turn continues another", where=trace.source
            )
    return replace(trace, answers_stay=True)


def heirs(trace: Trace) -> Ints:
    """Row of the next turn whose prompt is longer and begins with all full blocks of each row's prompt; -1: none.

    A turn continues one turn, the one that it shares most blocks with: lines of thought over the same prompt go on side
    by side, in their order.
    """
    assert trace.session is not None
    assert trace.prefix is not None
    found = np.full(len(trace), -1, dtype=np.int64)
    turn = trace.turn if trace.turn is not None else np.arange(len(trace))
    offsets, ids = trace.prefix.offsets, trace.prefix.ids
    counts = trace.prefix.counts()
    open_rows: list[int] = []
    session = -1
    for row in np.lexsort((turn, trace.session)).tolist():
        if trace.session[row] < 0:
            continue
        if trace.session[row] != session:
            session, open_rows = trace.session[row], []
        best = -1
        for before in open_rows:
            last = counts[before] - 1
            begins = last < 0 or (last < counts[row] and ids[offsets[row] + last] == ids[offsets[before] + last])
            longer = best < 0 or counts[before] > counts[best]
            if begins and longer and trace.prompt_tokens[row] > trace.prompt_tokens[before]:
                best = before
        if best >= 0:
            found[best] = row
            open_rows.remove(best)
        open_rows = [*open_rows[1 - LOOK_BACK :], row]
    return found
