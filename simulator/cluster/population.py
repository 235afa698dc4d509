"""Sets the replicas going that come and go: their lifecycle, faults, the autoscaler, who takes requests along."""

from __future__ import annotations

from collections.abc import Sequence

from simulator.cluster.clocks import Clocks
from simulator.cluster.dispatcher import Finished
from simulator.cluster.failures import Failures
from simulator.cluster.lifecycle import Lifecycle
from simulator.cluster.migration import Migration
from simulator.cluster.replication import Replication
from simulator.cluster.rescue import Rescue
from simulator.cluster.scaler import Autoscaler
from simulator.cluster.transfers import joined
from simulator.cluster.watch import Door, Mortal, Watch
from simulator.core.random import Streams
from simulator.replica.records import TransferRecords
from simulator.scheduling.request import Request


class Population:
    """A lifecycle and everybody who acts on it."""

    def __init__(
        self,
        lifecycle: Lifecycle,
        doors: Sequence[Door],
        deliver: Finished,
        streams: Streams,
        *,
        migration: Migration | None,
        clocks: Clocks | None,
    ) -> None:
        """doors: of arrivals, and of requests to be decoded elsewhere. deliver: who takes arrivals. clocks: who changes
        those of the GPUs."""
        self._deliver = deliver
        plan = lifecycle.plan
        if migration is not None:
            migration.live(lifecycle)
        failures = [Failures(lifecycle, fault, streams) for fault in plan.faults]
        for one in failures:
            one.begin()
        rescues = plan.migrates and migration is None
        self._rescue = Rescue(lifecycle, doors[-1].candidates) if rescues else None
        copies = plan.copies_every_tokens
        self._replication = None if copies is None else Replication(lifecycle, copies)
        lifecycle.open()
        self._scaler = None
        self.deliver: Finished = deliver
        if plan.scaling is not None:
            watch = Watch(Mortal(lifecycle), doors, len(lifecycle.groups))
            self._scaler = Autoscaler(lifecycle, plan.scaling, watch)
            if clocks is not None:
                watch.clocks = clocks.ordered
            self._scaler.begin()
            self.deliver = self._seen

    def _seen(self, request: Request, now: float) -> None:
        assert self._scaler is not None
        self._scaler.watch.saw(request)
        self._deliver(request, now)

    def transfers(self) -> TransferRecords | None:
        """Of KV that left replicas which had to go, and of copies of it that were read; None: there are neither."""
        rescued = None if self._rescue is None else self._rescue.records()
        return joined(rescued, None if self._replication is None else self._replication.records())
