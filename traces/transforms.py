"""Traces made from traces. Pure functions; order of arrival is kept, and so is the meaning of block ids.

Taking turns of a conversation away (``window``) leaves the others as they are; the first one that is left loses its
think time, because there is no turn before it to wait for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from simulator.core.errors import TraceError
from traces.generate.arrivals import Arrivals
from traces.prefix import chain_ids, cut_to_full_blocks
from traces.trace import (
    FLOAT_COLUMNS,
    INT_COLUMNS,
    LABEL_COLUMNS,
    After,
    Chunks,
    Floats,
    Ints,
    Labels,
    PrefixBlocks,
    Trace,
)


def head(trace: Trace, n: int) -> Trace:
    """The first ``n`` requests."""
    return trace.head(n)


def scale_rate(trace: Trace, factor: float) -> Trace:
    """``factor`` times as many requests per second: times between arrivals divided by it, think times left alone."""
    if not 0 < factor < float("inf"):
        raise TraceError(f"scale_rate: factor must be > 0 and finite, not {factor}", where=trace.source)
    return replace(trace, arrival=trace.arrival / factor)


def to_rate(trace: Trace, rate: float) -> Trace:
    """Stretched or squeezed to ``rate`` requests/s on average."""
    if not 0 < rate < float("inf"):
        raise TraceError(f"to_rate: rate must be > 0 and finite, not {rate}", where=trace.source)
    if not trace.duration > 0:
        raise TraceError(
            "to_rate: all requests arrive at once, so there is no rate to change",
            where=trace.source, remedy="Give them arrivals with with_arrivals.",
        )  # fmt: skip
    return scale_rate(trace, rate / trace.rate)


def with_arrivals(trace: Trace, arrivals: Arrivals, rng: np.random.Generator) -> Trace:
    """The same requests in the same order at the times of an arrival process."""
    return replace(trace, arrival=arrivals.times(len(trace), rng))


def window(trace: Trace, start_s: float, end_s: float) -> Trace:
    """The requests with ``start_s <= arrival < end_s``; ``start_s`` becomes 0 s."""
    if not 0 <= start_s < end_s:
        raise TraceError(f"window: need 0 <= start_s < end_s, not {start_s} and {end_s}", where=trace.source)
    low, high = np.searchsorted(trace.arrival, (start_s, end_s))
    if low == high:
        raise TraceError(f"window: no request arrives in [{start_s:g}, {end_s:g}) s", where=trace.source)
    part = trace.select(np.arange(low, high))
    return _forget_first_think(replace(part, arrival=part.arrival - start_s))


def sample(trace: Trace, fraction: float, rng: np.random.Generator) -> Trace:
    """Each conversation (request, where there are none) is kept with probability ``fraction``: thinning."""
    if not 0 < fraction <= 1:
        raise TraceError(f"sample: fraction must lie in (0, 1], not {fraction}", where=trace.source)
    if trace.session is None:
        return trace.select(rng.random(len(trace)) < fraction)
    known, which = np.unique(trace.session, return_inverse=True)
    keep = (rng.random(len(known)) < fraction)[which]
    alone = trace.session < 0
    keep[alone] = rng.random(int(alone.sum())) < fraction
    return trace.select(keep)


def clip_lengths(trace: Trace, *, max_prompt_tokens: int | None = None, max_output_tokens: int | None = None) -> Trace:
    """Longer prompts and outputs cut to the limit; blocks beyond a cut prompt are dropped."""
    for name, limit in (("max_prompt_tokens", max_prompt_tokens), ("max_output_tokens", max_output_tokens)):
        if limit is not None and limit < 1:
            raise TraceError(f"clip_lengths: {name} must be >= 1, not {limit}", where=trace.source)
    prompt = np.minimum(trace.prompt_tokens, max_prompt_tokens or np.iinfo(np.int64).max)
    output = np.minimum(trace.output_tokens, max_output_tokens or np.iinfo(np.int64).max)
    cut = int(((prompt < trace.prompt_tokens) | (output < trace.output_tokens)).sum())
    prefix = cut_to_full_blocks(trace.prefix, prompt) if trace.prefix is not None else None
    chunks = _cut_chunks(trace.chunks, prompt) if trace.chunks is not None else None
    notes = (*trace.notes, f"{cut} requests cut to the length limits") if cut else trace.notes
    return replace(trace, prompt_tokens=prompt, output_tokens=output, prefix=prefix, chunks=chunks, notes=notes)


def _cut_chunks(chunks: Chunks, prompt: Ints) -> Chunks:
    """Drop the chunks that reach beyond their prompt."""
    running = np.concatenate(([0], np.cumsum(chunks.tokens)))
    within = running[1:] - np.repeat(running[chunks.offsets[:-1]], chunks.counts())
    return chunks.keep(within <= np.repeat(prompt, chunks.counts()))


def repeat(trace: Trace, times: int, *, gap_s: float | None = None, share_prefixes: bool = False) -> Trace:
    """The trace played ``times`` times in a row.

    gap_s: from the last arrival of a round to the first of the next; None: the mean gap. share_prefixes: rounds have
    the same prompts (a warm cache hits them all) instead of others of the same structure. Conversations are always new.
    """
    if times < 1:
        raise TraceError(f"repeat: times must be >= 1, not {times}", where=trace.source)
    if gap_s is not None and not 0 <= gap_s < float("inf"):
        raise TraceError(f"repeat: gap_s must be >= 0 and finite, not {gap_s}", where=trace.source)
    if len(trace) == 0:
        return trace
    gap = gap_s if gap_s is not None else (1 / trace.rate if trace.duration > 0 else 0.0)
    # The first round keeps its lead from 0 s; later ones follow the last arrival by the gap.
    rounds = [replace(trace, arrival=trace.arrival + i * (trace.duration + gap)) for i in range(times)]
    return replace(merge(rounds, share_prefixes=share_prefixes), source=trace.source, notes=trace.notes)


def copies(trace: Trace, each: int) -> Trace:
    """Every request so often at once, equal in all columns: samples of one prompt, or batches of equal lengths."""
    if each < 1:
        raise TraceError(f"copies: each must be >= 1, not {each}", where=trace.source)
    if trace.session is not None:
        remedy = "Copy requests that are no turns of conversations."
        raise TraceError("copies: a turn cannot be taken several times.", where=trace.source, remedy=remedy)
    return trace.select(np.repeat(np.arange(len(trace)), each))


def merge(traces: Sequence[Trace], *, share_prefixes: bool = False) -> Trace:
    """All requests of all traces in order of arrival (ties: in the order given).

    Conversations stay apart. Block ids of different traces are kept apart too, unless ``share_prefixes`` says that
    equal ids mean equal text. A column that only some have is filled with its "not given": session -1, think time NaN,
    priority 0, no label, no blocks.
    """
    if not traces:
        raise TraceError("merge: there is no trace to merge")
    columns: dict[str, Any] = {name: _joined(traces, name) for name in FLOAT_COLUMNS + INT_COLUMNS}
    columns |= {name: _joined_labels(traces, name) for name in LABEL_COLUMNS}
    columns["session"] = _joined_sessions(traces)
    columns["prefix"] = _joined_prefix(traces, share=share_prefixes)
    columns["chunks"] = _joined_chunks(traces, share=share_prefixes)
    columns["after"] = _joined_after(traces)
    order = np.argsort(columns["arrival"], kind="stable")
    taken: dict[str, Any] = {
        name: values.take(order) if isinstance(values, Labels | PrefixBlocks | Chunks | After) else values[order]
        for name, values in columns.items()
        if values is not None
    }
    notes = tuple(f"{t.source}: {note}" for t in traces for note in t.notes)
    stay = all(t.answers_stay for t in traces if t.session is not None) and taken.get("session") is not None
    return Trace(**taken, answers_stay=stay, source=" + ".join(t.source for t in traces), notes=notes)


_NOT_GIVEN: dict[str, float] = {"think_time": float("nan"), "turn": 0, "priority": 0, "session": -1}


def _joined(traces: Sequence[Trace], name: str) -> Floats | Ints | None:
    parts = [getattr(t, name) for t in traces]
    if all(part is None for part in parts):
        return None
    filled = [np.full(len(t), _NOT_GIVEN[name]) if p is None else p for t, p in zip(traces, parts, strict=True)]
    return np.concatenate(filled)


def _joined_labels(traces: Sequence[Trace], name: str) -> Labels | None:
    parts: list[Labels | None] = [getattr(t, name) for t in traces]
    names = tuple(dict.fromkeys(n for part in parts if part is not None for n in part.names))
    if all(part is None for part in parts):
        return None
    index = {n: i for i, n in enumerate(names)}
    codes = []
    for trace, part in zip(traces, parts, strict=True):
        if part is None:
            codes.append(np.full(len(trace), -1, dtype=np.int32))
        else:
            table = np.array([*(index[n] for n in part.names), -1], dtype=np.int32)
            codes.append(table[part.codes])
    return Labels(np.concatenate(codes), names)


def _joined_sessions(traces: Sequence[Trace]) -> Ints | None:
    if all(t.session is None for t in traces):
        return None
    first, parts = 0, []
    for trace in traces:
        session = trace.session if trace.session is not None else np.full(len(trace), -1, dtype=np.int64)
        known, which = np.unique(session, return_inverse=True)
        new = np.where(known < 0, -1, first + np.cumsum(known >= 0) - 1)
        first += int((known >= 0).sum())
        parts.append(new[which])
    return np.concatenate(parts)


def _joined_prefix(traces: Sequence[Trace], *, share: bool) -> PrefixBlocks | None:
    sizes = {t.prefix.block_tokens for t in traces if t.prefix is not None}
    if not sizes:
        return None
    if len(sizes) > 1:
        raise TraceError(f"merge: the traces' blocks hold different numbers of tokens: {sorted(sizes)}")
    first, ids, counts = 0, [], []
    for trace in traces:
        if trace.prefix is None:
            counts.append(np.zeros(len(trace), dtype=np.int64))
            continue
        own = trace.prefix.ids if share else chain_ids(trace.prefix).ids + first
        first = int(own.max(initial=first - 1)) + 1
        ids.append(own)
        counts.append(trace.prefix.counts())
    return PrefixBlocks(np.concatenate(([0], np.cumsum(np.concatenate(counts)))), np.concatenate(ids), sizes.pop())


def _joined_after(traces: Sequence[Trace]) -> After | None:
    if all(t.after is None for t in traces):
        return None
    parts = [After.of([()] * len(t)) if t.after is None else t.after for t in traces]
    counts = np.concatenate([part.counts() for part in parts])
    return After(np.concatenate(([0], np.cumsum(counts))), np.concatenate([part.turns for part in parts]))


def _joined_chunks(traces: Sequence[Trace], *, share: bool) -> Chunks | None:
    if all(t.chunks is None for t in traces):
        return None
    first, ids, tokens, counts = 0, [], [], []
    for trace in traces:
        chunks = trace.chunks
        if chunks is None:
            counts.append(np.zeros(len(trace), dtype=np.int64))
            continue
        _, dense = np.unique(chunks.ids, return_inverse=True)
        own = chunks.ids if share else dense.astype(np.int64) + first
        first = int(own.max(initial=first - 1)) + 1
        ids.append(own)
        tokens.append(chunks.tokens)
        counts.append(chunks.counts())
    return Chunks(np.concatenate(([0], np.cumsum(np.concatenate(counts)))), np.concatenate(ids), np.concatenate(tokens))


def _forget_first_think(trace: Trace) -> Trace:
    """No think time where the turn before is not in the trace."""
    if trace.think_time is None or trace.session is None:
        return trace
    _, first = np.unique(trace.session, return_index=True)
    think = trace.think_time.copy()
    think[first] = np.nan
    return replace(trace, think_time=think)
