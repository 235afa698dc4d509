"""Requests that come back to the router after every slice of their answer (engine policy ``slices``).

What a replica is sent is a request whose answer ends with the slice. When that has ended and the answer has not, the
rest is a request for the router again: its KV is dropped, so prompt and answer so far are computed anew where it goes
next, which counts as a preemption. Who comes back at one instant is routed the longest first.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import nan

from simulator.cluster.clock import Clock
from simulator.cluster.dispatcher import Dispatcher, Through
from simulator.cluster.replica import Replica
from simulator.cluster.transfers import Turnstile
from simulator.replica.moves import elsewhere
from simulator.replica.recorder import Columns
from simulator.replica.records import Status
from simulator.replica.steps import OnFinish
from simulator.scheduling.request import Request


class Slicing:
    """Between the dispatcher and replicas that serve in slices."""

    def __init__(self, clock: Clock, columns: Columns, dispatcher: Dispatcher) -> None:
        self._columns, self._dispatcher = columns, dispatcher
        self._turnstile = Turnstile(clock)
        self._whole: dict[int, int] = {}  # output tokens of the requests that are cut, by row

    def connect(self, replicas: Sequence[Replica]) -> None:
        """The replicas, once they are built."""
        for replica in replicas:
            if tokens := replica.group.slice_tokens:
                self._dispatcher.replicas[replica.index] = Through(partial(self._enter, replica, tokens))

    def finished_on(self, index: int) -> OnFinish:
        """What the engine of a replica calls when a request, or a slice of it, has ended there."""
        told = self._dispatcher.told_on(index)

        def finished(request: Request, time: float) -> None:
            whole = self._whole.pop(request.row, 0)
            if whole > request.output_tokens:
                self._come_back(index, request, whole, time)
            else:
                told(request, time)

        return finished

    def _enter(self, replica: Replica, tokens: int, request: Request, now: float) -> None:
        made = request.target - request.prompt_tokens
        self._whole[request.row] = request.output_tokens
        request.output_tokens = min(request.output_tokens, made + tokens)
        replica.receive(request, now)

    def _come_back(self, index: int, request: Request, whole: int, time: float) -> None:
        row, columns = request.row, self._columns
        slice_ = (row, request.first_token_step, request.last_step - request.padding, columns.range_start[row], index)
        columns.extra_ranges.append(slice_)
        columns.status[row], columns.finish[row] = Status.IN_FLIGHT, nan
        columns.first_step[row] = columns.last_step[row] = 0
        rest = elsewhere(request)
        rest.output_tokens = whole
        rest.target = request.prompt_tokens + request.output_tokens
        rest.lost = rest.target - 1
        rest.preemptions = columns.preemptions[row] = request.preemptions + 1
        place = row - rest.target * len(columns.status)
        self._turnstile.then(place, partial(self._route, index, request, rest), time)

    def _route(self, index: int, request: Request, rest: Request, now: float) -> None:
        self._dispatcher.left(index, request)
        self._dispatcher.route(rest, now)
        self._dispatcher.flush(now)
