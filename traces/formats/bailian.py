"""Qwen-Bailian traces: lengths and hashes of 16-token blocks, with ``chat_id``, ``parent_chat_id`` and ``turn``.

Source: github.com/alibaba-edu/qwen-bailian-usagetraces-anon (Apache-2.0), described in "KVCache Cache in the Wild"
(ATC'25, arXiv:2506.02634). A session is a root chat (``parent_chat_id`` -1) and all its descendants; turns count from 1
in the file and from 0 here. ``type`` (text, search, image, file) becomes the service class. Each block is hashed by its
own content, so ids are chained on reading.
"""

from __future__ import annotations

import numpy as np

from traces.formats.base import Format, Rows, Sample, Source
from traces.formats.hashed import read_hashed
from traces.trace import Ints, Trace


def read(source: Source, *, block_tokens: int = 16) -> Trace:
    """block_tokens: tokens that one hash stands for."""
    more = ("chat_id", "parent_chat_id", "turn", "type")
    h = read_hashed(source, block_tokens=block_tokens, seconds_per_unit=1.0, optional=more)
    rows = h.rows
    missing = [name for name in more[:3] if name not in rows.columns]
    if missing:
        raise source.error(f"no row has {missing[0]!r}", remedy="Without chats, read it as timed_trace.")
    chat, parent = rows.whole("chat_id"), rows.whole("parent_chat_id")
    turn = rows.whole("turn", low=1)
    return rows.build(
        arrival=h.arrival,
        prompt_tokens=h.prompt_tokens,
        output_tokens=h.output_tokens,
        prefix=h.prefix,
        session=_roots(rows, chat, parent),
        turn=turn - 1,
        slo_class=rows.labels("type"),
    )


def _roots(rows: Rows, chat: Ints, parent: Ints) -> Ints:
    """The first chat of each row's conversation, by pointer jumping; a parent outside the file starts one."""
    ids, at = np.unique(chat, return_index=True)
    where = np.searchsorted(ids, parent).clip(max=max(len(ids) - 1, 0))
    known = ids[where] == parent if len(ids) else np.zeros(0, dtype=bool)
    up = np.where(known & (parent != chat), at[where] if len(ids) else 0, np.arange(len(chat)))
    for _ in range(64):  # doubles the distance each time; a loop among parents never settles
        above = up[up]
        if (above == up).all():
            break
        up = above
    else:
        rows.remarks.append("some parent_chat_id chains run in circles; their rows keep an arbitrary session")
    orphans = int((~known & (parent >= 0)).sum())
    if orphans:
        rows.remarks.append(f"{orphans} rows continue a chat that began before the file; each begins a session")
    return chat[up]


def _matches(sample: Sample) -> bool:
    return any({"chat_id", "parent_chat_id", "input_length"} <= record.keys() for record in sample.records)


FORMAT = Format("bailian", "Qwen-Bailian JSON lines (chat_id, parent_chat_id, turn, 16-token hash_ids)", read, _matches)
