"""RAGPulse: a week of a university's RAG service, ``0_trace.jsonl`` with the prompt's parts named by id.

Source: github.com/flashserve/RAGPulse (MIT). A prompt is its system prompt, passages, history, web search results and
user input, in this order; the files ``1_*`` to ``5_*`` beside the trace give each part's tokens. Two prompts share a
block when all parts up to its end are the same. The 6 to 12 tokens of template that the parts leave over stand at the
end. ``session_id`` becomes the session; its turns arrive open loop. System prompts and passages are the chunks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from traces.formats.base import Format, Rows, Sample, Source, open_source, read_jsonl
from traces.prefix import blocks_of_parts, cut_to_full_blocks, from_rows, positions, row_cumsum
from traces.trace import Chunks, Ints, PrefixBlocks, Trace

PARTS = ("sys_prompt", "passages_ids", "history", "web_search", "user_input")
_FILES = {
    "1_sys_prompt.jsonl": "sys_prompt_id",
    "2_passages.jsonl": "passage_id",
    "3_history.jsonl": "history_id",
    "4_user_input.jsonl": "user_input_id",
    "5_web_search.jsonl": "web_search_id",
}


def read(source: Source, *, block_tokens: int = 16) -> Trace:
    """block_tokens: tokens per block of the resulting ids; the parts themselves have any length."""
    if block_tokens < 1:
        raise source.error(f"block_tokens must be >= 1, not {block_tokens}")
    rows = read_jsonl(source, ("timestamp", "input_length", "output_length", "hash_ids"), ("session_id",))
    prompt = rows.tokens("input_length")
    parts = _parts(rows)
    tokens = _part_tokens(source, rows, parts)
    prefix = blocks_of_parts(parts, tokens, block_tokens)
    session, turn = _sessions(rows)
    return rows.build(
        arrival=rows.floats("timestamp", low=0),
        prompt_tokens=prompt,
        output_tokens=rows.tokens("output_length"),
        prefix=cut_to_full_blocks(prefix, prompt),
        session=session,
        turn=turn,
        chunks=_leading_chunks(rows, parts, tokens, prompt),
    )


def _parts(rows: Rows) -> PrefixBlocks:
    """The parts' ids in prompt order, as ragged rows (their "block size" is meaningless and 1)."""
    values = rows.columns["hash_ids"]
    wrong = np.array([not _is_parts(v) for v in values], dtype=bool)
    rows.refuse("hash_ids", wrong, f"is not an object with lists of ids under {', '.join(PARTS)}")
    lists = [[i for part in PARTS for i in v.get(part, ())] if ok else [] for v, ok in zip(values, ~wrong, strict=True)]
    return from_rows(lists, 1)


def _is_parts(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(ids, list) and all(type(i) is int and 0 <= i < 2**62 for i in ids)
        for ids in (value.get(part, []) for part in PARTS)
    )


def _leading_chunks(rows: Rows, parts: PrefixBlocks, tokens: Ints, prompt: Ints) -> Chunks:
    """System prompts and passages: what later prompts may hold again in another place."""
    retrieved = [
        sum(len(v.get(part, ())) for part in PARTS[:2]) if ok else 0
        for v, ok in zip(rows.columns["hash_ids"], rows.ok, strict=True)
    ]
    leading = positions(parts) < np.repeat(retrieved, parts.counts())
    fits = row_cumsum(tokens, parts.offsets) <= np.repeat(prompt, parts.counts())
    return Chunks(parts.offsets, parts.ids, np.maximum(tokens, 1)).keep(leading & fits & (tokens > 0))


def _part_tokens(source: Source, rows: Rows, parts: PrefixBlocks) -> Ints:
    """Tokens of every listed part; a row with an unknown part is turned down."""
    found = [_read_part_file(source, name, key) for name, key in _FILES.items()]
    ids = np.concatenate([i for i, _ in found])
    tokens = np.concatenate([t for _, t in found])
    order = np.argsort(ids, kind="stable")
    ids, tokens = ids[order], tokens[order]
    at = np.searchsorted(ids, parts.ids).clip(max=max(len(ids) - 1, 0))
    unknown = ids[at] != parts.ids
    row = np.repeat(np.arange(len(parts)), parts.counts())
    bad = np.zeros(len(parts), dtype=bool)
    bad[row[unknown]] = True
    rows.refuse("hash_ids", bad, "names a part whose length no file gives")
    return np.where(unknown, 0, tokens[at])


def _read_part_file(source: Source, name: str, key: str) -> tuple[Ints, Ints]:
    folder = source.path.parent
    path = next((p for p in (folder / name, folder / f"{name}.gz") if p.exists()), None)
    if path is None:
        raise source.error(f"needs {name} (or {name}.gz) beside it", remedy=f"Copy it from the dataset to {folder}.")
    rows = read_jsonl(open_source(Path(path), strict=source.strict), (key, "token_length"))
    ids, tokens = rows.whole(key, low=0), rows.whole("token_length", low=0)
    if not rows.ok.any():
        raise rows.source.error("holds no part lengths")
    return ids[rows.ok], tokens[rows.ok]


def _sessions(rows: Rows) -> tuple[Ints | None, Ints | None]:
    labels = rows.labels("session_id")
    if labels is None:
        return None, None
    session = labels.codes.astype(np.int64)
    time = np.where(rows.ok, rows.floats("timestamp"), np.inf)
    order = np.lexsort((time, session))
    turn: NDArray[np.int64] = np.zeros(len(session), dtype=np.int64)
    grouped = session[order]
    starts = np.flatnonzero(np.concatenate(([True], grouped[1:] != grouped[:-1])))
    turn[order] = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
    return session, np.where(session < 0, 0, turn)


def _matches(sample: Sample) -> bool:
    return any(isinstance(record.get("hash_ids"), dict) for record in sample.records)


FORMAT = Format("ragpulse", "RAGPulse 0_trace.jsonl with its part files beside it", read, _matches)
