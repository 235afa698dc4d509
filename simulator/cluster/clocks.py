"""Clocks of GPUs that a controller changes while the simulation runs.

An order takes effect between two steps of each replica: what runs is never changed. From then on steps are priced at
the new clock, and the energy accounts follow ``SimulationRecords.clocks``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from simulator.cluster.clock import TRANSFER, Clock
from simulator.cluster.dispatcher import Finished
from simulator.cluster.plan import ClusterPlan, Group
from simulator.cluster.replica import Replica
from simulator.cluster.watch import Crew, Door, Watch, facts
from simulator.core.errors import PolicyError
from simulator.cost.power import MIN_CLOCK, ClockedCost, PowerModel
from simulator.replica.engine import Engine
from simulator.replica.recorder import MIXED, SPAN, Columns
from simulator.replica.records import ClockChange, ClusterEvent, Status
from simulator.scaling import CONTROLLERS, ClockController, Order, Surroundings
from simulator.scheduling.request import Request


class Meter:
    """Energy of one replica above idle, read now and then while it runs."""

    def __init__(self, replica: Replica, power: PowerModel) -> None:
        self._replica, self._power = replica, power
        self._spans = self._mixed = 0  # rows read
        self._until = 0.0  # s, read so far
        self._left: NDArray[np.float64] = np.zeros((0, 3))  # (begin, end, W above idle) of rows that go on
        self._locks = [(0.0, 1.0)]  # (s, share of the maximum clock from then on)

    def locked(self, time: float, clock: float) -> None:
        """Steps run at another clock from ``time`` on."""
        self._locks.append((time, clock))

    def joules(self, now: float) -> float:
        """Since the last look."""
        engine, since = self._replica.engine, self._until
        spans, mixed = engine.recorder.rows_after(self._spans, self._mixed)
        self._spans, self._mixed = self._spans + len(spans), self._mixed + len(mixed)
        rows = [self._left, self._rows(spans, SPAN, spans=True), self._rows(mixed, MIXED, spans=False)]
        if isinstance(engine, Engine) and (open_span := engine.open_span()) is not None:
            begin, end, decodes = open_span
            rows.append(np.array([[begin, end, self._above(np.array([begin]), np.array([decodes]))[0]]]))
        found = np.concatenate(rows)
        closed = np.concatenate(rows[:3])
        self._left, self._until = closed[closed[:, 1] > now], now
        seconds = np.clip(np.minimum(found[:, 1], now) - np.maximum(found[:, 0], since), 0.0, None)
        return float((seconds * found[:, 2]).sum())

    def _rows(self, rows: NDArray[np.float64], names: Sequence[str], *, spans: bool) -> NDArray[np.float64]:
        def of(name: str) -> NDArray[np.float64]:
            return rows[:, names.index(name)]

        decodes = self._power.decode_tokens(of("num_decodes").astype(np.int64))
        if spans:
            n = of("num_steps")
            seconds, tokens = n * of("step") + of("increment") * n * (n - 1.0) / 2.0, decodes
        else:
            seconds, tokens = of("step"), decodes + of("prefill_tokens")
        return np.stack([of("start"), of("start") + seconds, self._above(of("start"), tokens)], axis=1)

    def _above(self, start: NDArray[np.float64], tokens: NDArray[np.float64]) -> NDArray[np.float64]:
        """Watts of the replica above idle, of steps by their start."""
        times, clocks = np.array(self._locks).T
        locks = clocks[np.searchsorted(times, start, side="right") - 1]
        watts = np.asarray(self._power.watts(tokens, locks), dtype=np.float64)
        return (watts - self._power.idle_w) * self._replica.group.num_gpus


@dataclass(frozen=True)
class Locked:
    """A replica with a clock that can be set."""

    replica: Replica
    cost: ClockedCost
    meter: Meter


class Clocks:
    """Asks a controller every ``interval_s`` and locks clocks as it says."""

    def __init__(self, cluster: ClusterPlan, clock: Clock, columns: Columns, *, endless: bool) -> None:
        """endless: goes on until the clock stops. Raises ScenarioError where clocks cannot change."""
        assert cluster.clocks is not None
        assert all(group.power is not None for group in cluster.groups)
        self.plan, self._groups = cluster.clocks, cluster.groups
        self._clock, self._columns, self._endless = clock, columns, endless
        lives = cluster.life.groups if cluster.life is not None else None
        known = tuple(
            facts(group, group.count, group.count, group.count, 0.0)
            if lives is None
            else facts(group, lives[g].min_replicas, lives[g].max_replicas, lives[g].initial, lives[g].cold_start_s)
            for g, group in enumerate(cluster.groups)
        )
        around = Surroundings(known, self.plan.interval_s)
        self._policy: ClockController = CONTROLLERS.get(self.plan.policy)(around, self.plan.options)
        self.in_force = [1.0] * len(known)  # of each group
        self.ordered = [1.0] * len(known)  # what it is or will be
        self._locked: dict[int, Locked] = {}  # by replica
        self.changes: list[ClockChange] = []
        self.events: list[ClusterEvent] = []
        self._costs: dict[int, ClockedCost] = {}
        self._ended = self._ticks = 0

    def group(self, index: int, group: Group) -> Group:
        """The same group with prices of its own for replica ``index``, which is about to be built."""
        assert group.power is not None
        cost = self._costs[index] = ClockedCost(group.cost, group.power)
        return replace(group, cost=cost)

    def add(self, replica: Replica, group: int, now: float) -> None:
        """A replica has been built."""
        power, clock = self._groups[group].power, self.in_force[group]
        assert power is not None
        found = self._locked[replica.index] = Locked(replica, self._costs.pop(replica.index), Meter(replica, power))
        if clock != 1.0:
            found.cost.lock(clock)
            found.meter.locked(now, clock)
            self.changes.append(ClockChange(now, replica.index, clock))

    def begin(self, crew: Crew, doors: Sequence[Door]) -> None:
        """From now on the controller is asked."""
        self._crew = crew
        self.watch = Watch(crew, doors, len(self._groups))
        self.watch.clocks = self.ordered
        self._next()

    def seeing(self, deliver: Finished) -> Finished:
        """The same, seen by the controller."""

        def arrive(request: Request, now: float) -> None:
            self.watch.saw(request)
            deliver(request, now)

        return arrive

    def _next(self) -> None:
        self._ticks += 1
        at = self._ticks * self.plan.interval_s
        self._clock.at(at, TRANSFER, lambda _: self._tick(at))

    def _tick(self, now: float) -> None:
        if self._over():
            return
        watts = [self._watts(group, now) for group in range(len(self._groups))]
        for order in self._policy.orders(self.watch.look(now, watts)):
            self._check(order)
            self.ordered[order.group] = order.clock
            at = now + order.after_s
            self._clock.at(at, TRANSFER, partial(self._carry_out, order, at))
        self._next()

    def _over(self) -> bool:
        if self._endless:
            return False
        status = self._columns.status
        while self._ended < len(status) and status[self._ended] != Status.IN_FLIGHT:
            self._ended += 1
        return self._ended == len(status)

    def _watts(self, group: int, now: float) -> float:
        power = self._groups[group].power
        assert power is not None
        total = 0.0
        for replica in self._crew.all(group):
            replica.engine.settle(now)
            total += power.idle_w * replica.group.num_gpus
            total += self._locked[replica.index].meter.joules(now) / self.plan.interval_s
        return total

    def _check(self, order: Order) -> None:
        if not (0 <= order.group < len(self._groups) and MIN_CLOCK <= order.clock <= 1 and order.after_s >= 0):
            raise PolicyError(
                f"clock controller {self.plan.policy!r} orders {order}.",
                remedy=f"Clocks are shares from {MIN_CLOCK:g} to 1, groups 0 to {len(self._groups) - 1}.",
            )

    def _carry_out(self, order: Order, now: float, _: object) -> None:
        if self._over():
            return
        group = order.group
        self.in_force[group] = order.clock
        kind = "brake" if order.why == "brake" else "clock"
        text = f"{self._groups[group].name}: {order.clock:.0%} of the maximum ({order.why})"
        self.events.append(ClusterEvent(now, kind, -1, text))
        for replica in self._crew.all(group):
            replica.at_next_step(partial(self._lock, self._locked[replica.index], order.clock), now)

    def _lock(self, locked: Locked, clock: float, time: float) -> bool:
        engine = locked.replica.engine
        locked.cost.lock(clock)
        if isinstance(engine, Engine):
            engine.reprice()
        begin = max(time, engine.busy_until)
        locked.meter.locked(begin, clock)
        self.changes.append(ClockChange(begin, locked.replica.index, clock))
        return True

    def records(self) -> tuple[ClockChange, ...]:
        """By time and replica."""
        return tuple(sorted(self.changes, key=lambda change: (change.time, change.replica)))
