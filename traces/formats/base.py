"""What every reader shares: opening a file, reading its rows, telling bad rows apart, building the ``Trace``.

A bad row is skipped, counted and named in ``Trace.notes`` (line, column, value, reason); with ``strict`` the first one
raises ``TraceError`` instead. Nothing is dropped silently.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.core.errors import TraceError
from traces.prefix import cut_to_full_blocks, ensure_chained, from_rows
from traces.trace import After, Chunks, Floats, Ints, Labels, PrefixBlocks, Trace

MAX_TOKENS = 1_000_000_000  # a longer prompt or output is a garbled number
EPOCH_S = 365 * 86_400.0  # arrivals that begin later than this are absolute timestamps
SHOWN = 5  # bad rows named in a note
LFS_POINTER = b"version https://git-lfs.github.com/spec"


@dataclass(frozen=True, slots=True)
class Source:
    """An opened file: its whole content (gunzipped), and how bad rows are to be treated."""

    path: Path
    data: bytes
    strict: bool = False

    @property
    def name(self) -> str:
        return str(self.path)

    def error(self, message: str, *, line: int | None = None, remedy: str | None = None) -> TraceError:
        where = self.name if line is None else f"{self.name}:{line}"
        return TraceError(message, where=where, remedy=remedy)


@dataclass(frozen=True, slots=True)
class Sample:
    """The beginning of a file, as format detection sees it."""

    header: tuple[str, ...] = ()  # fields of the first line, when the file looks like CSV
    records: tuple[dict[str, Any], ...] = ()  # first objects, when it is JSON lines
    json_array: bool = False
    parquet: bool = False


@dataclass(frozen=True, slots=True)
class Format:
    """A registered format. ``read`` takes the Source and the format's own keyword options."""

    name: str
    summary: str
    read: Callable[..., Trace]
    matches: Callable[[Sample], bool]


def open_source(path: str | Path, *, strict: bool = False) -> Source:
    """Read a file, gunzipping it when its first bytes say so. Raises TraceError when it cannot be read."""
    path = Path(path)
    try:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
    except FileNotFoundError:
        remedy = "Check the path; in a scenario it is relative to the scenario's file."
        raise TraceError("no such trace file", where=str(path), remedy=remedy) from None
    except IsADirectoryError:
        raise TraceError("is a folder, not a trace file", where=str(path), remedy="Name the file in it.") from None
    except (OSError, EOFError, zlib.error) as error:
        raise TraceError(f"cannot be read: {error}", where=str(path)) from error
    if data.startswith(LFS_POINTER):
        raise TraceError(
            "is a Git LFS pointer, not the trace itself", where=str(path), remedy="Fetch the data with 'git lfs pull'."
        )
    return Source(path, data, strict)


def sample_of(source: Source) -> Sample:
    """Look at the first lines to see which kind of file it is."""
    if source.data[:4] == b"PAR1":
        return Sample(parquet=True)
    text = source.data[: 1 << 16].decode("utf-8", errors="replace").lstrip("\ufeff \t\r\n")
    if text.startswith("["):
        return Sample(json_array=True)
    if text.startswith("{"):
        return Sample(records=tuple(_first_records(source.data, 50)))
    return Sample(header=tuple(name.strip() for name in _split_header(text.split("\n", 1)[0])))


def _first_records(data: bytes, limit: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for line in io.BytesIO(data):
        if len(found) == limit:
            break
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            found.append(value)
    return found


def _split_header(line: str) -> list[str]:
    try:
        return next(csv.reader([line.rstrip("\r\n")]), [])
    except csv.Error:
        return []


@dataclass(slots=True)
class Rows:
    """Rows under inspection. ``ok`` turns false at a row's first fault, which is kept for the notes."""

    source: Source
    line: Ints  # line in the file, from 1
    columns: dict[str, Any]  # name -> pyarrow strings (CSV) or a list of JSON values
    ok: NDArray[np.bool_]
    faults: list[tuple[int, str]] = field(default_factory=list)  # (line, what)
    count: int = 0  # faulty rows
    remarks: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.line)

    def fault(self, line: int, what: str) -> None:
        """A fault of a row that is not even among ``columns`` (a broken line)."""
        if self.source.strict:
            raise self.source.error(what, line=line, remedy="Correct the row, or read without strict to skip it.")
        self.count += 1
        if len(self.faults) < SHOWN:
            self.faults.append((line, what))

    def refuse(self, column: str, wrong: NDArray[np.bool_], reason: str) -> None:
        """Turn the rows in ``wrong`` down, naming the value in ``column``."""
        rows = np.flatnonzero(wrong & self.ok)
        for i in rows[: None if self.source.strict else SHOWN]:
            self.fault(int(self.line[i]), f"{column} = {self._shown(column, int(i))} {reason}")
        self.count += max(0, len(rows) - SHOWN)
        self.ok[rows] = False

    def _shown(self, column: str, i: int) -> str:
        values = self.columns.get(column)
        value: Any = values[i] if values is not None else None
        value = value.as_py() if hasattr(value, "as_py") else value
        text = "nothing" if value is None or value == "" else repr(value)
        return text if len(text) <= 60 else text[:57] + "..."

    def floats(self, column: str, *, low: float | None = None) -> Floats:
        """Finite numbers >= ``low``; rows without one are turned down and hold 0."""
        values = to_floats(self.columns[column])
        self.refuse(column, ~np.isfinite(values), "is not a number")
        values = np.where(np.isfinite(values), values, 0.0)
        if low is not None:
            self.refuse(column, values < low, f"must be >= {low:g}")
        return values

    def tokens(self, column: str) -> Ints:
        """Whole numbers of tokens, from 1 to a billion."""
        values = self.floats(column)
        self.refuse(column, values < 1, "must be >= 1 token")
        self.refuse(column, values != np.floor(values), "is not a whole number of tokens")
        self.refuse(column, values > MAX_TOKENS, "is too large for a number of tokens")
        return np.clip(values, 1, MAX_TOKENS).astype(np.int64)

    def whole(self, column: str, *, low: int | None = None) -> Ints:
        """Whole numbers (turn, session, priority)."""
        values = self.floats(column, low=low)
        self.refuse(column, (values != np.floor(values)) | (np.abs(values) > 2**53), "is not a whole number")
        return np.clip(values, -(2.0**53), 2.0**53).astype(np.int64)

    def blocks(self, column: str, block_tokens: int, prompt_tokens: Ints) -> PrefixBlocks:
        """Lists of whole numbers as chained blocks; a prompt's partial last block is dropped."""
        lists = self.columns[column]
        wrong = np.array([not _is_id_list(ids) for ids in lists], dtype=bool)
        self.refuse(column, wrong, "is not a list of whole block ids")
        clean = [[] if bad else ids for ids, bad in zip(lists, wrong.tolist(), strict=True)]
        prefix = from_rows(clean, block_tokens)
        extra = prefix.counts() > -(-prompt_tokens // block_tokens)
        if (extra & self.ok).any():
            first = int(self.line[int(np.argmax(extra & self.ok))])
            self.remarks.append(
                f"{int((extra & self.ok).sum())} rows list more {block_tokens}-token blocks than their prompt holds "
                f"(first: line {first}); the blocks beyond it are left out"
            )
        return ensure_chained(cut_to_full_blocks(prefix, prompt_tokens))

    def text(self, column: str) -> list[str | None]:
        values = self.columns[column]
        plain = values.to_pylist() if hasattr(values, "to_pylist") else values
        return [None if v is None or v == "" else str(v) for v in plain]

    def labels(self, column: str) -> Labels | None:
        """The column's names as codes, or None where the file has no such column."""
        values = self.columns.get(column)
        if values is None:
            return None
        if not hasattr(values, "to_pylist"):
            return Labels.of(self.text(column))
        encoded = values.combine_chunks().dictionary_encode()
        names = np.array(encoded.dictionary.to_pylist(), dtype=object)
        order = np.argsort(names, kind="stable")
        rank = np.empty(len(names), dtype=np.int32)
        given = order[names[order] != ""]
        rank[order] = -1
        rank[given] = np.arange(len(given))
        return Labels(rank[encoded.indices.to_numpy()], tuple(names[given]))

    def notes(self) -> tuple[str, ...]:
        if not self.count:
            return tuple(self.remarks)
        shown = "; ".join(f"line {line}: {what}" for line, what in sorted(self.faults))
        more = f"; and {self.count - len(self.faults)} more" if self.count > len(self.faults) else ""
        total = self.count + int(self.ok.sum())
        return (f"{self.count} of {total} rows skipped: {shown}{more}", *self.remarks)

    def build(
        self, *, arrival: Floats, prompt_tokens: Ints, output_tokens: Ints, nested: bool = False, **optional: Any
    ) -> Trace:
        """The Trace of the rows that are left, in order of arrival (a stable sort, reported when it moves rows).

        nested: the file holds conversations, so its rows are not meant to be in order of arrival.
        """
        if not self.ok.any():
            first = f" ({self.notes()[0]})" if self.count else ""
            raise self.source.error(f"holds no usable request{first}")
        keep = np.flatnonzero(self.ok)
        late = np.flatnonzero(np.diff(arrival[keep]) < 0)
        if nested:
            keep = keep[np.argsort(arrival[keep], kind="stable")]
        elif len(late):
            line = int(self.line[keep[late[0] + 1]])
            what = "arrives before the row above it"
            if self.source.strict:
                raise self.source.error(f"the row {what}", line=line, remedy="Sort the rows by arrival.")
            self.remarks.append(f"rows sorted by arrival: {len(late)} were out of order (first: line {line} {what})")
            keep = keep[np.argsort(arrival[keep], kind="stable")]
        arrival = arrival[keep]
        if arrival[0] > EPOCH_S:
            self.remarks.append(f"arrivals begin at {arrival[0]:.0f} s: taken as absolute time, the first is now 0 s")
            arrival = arrival - arrival[0]
        columns = {name: _take(values, keep) for name, values in optional.items() if values is not None}
        return Trace(
            arrival=arrival,
            prompt_tokens=prompt_tokens[keep],
            output_tokens=output_tokens[keep],
            source=self.source.name,
            notes=self.notes(),
            **columns,
        )


def _take(values: Any, keep: Ints) -> Any:
    return values.take(keep) if isinstance(values, Labels | PrefixBlocks | Chunks | After) else values[keep]


def _is_id_list(ids: Any) -> bool:
    # The float check keeps JSON's 1.0 and NaN out; bool is an int to Python but not an id.
    return isinstance(ids, list) and all(type(i) is int and -(2**63) <= i < 2**63 for i in ids)


def to_floats(values: Any) -> Floats:
    """Numbers from pyarrow strings or JSON values; NaN where there is none."""
    if hasattr(values, "to_pylist"):
        return _arrow_floats(values)
    if all(type(v) is int or type(v) is float for v in values):
        try:
            return np.array(values, dtype=np.float64)
        except OverflowError:
            pass
    return np.array([_float(v) for v in values], dtype=np.float64)


def _arrow_floats(values: Any) -> Floats:
    import pandas as pd
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        return np.asarray(pc.cast(values, pa.float64()).to_numpy(zero_copy_only=False), dtype=np.float64)
    except pa.ArrowInvalid:
        return np.asarray(pd.to_numeric(values.to_pandas(), errors="coerce"), dtype=np.float64)


def _float(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return float("nan")
    try:
        return float(value)
    except (ValueError, OverflowError):
        return float("nan")


def read_csv(source: Source, required: Sequence[str], optional: Sequence[str] = ()) -> Rows:
    """Named columns of a CSV file as strings, with the line each row stands on. Column names match without case.

    Rows with too many or too few fields are faults; blank lines are nothing. Raises TraceError when a required column
    is missing or the file is empty.
    """
    import pyarrow as pa
    import pyarrow.csv as pacsv

    data = source.data
    if b"\x00" in data or not _is_utf8(data):
        data = data.decode("utf-8", errors="replace").replace("\x00", "\ufffd").encode()
    broken: list[tuple[int, str, int, int]] = []

    def on_broken(row: Any) -> str:
        broken.append((row.number, row.text, row.actual_columns, row.expected_columns))
        return "skip"

    header, skip = _header(source, data)
    wanted = _match_columns(source, header, required, optional)
    names = [f"c{i}" for i in range(len(header))]  # header names may repeat
    taken = [names[i] for i in wanted.values()]
    try:
        table = pacsv.read_csv(
            pa.BufferReader(data),
            read_options=pacsv.ReadOptions(use_threads=False, column_names=names, skip_rows=skip, block_size=1 << 24),
            parse_options=pacsv.ParseOptions(invalid_row_handler=on_broken, ignore_empty_lines=False),
            convert_options=pacsv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()),
                include_columns=list(dict.fromkeys(taken)),
                strings_can_be_null=False,
            ),
        )
    except pa.ArrowInvalid as error:
        raise source.error(f"cannot be read as CSV: {error}") from error
    return _csv_rows(source, {name: table[names[i]] for name, i in wanted.items()}, skip, table.num_rows, broken)


def _csv_rows(
    source: Source, columns: dict[str, Any], skip: int, num_rows: int, broken: list[tuple[int, str, int, int]]
) -> Rows:
    """Number the lines (the reader left the broken ones out) and drop the blank ones."""
    import pyarrow.compute as pc

    gone = np.array([number for number, *_ in broken], dtype=np.int64)
    line = np.setdiff1d(np.arange(skip + 1, skip + 1 + num_rows + len(gone)), gone)
    blank = np.ones(num_rows, dtype=bool)
    for values in columns.values():
        blank &= np.asarray(pc.equal(values, "").to_numpy(zero_copy_only=False), dtype=bool)
    if blank.any():
        # A row whose fields are all empty but that has commas is still a row; only an empty line is nothing.
        texts = source.data.split(b"\n")
        empty = np.zeros(num_rows, dtype=bool)
        at = np.flatnonzero(blank)
        empty[at] = [line[i] > len(texts) or not texts[line[i] - 1].strip() for i in at]
        columns = {name: values.filter(~empty) for name, values in columns.items()}
        line = line[~empty]
    rows = Rows(source, line, columns, np.ones(len(line), dtype=bool))
    for number, text, actual, expected in broken:
        if text.strip():
            rows.fault(number, f"{actual} fields instead of {expected}: {text[:60]!r}")
    return rows


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _header(source: Source, data: bytes) -> tuple[list[str], int]:
    """Fields of the first line that is not blank, and the number of lines up to and including it."""
    for i, line in enumerate(io.BytesIO(data), start=1):
        if line.strip():
            return [name.strip() for name in _split_header(line.decode("utf-8-sig", errors="replace"))], i
        if i > 1000:
            break
    raise source.error("is empty")


def _match_columns(
    source: Source, header: Sequence[str], required: Sequence[str], optional: Sequence[str]
) -> dict[str, int]:
    at = {name.lower(): i for i, name in reversed(list(enumerate(header)))}
    missing = [name for name in required if name.lower() not in at]
    if missing:
        raise source.error(
            f"has no column {missing[0]!r}; its header is {', '.join(header)[:200]!r}",
            line=1, remedy=f"This format needs the columns {', '.join(required)}.",
        )  # fmt: skip
    return {name: at[name.lower()] for name in (*required, *optional) if name.lower() in at}


def read_jsonl(source: Source, required: Sequence[str], optional: Sequence[str] = ()) -> Rows:
    """Named members of one JSON object per line. Lines that are not objects, or lack a member, are faults."""
    rows = Rows(source, np.zeros(0, np.int64), {}, np.zeros(0, bool))
    records: list[dict[str, Any]] = []
    lines: list[int] = []
    for number, text in enumerate(source.data.split(b"\n"), start=1):
        if not text.strip():
            continue
        record = _record(text)
        if isinstance(record, str):
            rows.fault(number, record)
        elif missing := [name for name in required if name not in record]:
            rows.fault(number, f"has no {missing[0]!r}: {text[:60].decode('utf-8', errors='replace')!r}")
        else:
            records.append(record)
            lines.append(number)
    rows.line = np.array(lines, dtype=np.int64)
    rows.ok = np.ones(len(lines), dtype=bool)
    present = [name for name in optional if any(name in record for record in records)]
    rows.columns = {name: [record.get(name) for record in records] for name in (*required, *present)}
    return rows


def _record(text: bytes) -> dict[str, Any] | str:
    """The line's JSON object, or what is wrong with it."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        return f"is not JSON ({error})"
    return value if isinstance(value, dict) else f"is not a JSON object but {type(value).__name__}"
