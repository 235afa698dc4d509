"""Prefill and decode replicas that come and go: what becomes of the requests between them.

A prefill replica that goes takes with it what it had not handed over: those prompts are computed again elsewhere. So
are requests of a decode replica, with the tokens they had made; one that was only on its way there, its KV still on the
prefill side, goes to another decode replica, and nothing is computed again. Transfers from or to a replica that is gone
end there; the bytes that were sent stay on the links' accounts.
"""

from __future__ import annotations

from functools import partial
from math import inf

from simulator.cluster.disaggregation import Disaggregation
from simulator.cluster.handover import Handover, Port
from simulator.cluster.life import Life
from simulator.cluster.lifecycle import Lifecycle
from simulator.cluster.ways import Lost
from simulator.replica.moves import elsewhere
from simulator.replica.records import Status
from simulator.scheduling.request import Request


class Partings:
    """The ways and the traveller of a disaggregated cluster, see ``ways.py``."""

    def __init__(self, flow: Disaggregation) -> None:
        self._flow = flow
        self.told_on, self.flush = flow.told_on, flow.flush
        flow.decode.turned_away = self._waited_too_long
        self._ports: dict[Life, Port] = {}
        groups = flow.groups
        self._longest = min((group.longest_request for group in groups if group.role == "prefill"), default=0)

    def attend(self, lifecycle: Lifecycle) -> None:
        """Called once, before replicas come."""
        self._lifecycle = lifecycle
        lifecycle.travellers.append(self)
        self._flow.emptied = self._emptied

    # -- ways ----------------------------------------------------------------------------------------------------

    def opened(self, life: Life, now: float) -> None:
        del now
        self._flow.add(life.replica)
        self._ports[life] = self._flow.port(life.slot)

    def shut(self, life: Life) -> None:
        self._ports[life].shut = True

    def buried(self, life: Life, now: float) -> Lost:
        """Requests whose KV is on the prefill side still go to another decode replica."""
        flow, port = self._flow, self._ports.pop(life)
        if flow.ports[life.slot] is port:  # else somebody new is there already
            flow.ports[life.slot] = None
        for _, handover in sorted(port.coming.items()):
            if not handover.over:
                self._forget_target(handover)
                if not handover.failed:
                    flow.decode.route(handover.request, now)
        return [(life, request) for request in port.received]

    def left(self, life: Life, request: Request) -> None:
        flow, row = self._flow, request.row
        handover = flow.here.get(row)
        if handover is None:
            flow.no_longer_helped(row, float(self._lifecycle.clock.now))
            (flow.decode if flow.decoding[row] else flow.prefill).left(life.slot, request)
        else:
            self._dissolve(handover)
            request.output_tokens = handover.output_tokens
        flow.decoding[row] = 0

    def joined(self, life: Life, request: Request) -> None:
        self._flow.decoding[request.row] = 1
        self._flow.decode.joined(life.slot, request)

    def route(self, request: Request, now: float) -> None:
        """Where its prompt is computed; with all its tokens it may have grown too long for that."""
        flow = self._flow
        if flow.columns.status[request.row] != Status.IN_FLIGHT:
            return
        if request.prompt_tokens < flow.plan.min_prompt_tokens or request.target >= self._longest:
            flow.decode_whole(request, now)
        else:
            flow.prefill.route(request, now)

    def waiting(self, life: Life) -> int:
        return len(self._ports[life].waiting)

    # -- traveller -----------------------------------------------------------------------------------------------

    def holds(self, life: Life) -> bool:
        port = self._ports.get(life)
        return port is not None and bool(port.going or port.coming)

    def strand(self, life: Life, end: float, lost: Lost) -> None:
        self._lifecycle.later(life, partial(self._cut_off, life, self._ports[life], lost), end)

    def _cut_off(self, life: Life, port: Port, lost: Lost, now: float) -> None:
        """The step that was in flight has ended."""
        flow = self._flow
        evacuated = {request.row for _, request in lost}
        for row, handover in sorted(port.going.items()):
            if handover.arrived:
                continue  # it needs nothing from here any more
            handover.over = True
            flow.stop_sending(handover, now)
            if row not in evacuated:
                lost.append((life, self._again(handover)))
            flow.let_go(handover, now)
        for _, handover in sorted(port.coming.items()):
            if handover.over:
                continue
            if handover.arrived:
                handover.over = True
                lost.append((life, self._again(handover)))
            flow.stop_sending(handover, now)

    def _again(self, handover: Handover) -> Request:
        """What was computed on the prefill side is lost."""
        again = elsewhere(handover.request)
        if handover.computed:
            row, target = again.row, again.target
            again.lost = max(target, again.lost) if again.preemptions else target
            again.preemptions += 1
            self._flow.columns.preemptions[row] = again.preemptions
            if handover.last_token < inf:
                self._flow.made[row] = target, handover.last_token
        return again

    def _dissolve(self, handover: Handover) -> None:
        """No replica counts it any more."""
        flow, request, now = self._flow, handover.request, float(self._lifecycle.clock.now)
        handover.over = True
        flow.stop_sending(handover, now)
        if not handover.computed:
            flow.prefill.left(handover.source.replica.place, request)
            handover.source.pending -= request.prompt_tokens
        if handover.target is not None:
            self._forget_target(handover)
        elif flow.decoding[request.row]:
            flow.decode.withdraw(request.row)
        handover.source.going.pop(request.row, None)
        flow.here.pop(request.row, None)
        self._emptied(handover.source, now)

    def _forget_target(self, handover: Handover) -> None:
        target, row = handover.target, handover.request.row
        assert target is not None
        handover.target = None
        self._flow.decode.left(target.replica.place, handover.request)
        target.coming.pop(row, None)
        self._emptied(target, float(self._lifecycle.clock.now))

    def _emptied(self, port: Port, time: float) -> None:
        life = self._lifecycle.lives[port.replica.index]
        self._lifecycle.later(life, partial(self._lifecycle.empty_now, life), time)

    def _waited_too_long(self, request: Request, now: float) -> None:
        """At the decode router's door, for a decode replica: it has failed, and the prefill side need not keep it."""
        handover = self._flow.here.get(request.row)
        if handover is not None:
            handover.failed = True
            if handover.computed:
                del self._flow.here[request.row]
                self._flow.let_go(handover, now)
