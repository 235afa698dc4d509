"""When requests enter: at the trace's times, when a user of a closed loop is free, or after what they wait for."""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Callable, Iterator
from math import inf

import numpy as np
from numpy.typing import NDArray
from simpy.events import Event

from simulator.cluster.clock import ARRIVAL, Clock
from simulator.core.errors import ScenarioError
from simulator.kv.prefix import BlockTable
from simulator.scheduling.request import Request
from traces.answers import heirs
from traces.trace import Trace

Deliver = Callable[[Request, float], None]
Progress = Callable[[float, int, int], None]  # (simulated seconds, requests that arrived, requests in the trace)
Row = tuple[float, int, int, int, int, bool]  # arrival, row, prompt, output, priority, rejected
CHUNK = 1024


class Arrivals:
    """Feeds a trace to a cluster. Open-loop rows come at their time; the others when what they wait for is done."""

    def __init__(
        self,
        clock: Clock,
        trace: Trace,
        *,
        skip: NDArray[np.bool_],
        users: int | None = None,
        block_size: int = 16,
        use_prefix: bool = True,
        progress: Progress | None = None,
    ) -> None:
        """skip: rows that are rejected: they never enter, and whoever waits for them does not.
        users: closed loop; rows are taken in order, one at a time per user, and their times are ignored. Raises
        ScenarioError when rows wait for others.
        """
        self.clock = clock
        self.trace = trace
        self._followers, self._missing = _followers(trace)
        if users is not None and self._followers:
            raise ScenarioError(
                "users of a closed loop send requests in order, but some of these wait for the answers to others.",
                where="workload.closed_loop",
                remedy="Leave closed_loop out, or use requests that are no turns or calls of a program.",
            )
        self._waits = np.full(len(trace), users is not None)
        self._waits[list(self._missing)] = True
        self.arrival = np.where(self._waits, inf, trace.arrival)  # s, as it came to be; inf: not yet
        self._skip = skip
        self._users = users
        self._progress = progress
        self._prefix = trace.prefix if use_prefix else None
        if self._prefix is not None:  # views give Python's numbers and cost a third of an array's look-up
            self._offsets, self._ids = self._prefix.offsets.data, self._prefix.ids.data
        self._table_of = self._table
        if self._prefix is not None and trace.answers_stay:
            self._heirs = heirs(trace)
            self._table_of = self._table_with_answer
        self._paused = bool(self._followers)  # turns wait for each other
        self._labelled = trace.tenant is not None or trace.slo_class is not None or self._paused
        self._stride = 1  # trace blocks per engine block
        if self._prefix is not None and block_size > self._prefix.block_tokens:
            self._stride = block_size // self._prefix.block_tokens
        self.has_feedback = users is not None or bool(self._followers)  # finishes must be reported when they happen
        self._rows = self._own_time()
        self._next: Row | None = None

    def start(self, deliver: Deliver) -> None:
        """Schedule the first arrivals; every request goes to ``deliver(request, now)``."""
        self.deliver = deliver
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
        else:
            self._follow(request.row, time)

    def _own_time(self) -> Iterator[Row]:
        """Rows that wait for nothing, turned into Python numbers a chunk at a time."""
        trace = self.trace
        for start in range(0, len(trace), CHUNK):
            part = slice(start, start + CHUNK)
            rows = np.arange(start, min(start + CHUNK, len(trace)))
            if self._users is None:
                rows = rows[~self._waits[part]]
            if self._progress is not None and len(rows):
                self._progress(float(trace.arrival[rows[0]]), start, len(trace))
            yield from zip(
                trace.arrival[rows].tolist(),
                rows.tolist(),
                trace.prompt_tokens[rows].tolist(),
                trace.output_tokens[rows].tolist(),
                [0] * len(rows) if trace.priority is None else trace.priority[rows].tolist(),
                self._skip[rows].tolist(),
                strict=True,
            )

    def _arrive(self, _: Event) -> None:
        current = self._next
        assert current is not None
        clock, time = self.clock, current[0]
        while current is not None and (current[0] <= time or clock.pass_to(current[0])):
            time, row, prompt, output, priority, skipped = current
            if skipped:
                self._follow(row, time)
            else:
                table = None if self._prefix is None else self._table_of(row)
                request = Request(row, time, prompt, output, priority, table)
                if self._labelled:
                    self._label(request)
                self.deliver(request, time)
            current = next(self._rows, None)
        self._next = current
        if current is not None:
            self.clock.at(current[0], ARRIVAL, self._arrive)

    def _label(self, request: Request) -> None:
        if self.trace.tenant is not None:
            request.tenant = int(self.trace.tenant.codes[request.row])
        if self.trace.slo_class is not None:
            request.slo_class = int(self.trace.slo_class.codes[request.row])
        if self._paused:
            assert self.trace.session is not None
            request.session = int(self.trace.session[request.row])
            request.pause_s = self._pause_s(request.row)

    def _pause_s(self, row: int) -> float:
        """Until the first of those that wait for this row, s; -1: nobody does."""
        waiting = self._followers.get(row, ())
        return min((delay for follower, delay in waiting if not self._skip[follower]), default=-1.0)

    def _table(self, row: int) -> BlockTable:
        return self._blocks(self._offsets[row], self._offsets[row + 1])

    def _table_with_answer(self, row: int) -> BlockTable:
        """The ids of the prompt's blocks, and of those that its answer fills."""
        blocks, heir = self._prefix, self._heirs[row]
        if heir < 0:
            return self._table(row)
        assert blocks is not None
        tokens = int(self.trace.prompt_tokens[row] + self.trace.output_tokens[row]) - 1  # the last one has no KV
        begin, end = self._offsets[heir], self._offsets[heir + 1]
        return self._blocks(begin, min(end, begin + tokens // blocks.block_tokens))

    def _blocks(self, begin: int, end: int) -> BlockTable:
        """One id per engine block, of the last of the trace's blocks in it."""
        stride = self._stride
        return BlockTable(array("q", self._ids[begin + stride - 1 : end : stride].tobytes()))

    def _follow(self, row: int, time: float) -> None:
        for follower, delay in self._followers.pop(row, ()):
            self._missing[follower] -= 1
            if not self._missing[follower]:
                self._schedule(follower, time + delay)

    def _enter_next(self, time: float) -> None:
        for _, row, _, _, _, skipped in self._rows:
            if not skipped:
                self._schedule(row, time)
                return
            self.arrival[row] = time  # and it is turned away at once

    def _schedule(self, row: int, time: float) -> None:
        """Let a row that waited enter at ``time``."""
        trace = self.trace

        def enter(_: Event) -> None:
            self.arrival[row] = time
            if self._skip[row]:
                self._follow(row, time)
                return
            priority = 0 if trace.priority is None else int(trace.priority[row])
            table = None if self._prefix is None else self._table_of(row)
            prompt, output = int(trace.prompt_tokens[row]), int(trace.output_tokens[row])
            request = Request(row, time, prompt, output, priority, table)
            if self._labelled:
                self._label(request)
            self.deliver(request, time)

        self.clock.at(time, ARRIVAL, enter)


Followers = dict[int, list[tuple[int, float]]]  # row -> [(row that waits for it, s after the last it waits for)]


def _followers(trace: Trace) -> tuple[Followers, dict[int, int]]:
    """Who waits for whom, and how many rows each waits for. Rows that wait for none are in neither."""
    found: Followers = defaultdict(list)
    missing: dict[int, int] = defaultdict(int)
    for child, parent in (*_turns_before(trace), *_turns_named(trace)):
        think = 0.0 if trace.think_time is None else float(trace.think_time[child])
        found[parent].append((child, 0.0 if np.isnan(think) else think))
        missing[child] += 1
    return dict(found), dict(missing)


def _turns_before(trace: Trace) -> list[tuple[int, int]]:
    """(row, row of the turn before) of rows with a think time.

    The first turn of a conversation, and a row without one, has no turn to wait for, whatever its think time.
    """
    if trace.think_time is None or trace.session is None:
        return []
    turn = trace.turn if trace.turn is not None else np.arange(len(trace))
    order = np.lexsort((turn, trace.session))
    session = trace.session[order]
    same = (session[1:] == session[:-1]) & (session[1:] >= 0) & ~np.isnan(trace.think_time[order[1:]])
    if trace.after is not None:
        same &= trace.after.counts()[order[1:]] == 0
    return list(zip(order[1:][same].tolist(), order[:-1][same].tolist(), strict=True))


def _turns_named(trace: Trace) -> list[tuple[int, int]]:
    """(row, row that it waits for) of the column ``after``; turns that the trace does not hold are left out."""
    if trace.after is None:
        return []
    assert trace.session is not None
    assert trace.turn is not None
    rows = {key: row for row, key in enumerate(zip(trace.session.tolist(), trace.turn.tolist(), strict=True))}
    child = np.repeat(np.arange(len(trace)), trace.after.counts())
    named = zip(child.tolist(), trace.session[child].tolist(), trace.after.turns.tolist(), strict=True)
    return [(row, rows[session, turn]) for row, session, turn in named if (session, turn) in rows]
