"""Prefill on one replica, decode on another: requests change hands with their KV.

A prefill replica computes a request as if it had one output token, and keeps its blocks. Its KV goes to a decode
replica once that has reserved blocks and a place in its batch for it; until then it waits, first come first served,
and the prefill replica's blocks stay held: that is the back-pressure. When the last byte has arrived, the blocks on the
prefill side are free and the request joins the decode batch before the next step.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import nan

import numpy as np

from simulator.cluster.chunks import Chunks
from simulator.cluster.clock import Clock
from simulator.cluster.dispatcher import Dispatcher, Finished
from simulator.cluster.handover import Chunk, Handover, Landing
from simulator.cluster.plan import ClusterPlan, MixedPlan
from simulator.cluster.prediction import queued_tokens
from simulator.cluster.replica import Replica
from simulator.cluster.roles import check_roles
from simulator.cluster.transfers import Moved, Transfers, Turnstile
from simulator.kv.prefix import BlockTable
from simulator.replica.moves import elsewhere, land, resume
from simulator.replica.recorder import Columns
from simulator.replica.records import ClusterEvent, Status
from simulator.replica.steps import OnFinish
from simulator.scheduling.request import Request
from traces.trace import Trace


class Entrance:
    """What a router takes for a replica."""

    def __init__(self, receive: Finished) -> None:
        self.receive = receive


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
    ) -> None:
        """prefill, decode: choose the replicas. Raises ScenarioError when the groups do not fit together."""
        plan = cluster.disaggregation
        assert plan is not None
        check_roles(cluster, plan)
        assert cluster.topology is not None
        self.transfers = Transfers(clock, cluster.topology)
        self.plan = plan
        self._decode_first = plan.first_token == "decode"  # noqa: S105 - not that kind of token
        self.prefill_replica = [-1] * len(trace)
        self._groups = [cluster.groups[g] for g in member]
        self._columns, self._turnstile = columns, Turnstile(clock)
        self._prefill, self._decode = prefill, decode
        self._here: dict[int, Handover] = {}  # by row, from prefill to landing
        self._decoding = bytearray(len(trace))  # rows that the decode router has placed
        self._replicas: Sequence[Replica] = ()
        self._landings: list[Landing] = []
        self.events: list[ClusterEvent] = []
        self._mixed = plan.mixed
        self._pending = [0] * len(member)  # prompt tokens on their way through a prefill replica
        self._helps: set[int] = set()  # rows to be computed on a decode replica because prefill replicas are busy
        self._helping: dict[int, int] = {}  # row -> replica that serves it against its role
        self._helped_by = [0] * len(member)  # such rows, per replica

    # -- building ------------------------------------------------------------------------------------------------

    def connect(self, replicas: Sequence[Replica]) -> None:
        """The replicas, once they are built."""
        self._replicas = replicas
        self._landings = [
            Landing(replica, self._granted, use_hits=self.plan.decode_prefix_hits) for replica in replicas
        ]
        for replica in replicas:
            if replica.group.role == "prefill":
                replica.engine.state.keeps = True
                self._prefill.replicas[replica.index] = Entrance(partial(self._to_prefill, replica))
                if self.plan.push:
                    replica.engine.observer = Chunks(replica, self._chunk, self._preempted, replica.engine.observer)
        self._decode.replicas = [Entrance(partial(self._to_decode, replica)) for replica in replicas]

    def finished_on(self, index: int) -> OnFinish:
        """What the engine of a replica calls when a request has ended there."""
        ends = [dispatcher.told_on(index) for dispatcher in (self._prefill, self._decode)]

        def finished(request: Request, time: float) -> None:
            handover = self._here.get(request.row)
            if handover is not None and handover.source == index:
                self._computed(handover, request, time)
                return
            state = self._replicas[index].engine.state
            if request in state.kept:
                state.let_go(request)
                self._again(index, time)
            if self._mixed is not None:
                self._ended(index, request, time)
            ends[self._decoding[request.row]](request, time)
            for dispatcher in (self._prefill, self._decode):
                dispatcher.flush(time)

        return finished

    def deliver(self, request: Request, now: float) -> None:
        """A request arrives at the cluster."""
        if request.prompt_tokens < self.plan.min_prompt_tokens:
            self._decoding[request.row] = 1
            self._decode.route(request, now)
        else:
            self._prefill.deliver(request, now)

    def records(self, until: float) -> Moved:
        """What the simulation's records say of all this. until: when it stopped, s."""
        prefill, replica = (
            np.array(self.prefill_replica, dtype=np.int64),
            np.array(self._columns.replica, dtype=np.int64),
        )
        return {
            "transfers": self.transfers.records(until),
            "link_bytes": self.transfers.link_bytes(),
            "prefill_replica": np.where(prefill < 0, replica, prefill),
        }

    # -- prefill -------------------------------------------------------------------------------------------------

    def _to_prefill(self, replica: Replica, request: Request, now: float) -> None:
        """The router has chosen a prefill replica."""
        if self._mixed is not None and request.output_tokens > 1 and self._helped(self._mixed, replica, request, now):
            return
        self._pending[replica.index] += request.prompt_tokens
        if request.output_tokens > 1:
            tokens = request.prompt_tokens - self._decode_first
            self._here[request.row] = Handover(request, replica.index, tokens)
            if self.plan.push:
                self._decoding[request.row] = 1
                self._decode.route(request, now)
            request.output_tokens = 1
        replica.receive(request, now)

    def _begin(self, handover: Handover, now: float) -> None:
        """Its prompt is being computed: time to reserve blocks where it goes."""
        handover.begun = True
        if handover.target >= 0:
            self._landings[handover.target].join(handover, now)

    def _helped(self, mixed: MixedPlan, replica: Replica, request: Request, now: float) -> bool:
        """Whether one replica serves the whole request, as the pool of the other role has too much to do."""
        bound = mixed.waiting_requests
        if bound is not None and request.prompt_tokens + request.output_tokens <= replica.group.longest_request:
            queues = [len(landing.waiting) for landing in self._landings if landing.replica.group.role != "prefill"]
            if min(queues) >= bound:
                self._help(replica.index, request.row, "decodes too", now)
                replica.receive(request, now)
                return True
        if mixed.prompt_tokens is None or self._pending[replica.index] < mixed.prompt_tokens:
            return False
        if not any(self._queued(other, now) < mixed.prompt_tokens for other in self._decode.candidates_of(request.row)):
            return False
        self._prefill.left(replica.index, request)
        self._decoding[request.row] = 1
        self._helps.add(request.row)
        self._decode.route(request, now)
        return True

    def _queued(self, index: int, now: float) -> int:
        """Prompt tokens that a replica has still to compute."""
        engine = self._replicas[index].engine
        engine.settle(now)
        return queued_tokens(engine.state)

    def _help(self, index: int, row: int, what: str, now: float) -> None:
        """A replica does the other role's work for a request."""
        self._helping[row] = index
        self._helped_by[index] += 1
        if self._helped_by[index] == 1:
            self.events.append(ClusterEvent(now, "role", index, f"{self._groups[index].name}: {what}"))

    def _helped_out(self, row: int, now: float) -> None:
        index = self._helping.pop(row, -1)
        if index >= 0:
            self._helped_by[index] -= 1
            if not self._helped_by[index]:
                self.events.append(ClusterEvent(now, "role", index, f"{self._groups[index].name}: its own role alone"))

    def _chunk(self, request: Request, chunk: Chunk, now: float) -> None:
        """Part of a prompt is computed from now on."""
        handover = self._here.get(request.row)
        if handover is not None:
            self._turnstile.then(request.row, partial(self._follow, handover, chunk), now)

    def _preempted(self, request: Request, now: float) -> None:
        """A prompt that had been begun waits again."""
        handover = self._here.get(request.row)
        if handover is not None:
            self._turnstile.then(request.row, partial(self._revoke, handover), now)

    def _revoke(self, handover: Handover, now: float) -> None:
        """It must not hold blocks of its decode replica while it waits for some here, which may be those of requests
        that wait for a decode replica: nobody would ever move.
        """
        if handover.begun:
            handover.begun = False
            if handover.transfer is not None:
                self.transfers.cancel(handover.transfer, now)
                handover.transfer = None
            self._landings[handover.target].give_back(handover, now)
            handover.chunks.clear()
            handover.sent_tokens = 0
            if handover.table is not None:
                handover.table = BlockTable(handover.table.ids)

    def _follow(self, handover: Handover, chunk: Chunk, now: float) -> None:
        if not handover.begun:
            self._begin(handover, now)
        if self.plan.layerwise:
            handover.chunks.append(chunk)
            if handover.transfer is not None:
                self._stream(handover, now)

    def _computed(self, handover: Handover, request: Request, time: float) -> None:
        """The prompt has been computed and its last token's output is there; the request goes on elsewhere."""
        row, columns = request.row, self._columns
        columns.status[row], columns.finish[row] = Status.IN_FLIGHT, nan
        if self._decode_first:
            columns.first_token[row] = nan
        else:  # the client keeps the token it had if the prompt had to be computed again
            handover.first_token = columns.first_token[row] = min(handover.first_token, time)
        if request not in self._replicas[handover.source].engine.state.kept:
            self._turnstile.then(row, partial(self._compute_again, handover), time)
            return
        handover.computed = True
        self.prefill_replica[row] = handover.source
        self._pending[handover.source] -= request.prompt_tokens
        self._prefill.left(handover.source, request)
        self._prefill.flush(time)
        self._turnstile.then(row, partial(self._hand_over, handover), time)

    def _compute_again(self, handover: Handover, now: float) -> None:
        """The request was preempted with its last token on the way."""
        self._revoke(handover, now)
        handover.request = elsewhere(handover.request)
        self._replicas[handover.source].receive(handover.request, now)

    def _ended(self, index: int, request: Request, time: float) -> None:
        if request.row in self._helping:
            self._helped_out(request.row, time)
        elif self._groups[index].role == "prefill":  # its only token came with the prompt
            self._pending[index] -= request.prompt_tokens

    # -- between -------------------------------------------------------------------------------------------------

    def _hand_over(self, handover: Handover, now: float) -> None:
        if not self.plan.push:
            self._decoding[handover.request.row] = 1
            self._decode.route(handover.request, now)
        elif handover.transfer is not None:
            self._send(handover, now)
        elif not handover.begun and handover.target >= 0:
            self._begin(handover, now)

    def _to_decode(self, replica: Replica, request: Request, now: float) -> None:
        """The decode router has chosen."""
        handover = self._here.get(request.row)
        if handover is None:  # to be computed where it is decoded
            if request.row in self._helps:
                self._helps.remove(request.row)
                self._help(replica.index, request.row, "computes prompts too", now)
            replica.receive(request, now)
            return
        handover.target = replica.index
        if handover.begun or not self.plan.push:
            self._landings[replica.index].join(handover, now)

    def _granted(self, handover: Handover, time: float) -> None:
        self._turnstile.then(handover.request.row, partial(self._open, handover), time)

    def _open(self, handover: Handover, now: float) -> None:
        if not handover.granted:
            return  # and given back at once
        row, source, target = handover.request.row, handover.source, handover.target
        ends = self._replicas[source], self._replicas[target]
        handover.transfer = self.transfers.open("kv", row, *ends, now, partial(self._arrived, handover))
        self._stream(handover, now)
        if handover.computed:
            self._send(handover, now)

    def _stream(self, handover: Handover, now: float) -> None:
        """Layer by layer: KV of a chunk comes to be at an even pace in its step, that of the last layer as it ends."""
        transfer, kv = handover.transfer, self._groups[handover.source].kv
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
        kv, transfer = self._groups[handover.source].kv, handover.transfer
        assert kv is not None and transfer is not None
        if handover.tokens > handover.sent_tokens:
            self.transfers.add(transfer, kv.between(handover.sent_tokens, handover.tokens), now)
        self.transfers.close(transfer, now)

    # -- decode --------------------------------------------------------------------------------------------------

    def _arrived(self, handover: Handover, now: float) -> None:
        source = self._replicas[handover.source]

        def let_go(time: float) -> bool:
            source.engine.state.let_go(handover.request)
            self._again(handover.source, time)
            return True

        source.at_next_step(let_go, now)
        moved = elsewhere(handover.request, computed=handover.tokens)
        moved.output_tokens, moved.table = handover.output_tokens, handover.table
        self._replicas[handover.target].at_next_step(partial(self._land, handover, moved), now)

    def _land(self, handover: Handover, moved: Request, time: float) -> bool:
        target = self._replicas[handover.target]
        if self._decode_first:
            landed = resume(target.engine, moved)
        else:
            landed = land(target.engine, moved, handover.first_token)
        if landed:
            self._columns.replica[moved.row] = target.index
            self._landings[target.index].incoming -= 1
            del self._here[moved.row]
            self._again(target.index, time)
        return landed

    def _again(self, index: int, time: float) -> None:
        """Blocks of a replica have become free or hold more between two steps: who waits for some may have them now."""
        landing = self._landings[index]
        if landing.waiting:
            landing.reserve(time)
