"""Our own table as CSV or Parquet: the columns of ``Trace`` by name, plus any table through ``columns``.

``arrival``, ``prompt_tokens`` and ``output_tokens`` are needed, the others optional. ``columns`` says what a foreign
table calls them: ``columns={"arrival": "arrival_s", "tenant": "client"}``. In CSV, blocks stand in a column named
``prefix_<block_tokens>`` as ids separated by spaces, and chunks as ``id:tokens`` pairs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from simulator.core.names import suggestion
from traces.formats.base import Format, Rows, Sample, Source, read_csv, sample_of, to_floats
from traces.prefix import cut_to_full_blocks, ensure_chained
from traces.trace import (
    COLUMNS,
    LABEL_COLUMNS,
    METADATA_KEY,
    RAGGED_COLUMNS,
    After,
    Chunks,
    Floats,
    Ints,
    PrefixBlocks,
    Trace,
)

REQUIRED = ("arrival", "prompt_tokens", "output_tokens")
_PREFIX = re.compile(r"prefix_(\d{1,9})")
_CHUNK = re.compile(r"(\d{1,18}):([1-9]\d{0,11})")


def read(source: Source, *, columns: Mapping[str, str] | None = None, seconds_per_unit: float = 1.0) -> Trace:
    """columns: our name -> the file's name. seconds_per_unit: 0.001 when the file's times are in ms."""
    columns = dict(columns or {})
    for name in columns:
        if name not in COLUMNS:
            raise source.error(f"columns: {name!r} is not a column of a trace", remedy=suggestion(name, COLUMNS))
    if not seconds_per_unit > 0:
        raise source.error(f"seconds_per_unit must be > 0, not {seconds_per_unit}")
    sample = sample_of(source)
    if sample.parquet:
        return _read_parquet(source, columns, seconds_per_unit)
    prefix_name = columns.get("prefix") or next((n for n in sample.header if _PREFIX.fullmatch(n)), "prefix")
    names = {name: columns.get(name, name) for name in COLUMNS} | {"prefix": prefix_name}
    optional = [names[name] for name in COLUMNS if name not in REQUIRED]
    for ours, theirs in columns.items():
        if theirs.lower() not in {n.lower() for n in sample.header}:
            raise source.error(f"has no column {theirs!r} (columns: {ours})", remedy=suggestion(theirs, sample.header))
    rows = read_csv(source, [names[name] for name in REQUIRED], optional)
    rows.columns = {ours: rows.columns[theirs] for ours, theirs in names.items() if theirs in rows.columns}
    return _build(rows, prefix_name, seconds_per_unit)


def _build(rows: Rows, prefix_name: str, seconds_per_unit: float) -> Trace:
    present = rows.columns
    prompt = rows.tokens("prompt_tokens")
    optional: dict[str, Any] = {name: rows.labels(name) for name in LABEL_COLUMNS if name in present}
    optional |= {name: rows.whole(name) for name in ("session", "turn", "priority") if name in present}
    if "think_time" in present:
        optional["think_time"] = _think_time(rows, seconds_per_unit)
    if "prefix" in present:
        optional["prefix"] = _prefix(rows, prefix_name, prompt)
    if "chunks" in present:
        optional["chunks"] = _chunks(rows, prompt)
    if "after" in present:
        optional["after"] = _after(rows)
    return rows.build(
        arrival=rows.floats("arrival", low=0) * seconds_per_unit,
        prompt_tokens=prompt,
        output_tokens=rows.tokens("output_tokens"),
        **optional,
    )


def _think_time(rows: Rows, seconds_per_unit: float) -> Floats:
    """An empty field or nan: open loop."""
    values = to_floats(rows.columns["think_time"])
    empty = np.array([v is None or v.lower() == "nan" for v in rows.text("think_time")], dtype=bool)
    rows.refuse("think_time", ~np.isfinite(values) & ~empty, "is not a number of seconds")
    rows.refuse("think_time", values < 0, "must be >= 0 s")
    return np.where(np.isfinite(values), np.maximum(values, 0.0), np.nan) * seconds_per_unit


def _prefix(rows: Rows, name: str, prompt: Any) -> PrefixBlocks:
    match = _PREFIX.fullmatch(name)
    if match is None or int(match[1]) == 0:
        raise rows.source.error(
            f"column {name!r} does not say how many tokens a block holds", remedy="Name it prefix_16, for example."
        )
    lists: list[Any] = []
    for text in rows.text("prefix"):
        try:
            lists.append([int(word) for word in (text or "").split()])
        except ValueError:
            lists.append(text)
    rows.columns["prefix"] = lists
    return rows.blocks("prefix", int(match[1]), prompt)


def _chunks(rows: Rows, prompt: Ints) -> Chunks:
    """``id:tokens`` pairs separated by spaces."""
    lists: list[list[tuple[int, int]]] = []
    wrong = np.zeros(len(rows), dtype=bool)
    for i, text in enumerate(rows.text("chunks")):
        pairs = [_CHUNK.fullmatch(word) for word in (text or "").split()]
        found = [(int(pair[1]), int(pair[2])) for pair in pairs if pair is not None]
        wrong[i] = len(found) < len(pairs) or sum(tokens for _, tokens in found) > prompt[i]
        lists.append([] if wrong[i] else found)
    rows.refuse("chunks", wrong, "is not a list of id:tokens within the prompt")
    return chunks_of(lists)


def _after(rows: Rows) -> After:
    """Turns separated by spaces."""
    words = [(text or "").split() for text in rows.text("after")]
    wrong = np.array([not all(word.isdecimal() for word in row) for row in words], dtype=bool)
    rows.refuse("after", wrong, "is not a list of turns")
    return After.of([[] if bad else [int(word) for word in row] for row, bad in zip(words, wrong, strict=True)])


def chunks_of(rows: Sequence[Sequence[tuple[int, int]]]) -> Chunks:
    """CSR form of one list of (id, tokens) per request."""
    offsets = np.concatenate(([0], np.cumsum([len(row) for row in rows], dtype=np.int64)))
    flat = np.array([pair for row in rows for pair in row], dtype=np.int64).reshape(-1, 2)
    return Chunks(offsets, flat[:, 0], flat[:, 1])


def _read_parquet(source: Source, columns: Mapping[str, str], seconds_per_unit: float) -> Trace:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(pa.BufferReader(source.data))
    except (pa.ArrowException, OSError) as error:
        raise source.error(f"cannot be read as Parquet: {error}") from error
    names = {name: columns.get(name, name) for name in COLUMNS}
    wanted = [name for name in COLUMNS if name in REQUIRED or name in columns or names[name] in table.column_names]
    for name in wanted:
        if names[name] not in table.column_names:
            raise source.error(f"has no column {names[name]!r}", remedy=suggestion(names[name], table.column_names))
    meta = _metadata(source, table.schema.metadata or {})
    rows = Rows(source, np.arange(1, table.num_rows + 1), {}, np.ones(table.num_rows, dtype=bool))
    prefix = _arrow_prefix(source, table[names["prefix"]], meta) if "prefix" in wanted else None
    chunks = _arrow_chunks(source, table[names["chunks"]]) if "chunks" in wanted else None
    after = _arrow_after(source, table[names["after"]]) if "after" in wanted else None
    scalars = [name for name in wanted if name not in RAGGED_COLUMNS]
    rows.columns = {name: _strings(source, name, table[names[name]]) for name in scalars}
    trace = _build(rows, "", seconds_per_unit)
    keep = np.flatnonzero(rows.ok)
    # _build sorts stably by arrival; repeat it on the rows that were kept.
    order = keep[np.argsort(to_floats(rows.columns["arrival"])[keep], kind="stable")]
    if prefix is not None:
        prefix = ensure_chained(cut_to_full_blocks(prefix.take(order), trace.prompt_tokens))
    if chunks is not None:
        chunks = chunks.take(order)
    if after is not None:
        after = after.take(order)
    stay = meta.get("answers_stay") is True
    notes = (*meta.get("notes", ()), *trace.notes)
    return replace(trace, prefix=prefix, chunks=chunks, after=after, answers_stay=stay, notes=notes)


def _strings(source: Source, name: str, column: Any) -> Any:
    """The column as text, which is what the row checks understand; numbers survive the way there and back."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_nested(column.type) or pa.types.is_temporal(column.type):
        raise source.error(f"column {name} has the type {column.type}; numbers or text are needed")
    try:
        return pc.fill_null(pc.cast(column, pa.string()), "")
    except pa.ArrowException as error:
        raise source.error(f"column {name} of type {column.type} cannot be read: {error}") from error


def _arrow_prefix(source: Source, column: Any, meta: Mapping[str, Any]) -> PrefixBlocks:
    import pyarrow as pa
    import pyarrow.compute as pc

    block_tokens = meta.get("block_tokens")
    if not isinstance(block_tokens, int) or not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        raise source.error(
            "has a prefix column without the number of tokens per block in its metadata",
            remedy="Write it with Trace.to_parquet, or as CSV with a column named prefix_<block_tokens>.",
        )
    lengths = np.asarray(pc.fill_null(pc.list_value_length(column), 0).to_numpy(), dtype=np.int64)
    ids = np.asarray(pc.list_flatten(column).to_numpy())
    return PrefixBlocks(np.concatenate(([0], np.cumsum(lengths))), ids, block_tokens)


def _arrow_after(source: Source, column: Any) -> After:
    import pyarrow as pa
    import pyarrow.compute as pc

    fitting = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
    if not fitting or not pa.types.is_integer(column.type.value_type):
        raise source.error("has an after column that is no list of turns", remedy="Write it with Trace.to_parquet.")
    lengths = np.asarray(pc.fill_null(pc.list_value_length(column), 0).to_numpy(), dtype=np.int64)
    return After(np.concatenate(([0], np.cumsum(lengths))), np.asarray(pc.list_flatten(column).to_numpy()))


def _arrow_chunks(source: Source, column: Any) -> Chunks:
    import pyarrow as pa
    import pyarrow.compute as pc

    fitting = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
    if not fitting or not pa.types.is_struct(column.type.value_type):
        remedy = "Write it with Trace.to_parquet."
        raise source.error("has a chunks column that is no list of {id, tokens}", remedy=remedy)
    lengths = np.asarray(pc.fill_null(pc.list_value_length(column), 0).to_numpy(), dtype=np.int64)
    flat = pc.list_flatten(column)
    ids, tokens = (np.asarray(pc.struct_field(flat, name).to_numpy()) for name in ("id", "tokens"))
    return Chunks(np.concatenate(([0], np.cumsum(lengths))), ids, tokens)


def _metadata(source: Source, metadata: Mapping[bytes, bytes]) -> dict[str, Any]:
    if METADATA_KEY not in metadata:
        return {}
    try:
        meta = json.loads(metadata[METADATA_KEY])
    except ValueError as error:
        raise source.error(f"has metadata that is not JSON: {error}") from error
    return meta if isinstance(meta, dict) else {}


def _matches(sample: Sample) -> bool:
    return sample.parquet or set(REQUIRED) <= {name.lower() for name in sample.header}


FORMAT = Format("table", "Windtunnel's own CSV or Parquet (arrival, prompt_tokens, output_tokens, ...)", read, _matches)
