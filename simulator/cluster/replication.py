"""KV that is copied to other machines as it is computed, so that a failure loses little of it.

DéjàVu (Strati et al., ICML 2024, arXiv:2403.01876) streams the KV of every token to the host memory of another machine.
Requests of a replica that has failed are routed anew; where they go, their copies are read through the replica's
network card, one request after the other, and what had not been copied yet is computed again. Requests of whom nothing
was copied are computed again whole. Copying itself runs beside the engine and costs it nothing; its bytes are counted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from simulator.cluster.clock import TRANSFER
from simulator.cluster.dispatcher import Receiver, Through
from simulator.cluster.life import Life
from simulator.cluster.lifecycle import Lifecycle
from simulator.cluster.transfers import KvBytes
from simulator.cluster.ways import Direct, Lost
from simulator.replica.moves import restore
from simulator.replica.records import StepRecords, TransferRecords
from simulator.scheduling.request import Request


@dataclass(slots=True, eq=False)
class Copy:
    """The copied KV of one request on its way to the replica where it goes on."""

    request: Request
    target: Life
    num_bytes: float
    start: float
    end: float
    over: bool = False  # landed, or lost again


class Replication:
    """Requests that come to a replica for a second time bring the copy of their KV."""

    def __init__(self, lifecycle: Lifecycle, interval_tokens: int) -> None:
        """interval_tokens: copies are made whenever a request has so many tokens more."""
        self._lifecycle, self._interval = lifecycle, interval_tokens
        self._copies: list[Copy] = []
        self._coming: dict[Life, list[Copy]] = defaultdict(list)
        self._busy_until: dict[Life, float] = defaultdict(float)  # s, network card of a replica
        ways = lifecycle.ways
        assert isinstance(ways, Direct)  # no copies in a disaggregated cluster
        assert all(group.kv is not None for group in lifecycle.groups)
        ways.entrance = self._entrance
        lifecycle.travellers.append(self)

    def _entrance(self, life: Life) -> Receiver:
        return Through(partial(self._enter, life))

    def _enter(self, life: Life, request: Request, now: float) -> None:
        """The router has chosen a replica."""
        copied = request.lost // self._interval * self._interval if request.preemptions else 0
        if not copied:
            life.replica.receive(request, now)
            return
        kv, network = self._lifecycle.groups[life.group].kv, self._lifecycle.plan.groups[life.group].network_bytes_per_s
        assert kv is not None
        request.computed = request.cached_tokens = copied
        size = kv.of(copied)
        start = max(now, self._busy_until[life])
        end = self._busy_until[life] = start + size / network
        copy = Copy(request, life, size, start, end)
        self._copies.append(copy)
        self._coming[life].append(copy)
        self._lifecycle.clock.at(end, TRANSFER, partial(self._arrived, copy, end))

    def _arrived(self, copy: Copy, now: float, _: object) -> None:
        if not copy.over:
            copy.target.replica.at_next_step(partial(self._land, copy), now)

    def _land(self, copy: Copy, time: float) -> bool:
        del time
        if copy.over:
            return True
        engine, request = copy.target.replica.engine, copy.request
        state = engine.state
        need = state.blocks_of(request.computed)
        if need + sum(lane.blocks_next for lane in state.lanes) > state.pool.free:
            return False
        if not restore(engine, request, need):
            return False
        self._lifecycle.columns.replica[request.row] = copy.target.replica.index
        copy.over = True
        self._coming[copy.target].remove(copy)
        return True

    # -- a traveller -------------------------------------------------------------------------------------------

    def strand(self, life: Life, end: float, lost: Lost) -> None:
        """A replica goes while requests are on their way to it: their copies are elsewhere still."""
        del end
        for copy in self._coming.pop(life, ()):
            copy.over = True
            copy.request.computed = copy.request.cached_tokens = 0
            lost.append((life, copy.request))

    def holds(self, life: Life) -> bool:
        return bool(self._coming.get(life))

    # -- for the records ---------------------------------------------------------------------------------------

    def records(self) -> TransferRecords:
        """Of all copies that were read, by start."""
        sent = sorted(self._copies, key=lambda copy: (copy.start, copy.request.row))
        return TransferRecords(
            kind=("restore",) * len(sent),
            request=np.array([copy.request.row for copy in sent], dtype=np.int64),
            source=np.full(len(sent), -1, dtype=np.int64),
            target=np.array([copy.target.index for copy in sent], dtype=np.int64),
            num_bytes=np.array([copy.num_bytes for copy in sent], dtype=np.float64),
            start=np.array([copy.start for copy in sent], dtype=np.float64),
            end=np.array([copy.end for copy in sent], dtype=np.float64),
        )


def copied_bytes(steps: StepRecords, kv: Sequence[KvBytes | None]) -> dict[str, float]:
    """Bytes of the KV that each replica has computed, all of which it sends to its copy. kv: of each replica.

    Tokens that a sliding window lets go are copied like others.
    """
    computed = steps.prefill_tokens + steps.num_decodes * steps.num_steps
    tokens = np.bincount(steps.replica, weights=computed, minlength=len(kv))
    sizes = [0.0 if each is None else each.per_token + each.per_windowed_token for each in kv]
    return {f"replica {i} copies": float(tokens[i]) * size for i, size in enumerate(sizes) if tokens[i]}
