"""WEKA agentic-coding conversations: one JSON object per line, requests with nested sub-agents.

Source: github.com/callanjfox/kv-cache-tester (Apache-2.0), in the compact form: ``id``, ``block_size``,
``tool_tokens``, ``system_tokens``, ``requests``; a request has ``t`` (s), ``in``, ``out``, ``think_time``, ``model``
and ``h``, its block ids run-length coded as ``[[first, count], ...]``; an entry of type ``subagent`` nests the requests
of another agent, timed from its own ``t``.

A conversation is a session, sub-agents included, its turns numbered by recorded time. A sub-agent's entry is written
when it returns: it began ``duration_ms`` earlier (without that, at its ``t``). Its first turn waits for the turn of its
parent that called it, each later turn for the agent's own one before, and the parent's next turn for the sub-agents
that have returned by then (column ``after``); ``think_time`` is what passed between. Ids are local to their
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
from traces.trace import After, Trace


@dataclass(slots=True)
class _Request:
    line: int
    conversation: int  # which ids belong together
    entry: dict[str, Any]
    start: float  # s, of its agent
    shared: tuple[int, int, str] | None  # key of the tool and system prompt, where it is taken as common
    waits: list[_Request]
    think: float = float("nan")  # s from the end of the last of those to this one
    turn: int = 0

    @property
    def time(self) -> float:
        """Recorded arrival, s."""
        return self.start + _number(self.entry.get("t"))

    @property
    def end(self) -> float:
        """Recorded end, s."""
        return self.time + _number(self.entry.get("api_time"))


@dataclass(slots=True)
class _Agent:
    """A sub-agent that has been called: its last turn, and when it returned (s)."""

    last: _Request
    returned: float


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
    after = None if open_loop else After.of([[other.turn for other in r.waits] for r in requests])
    return rows.build(
        arrival=rows.floats("t", low=0) + np.array([r.start for r in requests]) + start,
        prompt_tokens=prompt,
        output_tokens=rows.tokens("out"),
        session=np.array([r.conversation for r in requests], dtype=np.int64),
        turn=turn,
        think_time=None if open_loop else np.array([r.think for r in requests]),
        after=after,
        prefix=cut_to_full_blocks(prefix, prompt),
        model=rows.labels("model"),
        nested=True,
    )


def _all_requests(outer: Rows) -> Iterator[_Request]:
    for i, entries in enumerate(outer.columns["requests"]):
        if not isinstance(entries, list):
            outer.fault(int(outer.line[i]), "requests is not a list")
            continue
        found: list[_Request] = []
        _agent(outer, i, entries, 0.0, None, found)
        by_time = sorted(range(len(found)), key=lambda k: (found[k].time, k))
        for turn, k in enumerate(by_time):
            found[k].turn = turn
        yield from found


def _agent(
    outer: Rows, i: int, entries: list[Any], start: float, caller: _Request | None, found: list[_Request]
) -> _Request | None:
    """Collect an agent's turns and those of the agents it calls; returns its last turn."""
    last: _Request | None = None
    called: list[_Agent] = []
    for entry in entries:
        if not isinstance(entry, dict):
            outer.fault(int(outer.line[i]), f"a request is not an object but {type(entry).__name__}")
        elif isinstance(nested := entry.get("requests"), list):
            returned = start + _number(entry.get("t"))
            began = max(returned - _number(entry.get("duration_ms")) / 1000.0, start)
            parent = last if last is not None else caller
            end = _agent(outer, i, nested, began, parent, found)
            if end is not None:
                called.append(_Agent(end, returned))
        else:
            request = _Request(int(outer.line[i]), i, entry, start, _shared_key(outer, i, entry, start), [])
            back = [agent for agent in called if agent.returned <= request.time]
            called = [agent for agent in called if agent.returned > request.time]
            before = last if last is not None else caller
            known = [r for r in (before, *(agent.last for agent in back)) if r is not None]
            request.waits = [r for r in known if r.time < request.time]
            _set_think(request, alone=last is not None and not back)
            found.append(request)
            last = request
    return last


def _set_think(request: _Request, *, alone: bool) -> None:
    """alone: it follows the agent's turn before and nothing else, so the file's own think time holds."""
    recorded = request.entry.get("think_time")
    if request.waits and alone and isinstance(recorded, int | float) and recorded >= 0:
        request.think = float(recorded)
    elif request.waits:
        request.think = max(request.time - max(other.end for other in request.waits), 0.0)


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and 0 <= value < float("inf") else 0.0


def _shared_key(outer: Rows, i: int, entry: dict[str, Any], start: float) -> tuple[int, int, str] | None:
    """Only the main agent's prompt begins with the conversation's tool and system prompt."""
    tool, system = (outer.columns.get(name, [None] * (i + 1))[i] for name in ("tool_tokens", "system_tokens"))
    if start > 0 or type(tool) is not int or type(system) is not int:
        return None
    return tool, system, str(entry.get("model"))


def _rows(source: Source, outer: Rows, requests: list[_Request]) -> Rows:
    rows = Rows(source, np.array([r.line for r in requests], dtype=np.int64), {}, np.ones(len(requests), dtype=bool))
    rows.faults, rows.count = outer.faults, outer.count
    for name in ("t", "in", "out", "model", "h"):
        rows.columns[name] = [r.entry.get(name) for r in requests]
    return rows


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
