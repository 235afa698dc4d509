"""WEKA agentic-coding conversations: one JSON object per line, requests with nested sub-agents.

Source: github.com/callanjfox/kv-cache-tester (Apache-2.0), in the compact form: ``id``, ``block_size``,
``tool_tokens``, ``system_tokens``, ``requests``; a request has ``t`` (s), ``in``, ``out``, ``think_time``, ``model``
and ``h``, its block ids run-length coded as ``[[first, count], ...]``; an entry of type ``subagent`` nests the requests
of another agent, timed from its own ``t``.

Each agent is a session: the main one of a conversation and every sub-agent. A sub-agent's first turn comes when the
conversation's clock says so, since nothing in the table can say "when the parent calls it". Ids are local to their
conversation and are made disjoint. Conversations have no common clock: all start at 0 s unless ``session_rate`` spreads
them evenly.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from traces.formats.base import MAX_TOKENS, Format, Rows, Sample, Source, read_jsonl
from traces.prefix import cut_to_full_blocks, ensure_chained, from_rows
from traces.trace import Trace


@dataclass(slots=True)
class _Request:
    line: int
    conversation: int  # which ids belong together
    session: int
    turn: int
    entry: dict[str, Any]
    at: float  # s, start of its agent
    shared: tuple[int, int, str] | None  # key of the tool and system prompt, where it is taken as common


def read(
    source: Source,
    *,
    session_rate: float | None = None,
    conversations: int | None = None,
    share_system_prompts: bool = False,
    open_loop: bool = False,
) -> Trace:
    """session_rate: conversations/s, evenly spaced. conversations: only the first so many (the whole set of 710 holds
    94 million block ids, 2 GB while it is read). share_system_prompts: conversations whose model, tool and system
    prompts have the same lengths share those tokens (an assumption: their ids are local). open_loop: keep the recorded
    times instead of waiting for the turn before.
    """
    if session_rate is not None and not 0 < session_rate < float("inf"):
        raise source.error(f"session_rate must be > 0 and finite, not {session_rate}")
    if conversations is not None:
        if conversations < 1:
            raise source.error(f"conversations must be >= 1, not {conversations}")
        lines = [line for line in source.data.split(b"\n") if line.strip()][:conversations]
        source = replace(source, data=b"\n".join(lines))
    outer = read_jsonl(source, ("block_size", "requests"), ("id", "tool_tokens", "system_tokens"))
    sizes = {size for size in outer.columns["block_size"] if type(size) is int and size > 0}
    if len(sizes) != 1:
        raise source.error(f"needs one block_size for all conversations, not {sorted(sizes)[:5]}")
    requests = list(_all_requests(outer))
    rows = _rows(source, outer, requests)
    prompt = rows.tokens("in")
    prefix = _prefix(rows, requests, sizes.pop(), share=share_system_prompts)
    start = np.array([r.conversation for r in requests]) / session_rate if session_rate else 0.0
    if session_rate is None:
        rows.remarks.append("conversations have no common clock: every one starts at 0 s (spread them: session_rate)")
    turn = np.array([r.turn for r in requests], dtype=np.int64)
    return rows.build(
        arrival=rows.floats("t", low=0) + np.array([r.at for r in requests]) + start,
        prompt_tokens=prompt,
        output_tokens=rows.tokens("out"),
        session=np.array([r.session for r in requests], dtype=np.int64),
        turn=turn,
        think_time=None if open_loop else _think_times(rows, turn),
        prefix=cut_to_full_blocks(prefix, prompt),
        model=rows.labels("model"),
        nested=True,
    )


def _all_requests(outer: Rows) -> Iterator[_Request]:
    next_session = 0
    for i, entries in enumerate(outer.columns["requests"]):
        line = int(outer.line[i])
        if not isinstance(entries, list):
            outer.fault(line, "requests is not a list")
            continue
        agents = [(entries, 0.0)]
        while agents:
            agent, start = agents.pop()
            session, next_session, turn = next_session, next_session + 1, 0
            for entry in agent:
                if not isinstance(entry, dict):
                    outer.fault(line, f"a request is not an object but {type(entry).__name__}")
                elif isinstance(nested := entry.get("requests"), list):
                    t = entry.get("t")
                    agents.append((nested, start + (float(t) if isinstance(t, int | float) else 0.0)))
                else:
                    yield _Request(line, i, session, turn, entry, start, _shared_key(outer, i, entry, start))
                    turn += 1


def _shared_key(outer: Rows, i: int, entry: dict[str, Any], start: float) -> tuple[int, int, str] | None:
    """Only the main agent's prompt begins with the conversation's tool and system prompt."""
    tool, system = (outer.columns.get(name, [None] * (i + 1))[i] for name in ("tool_tokens", "system_tokens"))
    if start > 0 or type(tool) is not int or type(system) is not int:
        return None
    return tool, system, str(entry.get("model"))


def _rows(source: Source, outer: Rows, requests: list[_Request]) -> Rows:
    rows = Rows(source, np.array([r.line for r in requests], dtype=np.int64), {}, np.ones(len(requests), dtype=bool))
    rows.faults, rows.count = outer.faults, outer.count
    for name in ("t", "in", "out", "think_time", "model", "h"):
        rows.columns[name] = [r.entry.get(name) for r in requests]
    return rows


def _think_times(rows: Rows, turn: np.ndarray[Any, np.dtype[np.int64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """NaN for an agent's first turn, and where the file gives no think time (the recorded arrival then stands)."""
    values = [float(v) if type(v) in (int, float) and v >= 0 else float("nan") for v in rows.columns["think_time"]]
    return np.where((turn > 0) & np.isfinite(values), values, np.nan)


def _prefix(rows: Rows, requests: list[_Request], block_tokens: int, *, share: bool) -> Any:
    lists = []
    wrong = np.zeros(len(rows), dtype=bool)
    for k, runs in enumerate(rows.columns["h"]):
        ids = _unrolled(runs)
        wrong[k] = ids is None
        lists.append(ids if ids is not None else np.zeros(0, dtype=np.int64))
    rows.refuse("h", wrong, "is not a list of [first id, count] pairs")
    # Local ids become global by their conversation; conversations that share a system prompt have its blocks in common.
    span = np.zeros(max((r.conversation for r in requests), default=0) + 1, dtype=np.int64)
    for ids, request in zip(lists, requests, strict=True):
        span[request.conversation] = max(span[request.conversation], int(ids.max(initial=-1)) + 1)
    first = np.cumsum(span) - span
    base = [ids + first[request.conversation] for ids, request in zip(lists, requests, strict=True)]
    if share:
        keys: dict[tuple[int, int, str], int] = {}
        common, longest = int(span.sum()), max((len(ids) for ids in lists), default=0)
        for ids, request in zip(base, requests, strict=True):
            if request.shared is not None:
                key = keys.setdefault(request.shared, len(keys))
                blocks = min((request.shared[0] + request.shared[1]) // block_tokens, len(ids))
                ids[:blocks] = common + key * longest + np.arange(blocks)
    return ensure_chained(from_rows(base, block_tokens))


def _unrolled(runs: Any) -> np.ndarray[Any, np.dtype[np.int64]] | None:
    if not isinstance(runs, list):
        return None
    parts = []
    for run in runs:
        if not (isinstance(run, list) and len(run) == 2 and all(type(x) is int for x in run)):
            return None
        first, count = run
        if not (0 <= first < 2**40 and 0 <= count <= MAX_TOKENS // 64):
            return None
        parts.append(np.arange(first, first + count, dtype=np.int64))
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)


def _matches(sample: Sample) -> bool:
    return any({"block_size", "requests", "hash_id_scope"} <= record.keys() for record in sample.records)


FORMAT = Format(
    "weka", "WEKA agentic conversations (JSON lines, nested sub-agents, run-length hash ids)", read, _matches
)
