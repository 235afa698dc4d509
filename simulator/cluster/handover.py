"""A request between its prefill and its decode replica, and where requests enter and leave a replica."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from math import inf

from simulator.cluster.replica import Replica
from simulator.cluster.transfers import Transfer
from simulator.kv.prefix import NO_HIT, BlockTable, PrefixCache
from simulator.scheduling.request import Request


@dataclass(frozen=True, slots=True)
class Chunk:
    """Prompt tokens ``[first, last)``, computed in a step from ``begin`` to ``end``, s."""

    first: int
    last: int
    begin: float
    end: float


class Handover:
    """A request between its prefill and its decode replica."""

    __slots__ = (
        "arrived",
        "begun",
        "chunks",
        "computed",
        "failed",
        "granted",
        "hit_tokens",
        "last_token",
        "output_tokens",
        "over",
        "request",
        "sent_tokens",
        "source",
        "table",
        "target",
        "tokens",
        "transfer",
    )

    def __init__(self, request: Request, source: Port, tokens: int) -> None:
        self.request = request  # on the prefill side, where it ends with the first token it makes
        self.output_tokens = request.output_tokens
        self.source = source
        self.target: Port | None = None  # None: not chosen yet
        self.tokens = tokens  # whose KV goes along
        self.table = None if request.table is None else BlockTable(request.table.ids)  # on the decode side
        self.sent_tokens = 0  # of ``tokens``: sent, or there before
        self.hit_tokens = 0  # of ``tokens``: in the target's prefix cache
        self.begun = False  # its prompt is being computed
        self.granted = False  # blocks of the target are reserved
        self.chunks: list[Chunk] = []  # computed or under way, and not handed to the transfer yet
        self.last_token = inf  # s, of the token from the prefill side
        self.computed = False  # the prompt, and its KV is there
        self.arrived = False  # all of the KV
        self.over = False  # one of the two replicas is gone, and with it what there was of the KV
        self.failed = False  # it has waited too long for a decode replica
        self.transfer: Transfer | None = None

    def forget_sent(self) -> None:
        """All of its KV has to be sent, perhaps elsewhere."""
        self.chunks.clear()
        self.sent_tokens = self.hit_tokens = 0
        if self.table is not None:
            self.table = BlockTable(self.table.ids)


class Port:
    """Where requests enter and leave one replica: those that wait for blocks, in order, and all on their way."""

    def __init__(self, replica: Replica, granted: Callable[[Handover, float], None], *, use_hits: bool) -> None:
        """granted: called when blocks are reserved."""
        self.replica = replica
        self._granted = granted
        self.waiting: deque[Handover] = deque()
        self.incoming = 0  # requests with blocks and without a place in the batch
        self._use_hits = use_hits
        self._asks = False
        self.going: dict[int, Handover] = {}  # by row: computed here to be decoded elsewhere, KV not all away
        self.coming: dict[int, Handover] = {}  # by row: to be decoded here, not in the batch yet
        self.pending = 0  # prompt tokens on their way through it
        self.helped = 0  # requests that it serves against its role
        self.shut = False  # it is gone, or goes before its next step, and the routers may not know
        self.received: list[Request] = []  # whole requests that came since

    def join(self, handover: Handover, now: float) -> None:
        """Reserve blocks as soon as there are enough, before a step of the engine."""
        self.waiting.append(handover)
        if not self._asks:
            self._asks = True
            self.replica.at_next_step(self.reserve, now)

    def reserve(self, time: float) -> bool:
        """Called between two steps: grant what can be. False: somebody still waits."""
        if self.shut:
            return True
        waiting = self.waiting
        while waiting and self._fits(waiting[0]):
            handover = waiting.popleft()
            handover.granted = True
            self.incoming += 1
            self._granted(handover, time)
        self._asks = bool(waiting)
        return not waiting

    def blocks_changed(self, time: float) -> None:
        """Between two steps blocks have become free or hold more: who waits for some may have them now."""
        if self.waiting:
            self.reserve(time)

    def give_back(self, handover: Handover, now: float) -> None:
        """A request is not on its way here any more, or comes later: others may have its blocks."""
        granted, table, hit_tokens = handover.granted, handover.table, handover.hit_tokens
        handover.granted = False
        if granted:
            self.incoming -= 1
        elif handover in self.waiting:
            self.waiting.remove(handover)

        def release(time: float) -> bool:
            pool, size = self.replica.engine.state.pool, self.replica.engine.state.block_size
            blocks = -(-handover.tokens // size)
            if granted and isinstance(pool, PrefixCache) and table is not None:
                pool.release(table, blocks, hit_tokens // size, returns=False)
            elif granted:
                pool.give_back(blocks)
            self.blocks_changed(time)
            return True

        self.replica.at_next_step(release, now)

    def _fits(self, handover: Handover) -> bool:
        """Take the blocks if they are free, after those that the running requests need for the next step."""
        state = self.replica.engine.state
        if len(state.running) + self.incoming >= state.args.max_num_seqs:
            return False
        if len(state.waiting):  # nobody overtakes who came before or was preempted
            head = state.waiting[0]
            if head.preemptions or head.arrival <= handover.request.arrival:
                return False
        pool, table, tokens = state.pool, handover.table, handover.tokens
        hit = NO_HIT
        if self._use_hits and table is not None and isinstance(pool, PrefixCache):
            hit = pool.lookup(table, tokens // state.block_size)
        need = -(-tokens // state.block_size) - hit.blocks
        if need + hit.free_blocks + sum(lane.blocks_next for lane in state.lanes) > pool.free:
            return False
        if hit is not NO_HIT:
            assert isinstance(pool, PrefixCache) and table is not None
            pool.hold(table, hit)
        pool.take(need)
        handover.sent_tokens = handover.hit_tokens = hit.blocks * state.block_size
        return True
