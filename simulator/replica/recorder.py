"""Columns that grow while a simulation runs, and how they become ``SimulationRecords``."""

from __future__ import annotations

from array import array
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.replica.records import RequestRecords, SimulationRecords, Status, StepRecords
from simulator.scheduling.request import Request

NEVER = float("nan")


class Recorder:
    """Typed arrays: 8 bytes a time, 4 a count. One row per request, one per span of equal steps."""

    __slots__ = (
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
        "span_counts",
        "span_times",
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
        self.extra_ranges: list[tuple[int, int, int, float]] = []
        self.span_times = array("d")  # start, step, increment, context
        self.span_counts = array("i")  # replica, steps, decodes, first step, prefill tokens, prefills, waiting, ...

    def finished(self, request: Request, time: float) -> None:
        """The request made its last token at ``time``."""
        self.store(request)
        row = request.row
        self.finish[row] = time
        self.status[row] = Status.FINISHED

    def store(self, request: Request) -> None:
        """What a request has reached, finished or not."""
        row = request.row
        self.scheduled[row] = request.scheduled
        self.first_token[row] = request.first_token
        self.range_start[row] = request.range_start
        self.first_step[row] = request.first_token_step
        self.last_step[row] = request.last_step
        self.cached[row] = request.cached_tokens
        if request.preemptions:
            self.preemptions[row] = request.preemptions
        if request.extra_ranges:
            self.extra_ranges.extend((row, *r) for r in request.extra_ranges)

    def steps(self) -> StepRecords:
        times = np.frombuffer(self.span_times, dtype=np.float64).reshape(-1, 4)
        counts = np.frombuffer(self.span_counts, dtype=np.int32).reshape(-1, 10)

        def column(i: int) -> NDArray[np.int64]:
            return counts[:, i].astype(np.int64)

        return StepRecords(
            replica=column(0),
            start=times[:, 0].copy(),
            step=times[:, 1].copy(),
            increment=times[:, 2].copy(),
            num_steps=column(1),
            num_decodes=column(2),
            first_token_step=column(3),
            prefill_tokens=column(4),
            num_prefills=column(5),
            context_tokens=times[:, 3].copy(),
            num_waiting=column(6),
            num_running=column(7),
            free_blocks=column(8),
            preempted=column(9),
        )

    def requests(self, arrival: NDArray[np.float64], prompt: Any, output: Any) -> RequestRecords:
        """Request columns; ``arrival``, ``prompt`` and ``output`` in trace order."""

        def column(values: array[Any]) -> NDArray[np.int64]:
            return np.frombuffer(values, dtype=np.dtype(values.typecode)).astype(np.int64)

        def times(values: array[float]) -> NDArray[np.float64]:
            found = np.frombuffer(values, dtype=np.float64).copy()
            found[found < 0] = NEVER
            return found

        extra = np.array(self.extra_ranges, dtype=np.float64).reshape(-1, 4)
        return RequestRecords(
            arrival=arrival,
            scheduled=times(self.scheduled),
            first_token=times(self.first_token),
            finish=times(self.finish),
            prompt_tokens=np.asarray(prompt, dtype=np.int64),
            output_tokens=np.asarray(output, dtype=np.int64),
            cached_tokens=np.maximum(column(self.cached), 0),
            preemptions=column(self.preemptions),
            status=column(self.status),
            replica=column(self.replica),
            first_token_step=column(self.first_step),
            last_token_step=column(self.last_step),
            extra_ranges=extra[np.lexsort((extra[:, 1], extra[:, 0]))],
            range_start=times(self.range_start),
        )


__all__ = ["NEVER", "Recorder", "SimulationRecords"]
