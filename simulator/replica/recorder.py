"""Columns that grow while a simulation runs, and how they become ``SimulationRecords``."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import fields
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.replica.records import RequestRecords, Status, StepRecords, StepTokens
from simulator.scheduling.state import LANE_STEPS

NEVER = float("nan")


class Columns:
    """One row per request of the trace, whichever replica it is on: 8 bytes a time, 4 a count."""

    __slots__ = (
        "bursts",
        "cached",
        "extra_ranges",
        "finish",
        "first_step",
        "first_token",
        "last_step",
        "preemptions",
        "range_start",
        "replica",
        "scheduled",
        "status",
    )

    def __init__(self, num_requests: int) -> None:
        n = num_requests
        self.scheduled = array("d", [NEVER]) * n
        self.first_token = array("d", [NEVER]) * n
        self.finish = array("d", [NEVER]) * n
        self.range_start = array("d", [NEVER]) * n
        self.first_step = array("i", [0]) * n
        self.last_step = array("i", [0]) * n
        self.cached = array("i", [0]) * n
        self.preemptions = array("i", [0]) * n
        self.status = array("b", [Status.IN_FLIGHT]) * n
        self.replica = array("h", [-1]) * n
        self.extra_ranges: list[tuple[int, int, int, float, int]] = []  # (row, first, last, start, replica)
        self.bursts: list[tuple[int, bytes]] = []  # (row, tokens of each of its next steps), where they are not all 1

    def reject(self, rows: NDArray[np.bool_]) -> None:
        """Requests that never reach a replica."""
        for row in np.flatnonzero(rows).tolist():
            self.status[row] = Status.REJECTED

    def step_tokens(self, speculates: Sequence[bool]) -> StepTokens | None:
        """speculates: whether a replica does, (replicas,)."""
        if not self.bursts:
            return None
        self.bursts.sort(key=itemgetter(0))  # stable: a request's own stay in order
        steps = np.zeros(len(self.status), dtype=np.int64)
        rows = np.array([row for row, _ in self.bursts])
        np.add.at(steps, rows, [len(tokens) for _, tokens in self.bursts])
        tokens = np.frombuffer(b"".join(tokens for _, tokens in self.bursts), dtype=np.uint8)
        return StepTokens(steps, np.array(speculates, dtype=np.bool_), tokens)

    def requests(
        self, arrival: NDArray[np.float64], prompt: Any, output: Any, bases: list[NDArray[np.int64]], *, until: float
    ) -> RequestRecords:
        """Request columns; ``arrival``, ``prompt`` and ``output`` in trace order.

        bases: of each replica, what ``Recorder.steps`` added to the token steps of its lanes.
        until: when the simulation stopped; a first token that was still being computed then is not known, s.
        """

        def column(values: array[Any]) -> NDArray[np.int64]:
            return np.frombuffer(values, dtype=np.dtype(values.typecode)).astype(np.int64)

        def times(values: array[float]) -> NDArray[np.float64]:
            return np.frombuffer(values, dtype=np.float64).copy()

        first_token = times(self.first_token)
        first_token[first_token > until] = NEVER
        extra = np.array(self.extra_ranges, dtype=np.float64).reshape(-1, 5)
        replica, hosts = column(self.replica), extra[:, 4].astype(np.int64)
        for k in (1, 2):
            extra[:, k] = _number(extra[:, k].astype(np.int64), hosts, bases)
        return RequestRecords(
            arrival=arrival,
            scheduled=times(self.scheduled),
            first_token=first_token,
            finish=times(self.finish),
            prompt_tokens=np.asarray(prompt, dtype=np.int64),
            output_tokens=np.asarray(output, dtype=np.int64),
            cached_tokens=column(self.cached),
            preemptions=column(self.preemptions),
            status=column(self.status),
            replica=replica,
            first_token_step=_number(column(self.first_step), replica, bases),
            last_token_step=_number(column(self.last_step), replica, bases),
            extra_ranges=extra[np.lexsort((extra[:, 1], extra[:, 3], extra[:, 0]))],
            range_start=times(self.range_start),
        )


def _number(token_step: NDArray[np.int64], replica: NDArray[np.int64], bases: list[NDArray[np.int64]]) -> Any:
    """Token step counts of lanes as ``Recorder.steps`` numbers them."""
    if max((len(base) for base in bases), default=1) == 1:
        return token_step
    table = np.zeros((len(bases), max(len(base) for base in bases)), dtype=np.int64)
    for i, base in enumerate(bases):
        table[i, : len(base)] = base
    lane = np.minimum(token_step // LANE_STEPS, table.shape[1] - 1)
    return token_step - lane * LANE_STEPS + table[replica, lane]


class Recorder:
    """What one replica writes: the rows of its requests in the shared columns, and one row per span of equal steps."""

    __slots__ = (
        "bursts",
        "cached",
        "extra_ranges",
        "finish",
        "first_step",
        "first_token",
        "lanes",
        "last_step",
        "mixed",
        "mixed_buffer",
        "preemptions",
        "range_start",
        "replica",
        "scheduled",
        "span_buffer",
        "spans",
        "status",
        "token_ends",
    )

    def __init__(self, columns: Columns, replica: int = 0) -> None:
        self.replica = replica
        # The shared columns once more: one look-up less on the hot path.
        self.scheduled, self.first_token, self.finish = columns.scheduled, columns.first_token, columns.finish
        self.range_start, self.first_step, self.last_step = columns.range_start, columns.first_step, columns.last_step
        self.cached = columns.cached
        self.preemptions = columns.preemptions
        self.status = columns.status
        self.extra_ranges = columns.extra_ranges
        self.bursts = columns.bursts
        # Rows of SPAN (steps without prefill) and of MIXED (single steps of any kind), end to end. A list takes a row
        # seven times faster than an array does, an array holds it in a third of the memory: lists fill, arrays keep.
        self.span_buffer: list[float] = []
        self.mixed_buffer: list[float] = []
        self.spans: list[array[float]] = []
        self.mixed: list[array[float]] = []
        self.lanes = array("b")  # of each row of MIXED, for engines with several batches in flight
        self.token_ends = array("d")  # s, where each request makes tokens at times of its own, one after the other

    def flush(self) -> None:
        """Move buffered rows to the arrays."""
        for buffer, kept in ((self.span_buffer, self.spans), (self.mixed_buffer, self.mixed)):
            kept.append(array("d", buffer))
            buffer.clear()

    def rows_after(self, spans: int, mixed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Rows of SPAN and of MIXED but for the first ``spans`` and ``mixed``, while the simulation runs."""
        return (
            _rows_after(self.spans, self.span_buffer, len(SPAN), spans),
            _rows_after(self.mixed, self.mixed_buffer, len(MIXED), mixed),
        )

    def steps(self) -> tuple[StepRecords, NDArray[np.int64]]:
        """Rows in order of time, and what was added to the token steps of each lane. Hands them over: call it once."""
        self.flush()
        spans = np.concatenate(self.spans).reshape(-1, len(SPAN))
        mixed = np.concatenate(self.mixed).reshape(-1, len(MIXED))
        self.spans, self.mixed = [], []  # a million requests' rows are not kept twice
        order = np.argsort(np.concatenate([spans[:, 0], mixed[:, 0]]), kind="stable")

        def column(name: str, default: float = 0.0) -> NDArray[np.float64]:
            parts = [
                rows[:, names.index(name)] if name in names else np.full(len(rows), default)
                for rows, names in ((spans, SPAN), (mixed, MIXED))
            ]
            return np.concatenate(parts)[order]

        def count(name: str, default: float = 0.0) -> NDArray[np.int64]:
            return column(name, default).astype(np.int64)

        num_steps, num_decodes = count("num_steps", 1), count("num_decodes")
        token_steps = np.where(num_decodes > 0, num_steps, 0)
        lanes = np.frombuffer(self.lanes, dtype=np.int8)[order] if self.lanes else np.zeros(len(order), dtype=np.int8)
        first, bases = _first_token_steps(token_steps, lanes)
        rows = StepRecords(
            replica=np.full(len(order), self.replica, dtype=np.int64),
            start=column("start"),
            step=column("step"),
            increment=column("increment"),
            num_steps=num_steps,
            num_decodes=num_decodes,
            first_token_step=first,
            prefill_tokens=count("prefill_tokens"),
            num_prefills=count("num_prefills"),
            context_tokens=column("context"),
            num_waiting=count("num_waiting"),
            num_running=count("num_running"),
            free_blocks=count("free_blocks"),
            preempted=count("preempted"),
        )
        return rows, bases


def _rows_after(kept: list[array[float]], buffer: list[float], width: int, first: int) -> NDArray[np.float64]:
    skip = first * width
    parts = []
    for numbers in (*kept, buffer):
        if skip < len(numbers):
            parts.append(np.asarray(numbers[skip:], dtype=np.float64))
        skip = max(skip - len(numbers), 0)
    return np.concatenate(parts).reshape(-1, width) if parts else np.zeros((0, width))


def _first_token_steps(
    token_steps: NDArray[np.int64], lanes: NDArray[np.int8]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Number token steps: those of lane 0, then those of lane 1, ... (a lane's own are consecutive)."""
    first = np.empty(len(token_steps), dtype=np.int64)
    bases = np.zeros(int(lanes.max(initial=0)) + 1, dtype=np.int64)
    base = 0
    for lane in range(len(bases)):
        mine = lanes == lane
        ends = base + np.cumsum(token_steps[mine])
        first[mine] = ends - token_steps[mine]
        bases[lane] = base
        base = int(ends[-1]) if len(ends) else base
    return first, bases


def join_steps(parts: list[StepRecords]) -> StepRecords:
    """Rows of all replicas, one replica after the other."""
    if len(parts) == 1:
        return parts[0]
    return StepRecords(**{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(StepRecords)})


SPAN = (
    "start",
    "step",
    "increment",
    "context",
    "num_steps",
    "num_decodes",
    "num_waiting",
    "num_running",
    "free_blocks",
)
BUFFER = 1 << 15  # numbers
MIXED = (
    "start",
    "step",
    "context",
    "num_decodes",
    "prefill_tokens",
    "num_prefills",
    "num_waiting",
    "num_running",
    "free_blocks",
    "preempted",
)
