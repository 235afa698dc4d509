"""Columns that grow while a simulation runs, and how they become ``SimulationRecords``."""

from __future__ import annotations

from array import array
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.replica.records import RequestRecords, Status, StepRecords
from simulator.scheduling.state import LANE_STEPS

NEVER = float("nan")


class Recorder:
    """Typed arrays: 8 bytes a time, 4 a count. One row per request, one per span of equal steps."""

    __slots__ = (
        "_bases",
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
        self.replica = array("h", [0]) * n
        self.extra_ranges: list[tuple[int, int, int, float]] = []
        # Rows of SPAN (steps without prefill) and of MIXED (single steps of any kind), end to end. A list takes a row
        # seven times faster than an array does, an array holds it in a third of the memory: lists fill, arrays keep.
        self.span_buffer: list[float] = []
        self.mixed_buffer: list[float] = []
        self.spans: list[array[float]] = []
        self.mixed: list[array[float]] = []
        self.lanes = array("b")  # of each row of MIXED, for engines with several batches in flight

    def flush(self) -> None:
        """Move buffered rows to the arrays."""
        for buffer, kept in ((self.span_buffer, self.spans), (self.mixed_buffer, self.mixed)):
            kept.append(array("d", buffer))
            buffer.clear()

    def reject(self, rows: NDArray[np.bool_]) -> None:
        """Requests that never reach a replica."""
        for row in np.flatnonzero(rows).tolist():
            self.status[row] = Status.REJECTED
            self.replica[row] = -1

    def steps(self, replica: int = 0) -> StepRecords:
        """Span and single-step rows of one replica, in order of time. Hands them over: call it once."""
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
        return StepRecords(
            replica=np.full(len(order), replica, dtype=np.int64),
            start=column("start"),
            step=column("step"),
            increment=column("increment"),
            num_steps=num_steps,
            num_decodes=num_decodes,
            first_token_step=self._first_token_steps(token_steps, lanes),
            prefill_tokens=count("prefill_tokens"),
            num_prefills=count("num_prefills"),
            context_tokens=column("context"),
            num_waiting=count("num_waiting"),
            num_running=count("num_running"),
            free_blocks=count("free_blocks"),
            preempted=count("preempted"),
        )

    def _first_token_steps(self, token_steps: NDArray[np.int64], lanes: NDArray[np.int8]) -> NDArray[np.int64]:
        """Number token steps: those of lane 0, then those of lane 1, ... (a lane's own are consecutive)."""
        first = np.empty(len(token_steps), dtype=np.int64)
        self._bases = np.zeros(int(lanes.max(initial=0)) + 1, dtype=np.int64)
        base = 0
        for lane in range(len(self._bases)):
            mine = lanes == lane
            ends = base + np.cumsum(token_steps[mine])
            first[mine] = ends - token_steps[mine]
            self._bases[lane] = base
            base = int(ends[-1]) if len(ends) else base
        return first

    def _number(self, token_step: NDArray[np.int64]) -> NDArray[np.int64]:
        """Token step counts of lanes as ``_first_token_steps`` numbers them."""
        lane = np.minimum(token_step // LANE_STEPS, len(self._bases) - 1)
        return np.asarray(token_step - lane * LANE_STEPS + self._bases[lane])

    def requests(self, arrival: NDArray[np.float64], prompt: Any, output: Any, *, until: float) -> RequestRecords:
        """Request columns; ``arrival``, ``prompt`` and ``output`` in trace order. Call ``steps`` first.

        until: when the simulation stopped; a first token that was still being computed then is not known, s.
        """

        def column(values: array[Any]) -> NDArray[np.int64]:
            return np.frombuffer(values, dtype=np.dtype(values.typecode)).astype(np.int64)

        def times(values: array[float]) -> NDArray[np.float64]:
            return np.frombuffer(values, dtype=np.float64).copy()

        extra = np.array(self.extra_ranges, dtype=np.float64).reshape(-1, 4)
        extra[:, 1:3] = self._number(extra[:, 1:3].astype(np.int64))
        first_token = times(self.first_token)
        first_token[first_token > until] = NEVER
        replica = column(self.replica)
        replica[~(arrival < until)] = -1  # they never came
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
            first_token_step=self._number(column(self.first_step)),
            last_token_step=self._number(column(self.last_step)),
            extra_ranges=extra[np.lexsort((extra[:, 1], extra[:, 0]))],
            range_start=times(self.range_start),
        )


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
