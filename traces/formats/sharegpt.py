"""ShareGPT-style conversations with given token counts: a JSON list (or one conversation per line).

``[{"id": ..., "conversations": [{"from": "human", "tokens": 12}, {"from": "gpt", "tokens": 340}, ...]}, ...]``

Messages may also stand under ``messages`` or ``turns``, speakers under ``role`` (user, assistant, system), counts under
``num_tokens`` or ``token_count``. Text without counts is refused: which tokenizer would count it is not ours to guess.
Each answer is one request: its prompt is everything said before. Turns follow the end of the one before after
``think_time_s`` (a message's own ``think_time`` wins); conversations begin at their ``arrival`` (s), else at 0 s.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from traces.formats.base import MAX_TOKENS, Format, Rows, Sample, Source
from traces.generate.sessions import NOMINAL_TPOT_S, Sessions, Turns, prefix_blocks
from traces.trace import Trace

_LISTS = ("conversations", "messages", "turns")
_COUNTS = ("tokens", "num_tokens", "token_count")
_SPEAKERS = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant",
    "bing": "assistant", "bard": "assistant", "system": "user", "tool": "user", "function": "user",
}  # fmt: skip


@dataclass(slots=True)
class _Turn:
    row: int  # conversation, from 1
    session: int
    turn: int
    arrival: float
    think_time: float
    prompt: int
    output: int


def read(source: Source, *, think_time_s: float = 0.0, block_tokens: int = 16) -> Trace:
    """think_time_s: between an answer and the next question. block_tokens: tokens per id of the growing history."""
    if not 0 <= think_time_s < float("inf") or block_tokens < 1:
        raise source.error(f"need think_time_s >= 0 and block_tokens >= 1, not {think_time_s} and {block_tokens}")
    rows = Rows(source, np.zeros(0, np.int64), {}, np.zeros(0, bool))
    turns = [t for item in _conversations(source, rows) for t in _turns(*item, rows, think_time_s)]
    rows.line = np.array([t.row for t in turns], dtype=np.int64)
    rows.ok = np.ones(len(turns), dtype=bool)
    prompt = np.array([t.prompt for t in turns], dtype=np.int64)
    output = np.array([t.output for t in turns], dtype=np.int64)
    session = np.array([t.session for t in turns], dtype=np.int64)
    turn = np.array([t.turn for t in turns], dtype=np.int64)
    arrival = np.array([t.arrival for t in turns], dtype=np.float64)
    think = np.array([t.think_time for t in turns], dtype=np.float64)
    table = Turns(session, turn, arrival, think, prompt, output, np.ones(len(turns)))
    prefix = prefix_blocks(table, Sessions(block_tokens=block_tokens), np.random.default_rng(0))  # one group: no draw
    return rows.build(
        arrival=arrival, prompt_tokens=prompt, output_tokens=output,
        session=session, turn=turn, think_time=think, prefix=prefix, nested=True,
    )  # fmt: skip


def _conversations(source: Source, rows: Rows) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """(position from 1, session, conversation); a position is the "line" of the notes."""
    session = 0
    for position, value in enumerate(_documents(source), start=1):
        if isinstance(value, dict):
            yield position, session, value
            session += 1
        else:
            rows.fault(position, f"conversation is not an object but {type(value).__name__}")


def _documents(source: Source) -> list[Any]:
    text = source.data.decode("utf-8", errors="replace").lstrip("\ufeff")
    try:
        if text.lstrip().startswith("["):
            values: list[Any] = json.loads(text)
            return values
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    except (ValueError, RecursionError) as error:
        raise source.error(f"is not JSON: {error}") from error


def _turns(row: int, session: int, talk: dict[str, Any], rows: Rows, think_time_s: float) -> list[_Turn]:
    """The requests of one conversation, up to its first fault."""
    messages = next((talk[key] for key in _LISTS if isinstance(talk.get(key), list)), None)
    if messages is None:
        rows.fault(row, f"conversation has no list under {', '.join(_LISTS)}")
        return []
    clock, said, think = _number(talk.get("arrival")) or 0.0, 0, think_time_s
    found: list[_Turn] = []
    for k, message in enumerate(messages):
        problem, speaker, tokens = _message(message)
        if problem is None and speaker == "assistant" and said == 0:
            problem = "answers before anything was asked"
        if problem is not None:
            rows.fault(row, f"message {k + 1} {problem}")
            return found
        if speaker == "assistant":
            first = not found
            clock += 0.0 if first else think
            found.append(_Turn(row, session, len(found), clock, float("nan") if first else think, said, tokens))
            clock += tokens * NOMINAL_TPOT_S
            think = think_time_s
        elif (own := _number(message.get("think_time"))) is not None:
            think = own
        said += tokens
    return found


def _message(message: Any) -> tuple[str | None, str, int]:
    """(what is wrong or None, user or assistant, tokens)."""
    if not isinstance(message, dict):
        return f"is not an object but {type(message).__name__}", "", 0
    named = message.get("from", message.get("role"))
    speaker = _SPEAKERS.get(named) if isinstance(named, str) else None
    if speaker is None:
        return f"has the speaker {named!r}, not one of {', '.join(_SPEAKERS)}", "", 0
    count = next((message[key] for key in _COUNTS if key in message), None)
    if type(count) is not int or not 1 <= count <= MAX_TOKENS:
        given = "no token count" if count is None else f"the token count {str(count)[:40]}"
        return f"has {given}; a whole number >= 1 is needed under {', '.join(_COUNTS)}", "", 0
    return None, speaker, count


def _number(value: Any) -> float | None:
    if type(value) in (int, float) and 0 <= value < 1e15:
        return float(value)
    return None


def _matches(sample: Sample) -> bool:
    return sample.json_array or any(isinstance(r.get(key), list) for r in sample.records for key in _LISTS)


FORMAT = Format("sharegpt", "ShareGPT-style conversations with token counts (JSON list or lines)", read, _matches)
