"""When requests enter: at the trace's times, when a user of a closed loop is free, or after a turn's think time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import chain

import numpy as np
from simpy.events import Event

from simulator.cluster.clock import ARRIVAL, Clock
from simulator.kv.prefix import BlockTable
from simulator.scheduling.request import Request
from traces.trace import Trace

Deliver = Callable[[Request, float], None]
CHUNK = 8192  # rows turned into Python numbers at a time


class Arrivals:
    """Feeds a trace to ``deliver``. Open-loop rows come at their time; the others when what they wait for is done."""

    def __init__(
        self,
        clock: Clock,
        trace: Trace,
        deliver: Deliver,
        *,
        users: int | None = None,
        block_size: int = 16,
        use_prefix: bool = True,
    ) -> None:
        """users: closed loop; rows are taken in order, one at a time per user, and their times are ignored."""
        self.clock = clock
        self.trace = trace
        self.deliver = deliver
        self.arrival = trace.arrival.copy()  # s, as it came to be
        self._ids = trace.prefix if use_prefix else None
        self._stride = 1
        if self._ids is not None and block_size > self._ids.block_tokens:
            self._stride = block_size // self._ids.block_tokens
        self._followers = _followers(trace) if users is None else {}
        self._rows = self._open_rows()
        self._next: tuple[float, int, int, int, int] | None = None
        self._users = users
        self._is_fed_back = users is not None or bool(self._followers)

    @property
    def has_feedback(self) -> bool:
        """Whether arrivals depend on finishes, which must then be reported when they happen."""
        return self._is_fed_back

    def start(self) -> None:
        """Schedule the first arrivals."""
        if self._users is None:
            self._next = next(self._rows, None)
            if self._next is not None:
                self.clock.at(self._next[0], ARRIVAL, self._arrive)
            return
        for _ in range(self._users):
            self._enter_next(0.0)

    def finished(self, request: Request, time: float) -> None:
        """A request has ended: whoever waited for it comes next."""
        if self._users is not None:
            self._enter_next(time)
            return
        for row, delay in self._followers.pop(request.row, ()):
            self._schedule(row, time + delay)

    def _open_rows(self) -> Iterator[tuple[float, int, int, int, int]]:
        """(arrival, row, prompt, output, priority) of the rows that come at their own time."""
        trace = self.trace
        for start in range(0, len(trace), CHUNK):
            part = slice(start, start + CHUNK)
            stop = min(start + CHUNK, len(trace))
            priority = [0] * (stop - start) if trace.priority is None else trace.priority[part].tolist()
            rows = zip(
                trace.arrival[part].tolist(),
                range(start, stop),
                trace.prompt_tokens[part].tolist(),
                trace.output_tokens[part].tolist(),
                priority,
                strict=True,
            )
            if self._users is None and trace.think_time is not None:
                waits = (~np.isnan(trace.think_time[part])).tolist()
                rows = (row for row, follows in zip(rows, waits, strict=True) if not follows)  # type: ignore[assignment]
            yield from rows

    def _arrive(self, event: Event) -> None:
        current = self._next
        assert current is not None
        time = current[0]
        rows = self._rows
        while current is not None and current[0] <= time:
            _, row, prompt, output, priority = current
            table = self._table(row) if self._ids is not None else None
            self.deliver(Request(row, time, prompt, output, priority, table), time)
            current = next(rows, None)
        self._next = current
        if current is not None:
            self.clock.at(current[0], ARRIVAL, self._arrive)

    def _table(self, row: int) -> BlockTable:
        blocks = self._ids
        assert blocks is not None
        begin, end = int(blocks.offsets[row]), int(blocks.offsets[row + 1])
        return BlockTable(blocks.ids[begin + self._stride - 1 : end : self._stride].tolist())

    def _enter_next(self, time: float) -> None:
        current = next(self._rows, None)
        if current is not None:
            self._schedule(current[1], time)

    def _schedule(self, row: int, time: float) -> None:
        trace = self.trace

        def enter(_: Event) -> None:
            self.arrival[row] = time
            priority = 0 if trace.priority is None else int(trace.priority[row])
            table = self._table(row) if self._ids is not None else None
            request = Request(row, time, int(trace.prompt_tokens[row]), int(trace.output_tokens[row]), priority, table)
            self.deliver(request, time)

        self.clock.at(time, ARRIVAL, enter)


def _followers(trace: Trace) -> dict[int, list[tuple[int, float]]]:
    """row -> [(row of the next turn, think time)]."""
    if trace.think_time is None or trace.session is None:
        return {}
    following = np.flatnonzero(~np.isnan(trace.think_time)).tolist()
    turn = trace.turn if trace.turn is not None else np.arange(len(trace))
    order = np.lexsort((turn, trace.session)).tolist()
    before = {row: earlier for earlier, row in zip(chain([-1], order), order, strict=False)}
    found: dict[int, list[tuple[int, float]]] = defaultdict(list)
    for row in following:
        found[before[row]].append((row, float(trace.think_time[row])))
    return dict(found)
