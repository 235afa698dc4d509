"""Sets the replicas going that come and go: their lifecycle, faults, the autoscaler, who takes requests along."""

from __future__ import annotations

from simulator.cluster.candidates import Candidates
from simulator.cluster.dispatcher import Dispatcher, Finished
from simulator.cluster.failures import Failures
from simulator.cluster.lifecycle import Lifecycle
from simulator.cluster.migration import Migration
from simulator.cluster.rescue import Rescue
from simulator.cluster.scaler import Autoscaler
from simulator.core.random import Streams
from simulator.replica.records import TransferRecords
from simulator.scheduling.request import Request


class Population:
    """A lifecycle and everybody who acts on it."""

    def __init__(
        self,
        lifecycle: Lifecycle,
        moves: Migration | None,
        candidates: Candidates,
        dispatcher: Dispatcher,
        streams: Streams,
    ) -> None:
        """moves: who takes requests from replica to replica anyway. candidates, dispatcher: of arrivals."""
        self._deliver = deliver = dispatcher.deliver
        plan = lifecycle.plan
        if moves is not None:
            moves.live(lifecycle)
        failures = [Failures(lifecycle, fault, streams) for fault in plan.faults]
        for one in failures:
            one.begin()
        rescues = plan.migrates and moves is None
        self._rescue = Rescue(lifecycle, candidates, dispatcher) if rescues else None
        lifecycle.open()
        self._scaler = None
        self.deliver: Finished = deliver
        if plan.scaling is not None:
            self._scaler = Autoscaler(lifecycle, plan.scaling, candidates, dispatcher)
            self._scaler.begin()
            self.deliver = self._seen

    def _seen(self, request: Request, now: float) -> None:
        assert self._scaler is not None
        self._scaler.saw(request)
        self._deliver(request, now)

    def transfers(self) -> TransferRecords | None:
        """Of KV that left replicas which had to go; None: nobody takes it along."""
        return None if self._rescue is None else self._rescue.records()
