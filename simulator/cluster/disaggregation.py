"""Prefill on one replica, decode on another: requests change hands with their KV.

A prefill replica computes a request as if it had one output token, and keeps its blocks. Its KV goes to a decode
replica once that has reserved blocks and a place in its batch for it; until then it waits, first come first served,
and the prefill replica's blocks stay held: that is the back-pressure. When the last byte has arrived, the blocks on the
prefill side are free and the request joins the decode batch before the next step.

A request that has lost its replica comes again with the tokens it had made: its prefill computes those, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import inf, nan

import numpy as np

from simulator.cluster.chunks import Chunks
from simulator.cluster.clock import Clock
from simulator.cluster.dispatcher import Dispatcher, Finished, Through
from simulator.cluster.handover import Chunk, Handover, Port
from simulator.cluster.mixed import Mixed
from simulator.cluster.plan import ClusterPlan
from simulator.cluster.replica import Replica
from simulator.cluster.roles import check_roles
from simulator.cluster.transfers import Moved, Transfers, Turnstile
from simulator.replica.moves import elsewhere, land, resume
from simulator.replica.recorder import Columns
from simulator.replica.records import ClusterEvent, Status
from simulator.scheduling.request import Request
from traces.trace import Trace


class Disaggregation:
    """Takes requests from prefill to decode replicas."""

    def __init__(
        self,
        cluster: ClusterPlan,
        member: Sequence[int],
        clock: Clock,
        columns: Columns,
        trace: Trace,
        prefill: Dispatcher,
        decode: Dispatcher,
        *,
        turnstile: Turnstile | None = None,
    ) -> None:
        """prefill, decode: choose the replicas. turnstile: of others who act on the engines. Raises ScenarioError when
        the groups do not fit together."""
        plan = cluster.disaggregation
        assert plan is not None
        check_roles(cluster, plan)
        assert cluster.topology is not None
        self.transfers = Transfers(clock, cluster.topology)
        self.plan = plan
        self._decode_first = plan.first_token == "decode"  # noqa: S105 - not that kind of token
        self.prefill_replica = [-1] * len(trace)
        self.columns, self._turnstile = columns, turnstile or Turnstile(clock)
        self.prefill, self.decode = prefill, decode
        self.here: dict[int, Handover] = {}  # by row, from prefill to landing
        self.decoding = bytearray(len(trace))  # rows that the decode router has placed
        self.made: dict[int, tuple[int, float]] = {}  # row -> (tokens computed, time of the token) of a lost prefill
        self.ports: list[Port | None] = [None] * len(member)  # by place
        self.groups = cluster.groups
        self.emptied: Callable[[Port, float], None] = _nothing  # told when nobody may be on the way from there any more
        self._mixed = None if plan.mixed is None else Mixed(plan.mixed)
        self._helps: set[int] = set()  # rows to be computed on a decode replica because prefill replicas are busy
        prefill.replicas = [Through(partial(self._to_prefill, place)) for place in range(len(member))]
        decode.replicas = [Through(partial(self._to_decode, place)) for place in range(len(member))]

    @property
    def events(self) -> list[ClusterEvent]:
        return [] if self._mixed is None else self._mixed.events

    # -- building ------------------------------------------------------------------------------------------------

    def connect(self, replicas: Sequence[Replica]) -> None:
        """The replicas, once they are built."""
        for replica in replicas:
            self.add(replica)

    def add(self, replica: Replica) -> None:
        """One replica, before it has computed anything."""
        self.ports[replica.place] = Port(replica, self._granted, use_hits=self.plan.decode_prefix_hits)
        if replica.group.role == "prefill":
            replica.engine.state.keeps = True
            if self.plan.push:
                replica.engine.observer = Chunks(replica, self._chunk, self._preempted, replica.engine.observer)

    def told_on(self, place: int) -> Finished:
        """What an engine calls when a request has ended there."""
        ends = [dispatcher.told_on(place) for dispatcher in (self.prefill, self.decode)]

        def finished(request: Request, time: float) -> None:
            handover, port = self.here.get(request.row), self.port(place)
            if handover is not None and handover.source is port:
                self._computed(handover, request, time)
                return
            state = port.replica.engine.state
            if request in state.kept:
                state.let_go(request)
                port.blocks_changed(time)
            helped = self.no_longer_helped(request.row, time)
            if not helped and port.replica.group.role == "prefill":  # its only token came with the prompt
                port.pending -= request.prompt_tokens
            ends[self.decoding[request.row]](request, time)
            self.flush(time)

        return finished

    def no_longer_helped(self, row: int, time: float) -> bool:
        """A request has left. True: a replica served it against its role."""
        return self._mixed is not None and self._mixed.ended(row, time)

    def port(self, place: int) -> Port:
        """Of the replica in a place."""
        port = self.ports[place]
        assert port is not None
        return port

    def deliver(self, request: Request, now: float) -> None:
        """A request arrives at the cluster."""
        if request.prompt_tokens < self.plan.min_prompt_tokens:
            self.decode_whole(request, now)
        else:
            self.prefill.deliver(request, now)

    def decode_whole(self, request: Request, now: float) -> None:
        """A request is computed where it is decoded."""
        self.decoding[request.row] = 1
        self.decode.route(request, now)

    def flush(self, time: float) -> None:
        """Who waits at a router may have a replica now."""
        for dispatcher in (self.prefill, self.decode):
            dispatcher.flush(time)

    def close(self, *, drained: bool) -> None:
        """The simulation stops, see ``Dispatcher``."""
        self.decode.close(drained=drained)

    def records(self, until: float) -> Moved:
        """What the simulation's records say of all this. until: when it stopped, s."""
        prefill, replica = (
            np.array(self.prefill_replica, dtype=np.int64),
            np.array(self.columns.replica, dtype=np.int64),
        )
        return {
            "transfers": self.transfers.records(until),
            "link_bytes": self.transfers.link_bytes(),
            "prefill_replica": np.where(prefill < 0, replica, prefill),
        }

    # -- prefill -------------------------------------------------------------------------------------------------

    def _to_prefill(self, place: int, request: Request, now: float) -> None:
        """The router has chosen a replica for a prompt."""
        port = self.port(place)
        if port.shut:
            port.received.append(request)
            return
        if port.replica.group.role != "prefill":
            port.replica.receive(request, now)
            return
        more = request.output_tokens > request.target - request.prompt_tokens + 1  # than the prefill side makes
        if self._mixed is not None and more and self._helped(self._mixed, port, request, now):
            return
        port.pending += request.prompt_tokens
        if more:
            self._hand_on(port, request, now)
        port.replica.receive(request, now)

    def _hand_on(self, port: Port, request: Request, now: float) -> None:
        """What a prefill replica computes here is decoded elsewhere."""
        handover = Handover(request, port, request.target - self._decode_first)
        target, time = self.made.pop(request.row, (-1, inf))
        if target == request.target:
            handover.last_token = time
        self.here[request.row] = port.going[request.row] = handover
        if self.plan.push:
            self.decoding[request.row] = 1
            self.decode.route(request, now)
        request.output_tokens = request.target - request.prompt_tokens + 1

    def _begin(self, handover: Handover, now: float) -> None:
        """Its prompt is being computed: time to reserve blocks where it goes."""
        handover.begun = True
        if handover.target is not None and not handover.target.shut:
            handover.target.join(handover, now)

    def _helped(self, mixed: Mixed, port: Port, request: Request, now: float) -> bool:
        """Whether one replica serves the whole request, as the pool of the other role has too much to do."""
        others = [self.port(place) for place in self.decode.candidates_of(request.row).tolist()]
        fits = request.prompt_tokens + request.output_tokens <= port.replica.group.longest_request
        if fits and mixed.decodes_too(others):
            mixed.helps(port, request.row, "decodes too", now)
            port.replica.receive(request, now)
            return True
        if not mixed.too_many_prompts(port, others, now):
            return False
        self.prefill.left(port.replica.place, request)
        self._helps.add(request.row)
        self.decode_whole(request, now)
        return True

    def _chunk(self, request: Request, chunk: Chunk, now: float) -> None:
        """Part of a prompt is computed from now on."""
        handover = self.here.get(request.row)
        if handover is not None and handover.request is request:
            self._turnstile.then(request.row, partial(self._follow, handover, chunk), now)

    def _preempted(self, request: Request, now: float) -> None:
        """A prompt that had been begun waits again."""
        handover = self.here.get(request.row)
        if handover is not None and handover.request is request:
            self._turnstile.then(request.row, partial(self._revoke, handover), now)

    def _revoke(self, handover: Handover, now: float) -> None:
        """It must not hold blocks of its decode replica while it waits for some here, which may be those of requests
        that wait for a decode replica: nobody would ever move.
        """
        if handover.begun:
            handover.begun = False
            self.stop_sending(handover, now)

    def stop_sending(self, handover: Handover, now: float) -> None:
        """Its decode replica has its blocks again; what has been sent was sent."""
        if handover.transfer is not None:
            self.transfers.cancel(handover.transfer, now)
            handover.transfer = None
        if handover.target is not None:
            handover.target.give_back(handover, now)
        handover.forget_sent()

    def _follow(self, handover: Handover, chunk: Chunk, now: float) -> None:
        if handover.over:
            return
        if not handover.begun:
            self._begin(handover, now)
        if self.plan.layerwise:
            handover.chunks.append(chunk)
            if handover.transfer is not None:
                self._stream(handover, now)

    def _computed(self, handover: Handover, request: Request, time: float) -> None:
        """The prompt has been computed and its last token's output is there; the request goes on elsewhere."""
        row, columns, port = request.row, self.columns, handover.source
        columns.status[row] = Status.FAILED if handover.failed else Status.IN_FLIGHT
        columns.finish[row] = nan
        first = request.target == request.prompt_tokens
        if not self._decode_first:  # the client keeps the token it had if the prompt had to be computed again
            handover.last_token = min(handover.last_token, time)
        if first:
            columns.first_token[row] = nan if self._decode_first else handover.last_token
        if request not in port.replica.engine.state.kept:
            self._turnstile.then(row, partial(self._compute_again, handover), time)
            return
        handover.computed = True
        self.prefill_replica[row] = port.replica.index
        port.pending -= request.prompt_tokens
        self.prefill.left(port.replica.place, request)
        self.prefill.flush(time)
        self._turnstile.then(row, partial(self._hand_over, handover), time)

    def _compute_again(self, handover: Handover, now: float) -> None:
        """The request was preempted with its last token on the way."""
        if handover.over:
            return
        self._revoke(handover, now)
        handover.request = elsewhere(handover.request)
        handover.source.replica.receive(handover.request, now)

    # -- between -------------------------------------------------------------------------------------------------

    def _hand_over(self, handover: Handover, now: float) -> None:
        if handover.over:
            return
        if handover.failed:
            self.let_go(handover, now)
        elif not self.plan.push:
            self.decoding[handover.request.row] = 1
            self.decode.route(handover.request, now)
        elif handover.transfer is not None:
            self._send(handover, now)
        elif not handover.begun and handover.target is not None:
            self._begin(handover, now)

    def _to_decode(self, place: int, request: Request, now: float) -> None:
        """The decode router has chosen."""
        handover, port = self.here.get(request.row), self.port(place)
        if handover is not None:
            handover.target = port
            port.coming[request.row] = handover
            if (handover.begun or not self.plan.push) and not port.shut:
                port.join(handover, now)
        elif port.shut:
            port.received.append(request)
        else:  # to be computed where it is decoded
            if request.row in self._helps:
                self._helps.remove(request.row)
                assert self._mixed is not None
                self._mixed.helps(port, request.row, "computes prompts too", now)
            port.replica.receive(request, now)

    def _granted(self, handover: Handover, time: float) -> None:
        self._turnstile.then(handover.request.row, partial(self._open, handover), time)

    def _open(self, handover: Handover, now: float) -> None:
        target = handover.target
        if not handover.granted or target is None or target.shut:
            return  # and given back at once, or soon
        ends = handover.source.replica, target.replica
        handover.transfer = self.transfers.open(
            "kv", handover.request.row, *ends, now, partial(self._arrived, handover, target)
        )
        self._stream(handover, now)
        if handover.computed:
            self._send(handover, now)

    def _stream(self, handover: Handover, now: float) -> None:
        """Layer by layer: KV of a chunk comes to be at an even pace in its step, that of the last layer as it ends."""
        transfer, kv = handover.transfer, handover.source.replica.group.kv
        assert kv is not None and transfer is not None
        for chunk in handover.chunks:
            first, last = max(chunk.first, handover.sent_tokens), min(chunk.last, handover.tokens)
            if first > handover.sent_tokens:  # a prefix that was in the cache
                self.transfers.add(transfer, kv.between(handover.sent_tokens, first), now, begin=chunk.begin)
            if last > first:
                size = kv.between(first, last)
                self.transfers.add(transfer, size - size / kv.layers, now, begin=chunk.begin, made=chunk.end)
                self.transfers.add(transfer, size / kv.layers, now, begin=chunk.end)
                handover.sent_tokens = last
        handover.chunks.clear()

    def _send(self, handover: Handover, now: float) -> None:
        """All that has not been sent yet."""
        kv, transfer = handover.source.replica.group.kv, handover.transfer
        assert kv is not None and transfer is not None
        if handover.tokens > handover.sent_tokens:
            self.transfers.add(transfer, kv.between(handover.sent_tokens, handover.tokens), now)
        self.transfers.close(transfer, now)

    # -- decode --------------------------------------------------------------------------------------------------

    def _arrived(self, handover: Handover, target: Port, now: float) -> None:
        handover.arrived = True
        self.let_go(handover, now)
        moved = elsewhere(handover.request, computed=handover.tokens)
        moved.output_tokens, moved.table = handover.output_tokens, handover.table
        target.replica.at_next_step(partial(self._land, handover, target, moved), now)

    def let_go(self, handover: Handover, now: float) -> None:
        """Nobody needs the KV on the prefill side any more."""
        port, request = handover.source, handover.request

        def release(time: float) -> bool:
            port.going.pop(request.row, None)
            if request in port.replica.engine.state.kept:
                port.replica.engine.state.let_go(request)
                port.blocks_changed(time)
            self.emptied(port, time)
            return True

        port.replica.at_next_step(release, now)

    def _land(self, handover: Handover, port: Port, moved: Request, time: float) -> bool:
        if handover.over or port.shut:
            return True
        if self._decode_first:
            landed = resume(port.replica.engine, moved)
        else:
            landed = land(port.replica.engine, moved, handover.last_token)
        if landed:
            self.columns.replica[moved.row] = port.replica.index
            port.incoming -= 1
            del self.here[moved.row], port.coming[moved.row]
            port.blocks_changed(time)
        return landed


def _nothing(port: Port, time: float) -> None:
    del port, time
