"""The ``Trace`` table: what arrives at the cluster, one row per request.

Columns (absent optional columns are ``None`` and cost nothing):

=================  ========  ==========================================================
column             unit      meaning
=================  ========  ==========================================================
``arrival``        s         time since the start of the trace, non-decreasing
``prompt_tokens``  tokens    length of the whole prompt, history included, >= 1
``output_tokens``  tokens    tokens to generate, >= 1
``session``        id        conversation the request belongs to (-1: none)
``turn``           index     position in the session, from 0
``think_time``     s         gap between the end of the previous turn and this arrival;
                             NaN: open loop, ``arrival`` is used as it stands
``after``          turns     of its session that must have ended before a request comes,
                             ``think_time`` (or 0 s) after the last of them: a program
``prefix``         ids       full prompt blocks as chained ids: equal id = equal prefix
``tenant``         label     who pays
``priority``       int       smaller is served first (vLLM's convention), default 0
``adapter``        label     LoRA adapter
``model``          label     model asked for
``slo_class``      label     service class
``chunks``         ids       parts the prompt begins with (passages), each with its
                             tokens: equal id = equal text, wherever it stands
=================  ========  ==========================================================

A ``Trace`` checks itself when it is built and refuses what could not be served in this order: an arrival that is
negative, not finite or earlier than the one before it, a length below one token, a column of another length.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from simulator.core.errors import TraceError

if TYPE_CHECKING:
    import pandas as pd

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

METADATA_KEY = b"windtunnel"  # of the Parquet schema: source, notes and block_tokens


@dataclass(frozen=True, slots=True)
class Labels:
    """A categorical column: ``names[codes[i]]``; code -1 is "not given"."""

    codes: NDArray[np.int32]
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        codes = _column("labels", self.codes, np.int32)
        object.__setattr__(self, "codes", codes)
        if len(codes) and (codes.min() < -1 or codes.max() >= len(self.names)):
            raise TraceError(f"label codes must lie in [-1, {len(self.names) - 1}], not {codes.min()}..{codes.max()}")

    def __len__(self) -> int:
        return len(self.codes)

    @classmethod
    def of(cls, values: Any) -> Labels:
        """From one name per row; None, NaN and the empty string are "not given". Names are sorted."""
        import pandas as pd

        column = pd.Series(values, dtype=object).replace("", None)
        codes, names = pd.factorize(column.where(column.notna(), None).astype("string"), sort=True)
        return cls(codes.astype(np.int32), tuple(str(name) for name in names))

    def values(self) -> NDArray[np.object_]:
        """One name (or None) per row."""
        table = np.array([*self.names, None], dtype=object)
        chosen: NDArray[np.object_] = table[self.codes]
        return chosen

    def take(self, index: NDArray[Any]) -> Labels:
        return Labels(self.codes[index], self.names)


@dataclass(frozen=True, slots=True)
class PrefixBlocks:
    """Ragged block ids in CSR form.

    Row ``i`` owns ``ids[offsets[i]:offsets[i + 1]]``. Id ``j`` of a row stands for prompt tokens
    ``[j * block_tokens, (j + 1) * block_tokens)`` *and everything before them*: two rows that hold
    the same id at a position have the same prompt up to its end. Only full blocks are listed.
    """

    offsets: Ints  # (n + 1,)
    ids: Ints  # (offsets[-1],)
    block_tokens: int

    def __post_init__(self) -> None:
        offsets = _column("prefix offsets", self.offsets, np.int64)
        ids = _column("prefix ids", self.ids, np.int64)
        object.__setattr__(self, "offsets", offsets)
        object.__setattr__(self, "ids", ids)
        if self.block_tokens < 1:
            raise TraceError(f"block_tokens must be >= 1, not {self.block_tokens}")
        if len(offsets) == 0 or offsets[0] != 0 or offsets[-1] != len(ids) or (np.diff(offsets) < 0).any():
            raise TraceError("prefix offsets must start at 0, never fall, and end at the number of ids")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def counts(self) -> Ints:
        """Blocks per row."""
        return np.diff(self.offsets)

    def row(self, i: int) -> Ints:
        return self.ids[self.offsets[i] : self.offsets[i + 1]]

    def take(self, index: NDArray[Any]) -> PrefixBlocks:
        """The rows of a boolean mask or of an integer index."""
        rows = np.flatnonzero(index) if index.dtype == np.bool_ else index
        counts = self.counts()[rows]
        offsets = np.concatenate(([0], np.cumsum(counts)))
        within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], counts)
        return PrefixBlocks(offsets, self.ids[np.repeat(self.offsets[:-1][rows], counts) + within], self.block_tokens)


@dataclass(frozen=True, slots=True)
class After:
    """Turns that rows wait for, in CSR form: row ``i`` owns ``turns[offsets[i]:offsets[i + 1]]``; none: its own time.

    Turns that the trace does not hold are not waited for.
    """

    offsets: Ints  # (n + 1,)
    turns: Ints  # (offsets[-1],)

    def __post_init__(self) -> None:
        blocks = PrefixBlocks(self.offsets, self.turns, 1)  # the same checks
        object.__setattr__(self, "offsets", blocks.offsets)
        object.__setattr__(self, "turns", blocks.ids)

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> After:
        """From the turns that each row waits for."""
        counts = [len(row) for row in rows]
        return cls(np.concatenate(([0], np.cumsum(counts))), np.array([t for row in rows for t in row], dtype=np.int64))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def counts(self) -> Ints:
        """Turns that each row waits for."""
        return np.diff(self.offsets)

    def take(self, index: NDArray[Any]) -> After:
        """The rows of a boolean mask or of an integer index."""
        rows = PrefixBlocks(self.offsets, self.turns, 1).take(index)
        return After(rows.offsets, rows.ids)


@dataclass(frozen=True, slots=True)
class Chunks:
    """Parts that prompts begin with, one after the other, in CSR form: what a retriever puts in front of a question.

    Row ``i`` owns entries ``offsets[i]:offsets[i + 1]`` of ``ids`` and ``tokens``. Unlike blocks, equal ids are equal
    text whatever stands before them. What the parts leave over of a prompt stands at its end.
    """

    offsets: Ints  # (n + 1,)
    ids: Ints  # (offsets[-1],)
    tokens: Ints  # (offsets[-1],) >= 1

    def __post_init__(self) -> None:
        for name in ("offsets", "ids", "tokens"):
            object.__setattr__(self, name, _column(f"chunk {name}", getattr(self, name), np.int64))
        offsets = self.offsets
        if len(offsets) == 0 or offsets[0] != 0 or offsets[-1] != len(self.ids) or (np.diff(offsets) < 0).any():
            raise TraceError("chunk offsets must start at 0, never fall, and end at the number of ids")
        if len(self.tokens) != len(self.ids) or (self.tokens < 1).any():
            raise TraceError("every chunk has one length in tokens, >= 1")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def counts(self) -> Ints:
        """Chunks per row."""
        return np.diff(self.offsets)

    def totals(self) -> Ints:
        """Tokens of all chunks of each row."""
        running = np.concatenate(([0], np.cumsum(self.tokens)))
        return np.asarray(running[self.offsets[1:]] - running[self.offsets[:-1]])

    def take(self, index: NDArray[Any]) -> Chunks:
        """The rows of a boolean mask or of an integer index."""
        entries = PrefixBlocks(self.offsets, np.arange(len(self.ids)), 1).take(index)
        return Chunks(entries.offsets, self.ids[entries.ids], self.tokens[entries.ids])

    def keep(self, mask: NDArray[np.bool_]) -> Chunks:
        """Only the entries of ``mask``."""
        running = np.concatenate(([0], np.cumsum(mask)))
        return Chunks(running[self.offsets], self.ids[mask], self.tokens[mask])


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests sorted by arrival. See the module's table for columns and units.

    Columns are converted to their dtype. Raises TraceError, naming column, row (from 0) and value.
    """

    arrival: Floats
    prompt_tokens: Ints
    output_tokens: Ints
    session: Ints | None = None
    turn: Ints | None = None
    think_time: Floats | None = None
    prefix: PrefixBlocks | None = None
    tenant: Labels | None = None
    priority: Ints | None = None
    adapter: Labels | None = None
    model: Labels | None = None
    slo_class: Labels | None = None
    chunks: Chunks | None = None
    after: After | None = None
    answers_stay: bool = False  # turns hold the answers to those they continue (``traces.answers``)
    source: str = "unnamed"
    notes: tuple[str, ...] = field(default=())  # e.g. "3 rows skipped: output_tokens = 0"

    def __post_init__(self) -> None:
        for name in FLOAT_COLUMNS + INT_COLUMNS:
            values = getattr(self, name)
            if values is not None:
                dtype = np.float64 if name in FLOAT_COLUMNS else np.int64
                object.__setattr__(self, name, _column(name, values, dtype, self.source))
        for name in COLUMNS:
            values = getattr(self, name)
            if values is not None and len(values) != len(self.arrival):
                raise TraceError(
                    f"column {name} has {len(values)} rows, arrival has {len(self.arrival)}", where=self.source
                )
        self._check_values()

    def _check_values(self) -> None:
        self._refuse("arrival", ~(np.isfinite(self.arrival) & (self.arrival >= 0)), "must be finite and >= 0 s")
        late = np.concatenate(([False], np.diff(self.arrival) < 0)) if len(self) else np.zeros(0, bool)
        self._refuse("arrival", late, "is earlier than the row before it", "Sort the rows by arrival.")
        self._refuse("prompt_tokens", self.prompt_tokens < 1, "must be >= 1")
        self._refuse("output_tokens", self.output_tokens < 1, "must be >= 1")
        if self.think_time is not None:
            wrong = (self.think_time < 0) | np.isinf(self.think_time)
            self._refuse("think_time", wrong, "must be >= 0 s, or NaN for open loop")
            if self.session is None:
                raise TraceError("think_time needs the session column: it follows a turn", where=self.source)
        if self.after is not None and (self.session is None or self.turn is None):
            raise TraceError("after needs the columns session and turn: it names turns", where=self.source)
        if self.after is not None and self.turn is not None:
            later = self.after.turns >= np.repeat(self.turn, self.after.counts())
            rows = np.repeat(np.arange(len(self)), self.after.counts())[later]
            wrong = np.isin(np.arange(len(self)), rows)
            self._refuse("after", wrong, "hold one that is not earlier in its session")
        if self.prefix is not None:
            over = self.prefix.counts() * self.prefix.block_tokens > self.prompt_tokens
            self._refuse("prefix", over, f"lists more full blocks of {self.prefix.block_tokens} tokens than the prompt")
        if self.chunks is not None:
            self._refuse("chunks", self.chunks.totals() > self.prompt_tokens, "hold more tokens than the prompt")

    def _refuse(self, column: str, wrong: NDArray[np.bool_], why: str, remedy: str | None = None) -> None:
        if wrong.any():
            row = int(np.argmax(wrong))
            values = getattr(self, column)
            ragged = {PrefixBlocks: "blocks", Chunks: "chunks", After: "turns"}.get(type(values))
            value = f"{values.counts()[row]} {ragged}" if ragged else values[row]
            raise TraceError(f"row {row}: {column} = {value} {why}", where=self.source, remedy=remedy)

    def __len__(self) -> int:
        return len(self.arrival)

    @property
    def duration(self) -> float:
        """Seconds from the first arrival to the last; 0 for fewer than two requests."""
        return float(self.arrival[-1] - self.arrival[0]) if len(self) else 0.0

    @property
    def rate(self) -> float:
        """Mean arrivals per second, ``(n - 1) / duration``; NaN when every request arrives at once."""
        return (len(self) - 1) / self.duration if self.duration > 0 else float("nan")

    def head(self, n: int) -> Trace:
        """The first ``n`` requests."""
        if n < 0:
            raise TraceError(f"head({n}): the number of requests must be >= 0", where=self.source)
        return self.select(np.arange(min(n, len(self))))

    def select(self, index: NDArray[Any]) -> Trace:
        """The rows of a boolean mask or of an integer index that keeps arrivals in order."""
        if index.dtype == np.bool_ and len(index) != len(self):
            raise TraceError(f"mask of {len(index)} rows for a trace of {len(self)}", where=self.source)
        rows = {n: v[index] for n in FLOAT_COLUMNS + INT_COLUMNS if (v := getattr(self, n)) is not None}
        rows |= {n: v.take(index) for n in (*RAGGED_COLUMNS, *LABEL_COLUMNS) if (v := getattr(self, n)) is not None}
        return replace(self, **rows)

    def columns(self) -> tuple[str, ...]:
        """Names of the columns that are present."""
        return tuple(name for name in COLUMNS if getattr(self, name) is not None)

    def to_arrow(self) -> Any:
        """A ``pyarrow.Table``, one column each; ragged ones are lists; source and notes are metadata."""
        import pyarrow as pa

        build: dict[str, Callable[[Any], Any]] = {
            "prefix": lambda p: pa.LargeListArray.from_arrays(p.offsets, p.ids),
            "after": lambda a: pa.LargeListArray.from_arrays(a.offsets, a.turns),
            "chunks": lambda c: pa.LargeListArray.from_arrays(
                c.offsets, pa.StructArray.from_arrays([pa.array(c.ids), pa.array(c.tokens)], ["id", "tokens"])
            ),
            **dict.fromkeys(LABEL_COLUMNS, lambda labels: pa.array(labels.values(), pa.string())),
        }
        arrays = {name: build.get(name, pa.array)(getattr(self, name)) for name in self.columns()}
        meta = {
            "source": self.source,
            "notes": list(self.notes),
            "answers_stay": self.answers_stay,
            "block_tokens": self.prefix.block_tokens if self.prefix is not None else None,
        }
        return pa.table(arrays).replace_schema_metadata({METADATA_KEY: json.dumps(meta)})

    def to_frame(self) -> pd.DataFrame:
        """A pandas table with the present columns; ``prefix`` holds one array of ids per row."""
        frame: pd.DataFrame = self.to_arrow().to_pandas()
        return frame

    def to_parquet(self, path: str | Path) -> None:
        """Lossless; ``read_trace`` gives the same table back."""
        import pyarrow.parquet as pq

        pq.write_table(self.to_arrow(), path)

    def to_csv(self, path: str | Path) -> None:
        """Text with the columns' names; gzipped where the name ends in ``.gz``.

        Blocks are ids separated by spaces in a column named ``prefix_<block_tokens>``, turns of ``after`` likewise,
        chunks ``id:tokens``. Numbers are written in full, so that ``read_trace`` gives the same columns back; ``notes``
        are not kept.
        """
        frame = self.to_frame()
        if self.prefix is not None:
            text = [" ".join(map(str, ids)) for ids in frame["prefix"]]
            frame["prefix"] = text
            frame = frame.rename(columns={"prefix": f"prefix_{self.prefix.block_tokens}"})
        if self.after is not None:
            frame["after"] = [" ".join(map(str, turns)) for turns in frame["after"]]
        if self.chunks is not None:
            frame["chunks"] = [" ".join(f"{c['id']}:{c['tokens']}" for c in row) for row in frame["chunks"]]
        frame.to_csv(path, index=False)


FLOAT_COLUMNS = ("arrival", "think_time")
INT_COLUMNS = ("prompt_tokens", "output_tokens", "session", "turn", "priority")
RAGGED_COLUMNS = ("prefix", "chunks", "after")
LABEL_COLUMNS = ("tenant", "adapter", "model", "slo_class")
COLUMNS = tuple(f.name for f in fields(Trace) if f.name not in {"answers_stay", "source", "notes"})


def _column(name: str, values: Any, dtype: type[np.generic], where: str | None = None) -> NDArray[Any]:
    """A contiguous one-dimensional array of ``dtype``; integers refuse fractions instead of cutting them."""
    array = np.asarray(values)
    if array.ndim != 1:
        raise TraceError(f"column {name} must have one dimension, not {array.ndim}", where=where)
    whole = np.issubdtype(dtype, np.integer)
    if array.dtype.kind not in "iuf" and len(array):
        raise TraceError(f"column {name} must hold numbers, not {array.dtype}", where=where)
    if whole and array.dtype.kind == "f":
        wrong = ~np.isfinite(array) | (array != np.floor(array))
        if wrong.any():
            row = int(np.argmax(wrong))
            raise TraceError(f"row {row}: {name} = {array[row]} must be a whole number", where=where)
    return np.ascontiguousarray(array, dtype=dtype)
