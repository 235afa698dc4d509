"""A trace through a cluster: builds the parts, runs the clock, returns records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from math import inf
from typing import TypedDict, Unpack

import numpy as np

from simulator.cluster.admission import Gate
from simulator.cluster.arrivals import Arrivals, Progress
from simulator.cluster.cache_events import CacheEvents
from simulator.cluster.candidates import Candidates
from simulator.cluster.clock import Clock
from simulator.cluster.clocks import Clocks
from simulator.cluster.disaggregation import Disaggregation
from simulator.cluster.dispatcher import Dispatcher, Finished
from simulator.cluster.elastic import LifePlan
from simulator.cluster.engines import build_engine, ids_block_size
from simulator.cluster.front import Front
from simulator.cluster.lending import loans_by_place
from simulator.cluster.lifecycle import Lifecycle
from simulator.cluster.migration import Migration
from simulator.cluster.partings import Partings
from simulator.cluster.places import Places
from simulator.cluster.plan import ClusterPlan, single
from simulator.cluster.population import Population
from simulator.cluster.prediction import LinearPredictor, queued_tokens
from simulator.cluster.ranks import cache_events
from simulator.cluster.replica import Replica
from simulator.cluster.replication import copied_bytes
from simulator.cluster.roles import unserved
from simulator.cluster.sharing import shared_processors
from simulator.cluster.slicing import Slicing
from simulator.cluster.tiers import Tiers
from simulator.cluster.transfers import Moved, Turnstile, joined
from simulator.cluster.watch import Door, Fixed, Mortal
from simulator.cluster.ways import Direct
from simulator.core.errors import PolicyError
from simulator.core.random import streams
from simulator.cost.interface import StepCost
from simulator.replica.engine import Engine, Observer
from simulator.replica.recorder import Columns, Recorder, join_steps
from simulator.replica.records import ReplicaRecord, SimulationRecords, StepRecords
from simulator.replica.steps import OnFinish
from simulator.routing import ROUTERS, Fleet, Needs, Router, Surroundings
from simulator.routing.prefix_index import PrefixIndex
from simulator.scheduling import EngineArgs
from traces.trace import Trace


class Options(TypedDict, total=False):
    """How to run.

    closed_loop_users: ignore arrival times; so many users send one request after the other.
    horizon_s: stop then, with requests in flight; None: until every request has ended.
    seed: of the routers' and other policies' random draws.
    step_mode: plan every step on its own instead of in spans; same records.
    observer: watches every plan; sequential: see ``Engine``.
    watched: replicas have events of their own, for whoever acts on their engines from outside.
    """

    closed_loop_users: int | None
    horizon_s: float | None
    seed: int
    step_mode: bool
    progress: Progress | None
    observer: Observer | None
    sequential: bool
    watched: bool


class Simulation:
    """A cluster and its requests, ready to run once; ``replicas`` may be looked at after."""

    def __init__(self, trace: Trace, cluster: ClusterPlan, **options: Unpack[Options]) -> None:
        """Raises ScenarioError when trace and engines do not fit together, PolicyError for wrong policies."""
        self.trace, self.cluster, self._options = trace, cluster, options
        self.clock = Clock()
        self.columns = Columns(len(trace))
        groups = cluster.groups
        self._processors = shared_processors(cluster)  # by place, of replicas that share their GPUs
        self._loans = loans_by_place(cluster)  # of those that share their KV memory
        self._member = places(cluster)
        handed_to = None
        if cluster.disaggregation is not None:
            handed_to = Candidates(trace, groups, self._member, roles=("both", "decode"))
        candidates = Candidates(trace, groups, self._member, roles=("both", "prefill"), handed_to=handed_to)
        nobody = candidates.nobody if handed_to is None else unserved(cluster, trace, candidates, handed_to)
        self.columns.reject(nobody)
        self.arrivals = Arrivals(
            self.clock,
            trace,
            skip=nobody,
            users=options.get("closed_loop_users"),
            block_size=ids_block_size(trace, groups),
            use_prefix=any(group.args.enable_prefix_caching for group in groups),
            progress=options.get("progress"),
        )
        both = cluster.life is not None and (cluster.migration is not None or cluster.disaggregation is not None)
        self._turnstile = Turnstile(self.clock) if both else None  # one for all who act on the engines
        pass_on = self._feedback()
        self.clocks: Clocks | None = None  # who changes those of the GPUs
        if cluster.clocks is not None:
            self.clocks = Clocks(cluster, self.clock, self.columns, endless=options.get("horizon_s") is not None)
        self.replicas: list[Replica] = []
        self._events: list[CacheEvents] = []
        self._tiers = Tiers(trace, groups)
        self.dispatcher: Dispatcher | None = None
        self.moves: Disaggregation | Migration | None = None  # of requests between replicas
        self.lifecycle: Lifecycle | None = None  # of replicas that come and go
        if len(self._member) == 1 and not others_act(cluster) and cluster.admission is None:
            self._add_replica(0, pass_on)
            self.deliver: Finished = self.replicas[0].receive
        else:
            self._route_to_many(candidates, handed_to, pass_on)
        if cluster.front is not None:
            rng = streams(options.get("seed", 0))
            front = Front(
                cluster.front, self.clock, self.columns, rng, len(trace), deliver=self.deliver, answered=pass_on
            )
            self.deliver = front.deliver

    def run(self) -> SimulationRecords:
        """Run the clock, return what happened."""
        trace, horizon_s = self.trace, self._options.get("horizon_s")
        self.arrivals.start(self.deliver)
        self.clock.run(until=horizon_s)
        stop = inf if horizon_s is None else horizon_s
        engines = [replica.engine for replica in self.replicas]
        for replica in self.replicas:
            replica.catch_up()
        if self.dispatcher is not None:
            self.dispatcher.close(drained=horizon_s is None)
            if isinstance(self.moves, Disaggregation):
                self.moves.close(drained=horizon_s is None)
        for engine in engines:
            engine.run_until(stop)
            engine.close(stop)
        recorders = [engine.recorder for engine in engines] or [Recorder(self.columns)]  # there may never be a replica
        steps, bases = zip(*(recorder.steps() for recorder in recorders), strict=True)
        joined_steps = join_steps(list(steps))
        busy_until = max((engine.busy_until for engine in engines), default=0.0)
        return SimulationRecords(
            requests=self.columns.requests(
                self.arrivals.arrival, trace.prompt_tokens, trace.output_tokens, list(bases), until=stop
            ),
            steps=joined_steps,
            end=self._end(busy_until) if horizon_s is None else horizon_s,
            num_gpu_blocks=tuple(replica.group.kv_blocks + 1 for replica in self.replicas),
            block_size=self.cluster.groups[0].args.block_size,
            num_events=self.clock.num_events,
            replicas=tuple(
                ReplicaRecord(replica.group.name, replica.group.gpu, replica.group.num_gpus, 0.0, 0.0, inf)
                for replica in self.replicas
            )
            if self.lifecycle is None
            else self.lifecycle.records(),
            events=tuple(e for by in (self.lifecycle, self.moves, self.clocks) if by is not None for e in by.events),
            clocks=None if self.clocks is None else self.clocks.records(),
            attempts={} if self.lifecycle is None else dict(self.lifecycle.attempts),
            tiers=self._tiers.records(),
            tier_load_s=self._tiers.load_s,
            tier_aside_s=self._tiers.aside_s,
            rejections={} if self.dispatcher is None else dict(self.dispatcher.rejected),
            step_tokens=self.columns.step_tokens([r.group.args.speculation is not None for r in self.replicas]),
            token_ends={r.replica: np.frombuffer(r.token_ends) for r in recorders if len(r.token_ends)},
            tokens_recomputed=sum(lane.tokens_recomputed for engine in engines for lane in engine.state.lanes),
            **self._moved(stop, joined_steps),
        )

    def _moved(self, stop: float, steps: StepRecords) -> Moved:
        """What is known of requests between replicas."""
        moved: Moved = {} if self.moves is None else self.moves.records(min(stop, float(self.clock.now)))
        rescued = None if self.lifecycle is None else self._population.transfers()
        if self.moves is not None or rescued is not None:
            moved["transfers"] = joined(moved.get("transfers"), rescued)
        if self.cluster.life is not None and self.cluster.life.copies_every_tokens is not None:
            moved["link_bytes"] = copied_bytes(steps, [replica.group.kv for replica in self.replicas])
        return moved

    def _end(self, busy_until: float) -> float:
        """When the last thing happened; what may still befall replicas without work is not waited for."""
        if self.lifecycle is None and self.clocks is None and not isinstance(self.moves, Migration):
            return max(busy_until, float(self.clock.now))
        arrived = self.arrivals.arrival[np.isfinite(self.arrivals.arrival)]
        return max(busy_until, float(arrived.max(initial=0.0)))

    # -- building ------------------------------------------------------------------------------------------------

    def _route_to_many(self, candidates: Candidates, handed_to: Candidates | None, pass_on: Finished | None) -> None:
        """A router, and whatever else stands between arrivals and replicas. handed_to: who decodes for others."""
        cluster, options = self.cluster, self._options
        self.around = around = self._surroundings()
        decode_router = self._decode_router(around)
        also = Needs.NOTHING if decode_router is None else decode_router.needs
        router = _router(cluster.router.policy, around, cluster.router.options, "cluster.router")
        gate = None
        if cluster.admission is not None:
            gate = Gate(cluster.admission, self.trace, around.fleet, around.predict)
        self.dispatcher = dispatcher = Dispatcher(
            self.clock,
            self.columns,
            router,
            around.fleet,
            candidates,
            pass_on,
            gate=gate,
            watched=others_act(cluster) or options.get("watched", False),
            also=also,
        )
        if dispatcher.needs & Needs.TIERS:
            self._tiers.check_seen(cluster.router)
        slicing = Slicing(self.clock, self.columns, dispatcher) if cluster.sliced else None
        self.moves = self._movers(dispatcher, router.needs, decode_router, handed_to, pass_on)
        apart = self.moves if isinstance(self.moves, Disaggregation) else None  # prefill and decode
        finished_on = dispatcher.finished_on if apart is None else apart.told_on
        if slicing is not None:
            finished_on = slicing.finished_on
        self._reads_queues = bool(dispatcher.needs & Needs.QUEUED_TOKENS)
        self._reads_metrics = self._reads_queues or bool(dispatcher.needs & Needs.METRICS)
        doors = [Door(candidates, dispatcher)]
        if apart is not None and handed_to is not None:
            doors.append(Door(handed_to, apart.decode))
        if cluster.life is not None:
            self._come_and_go(cluster.life, doors, apart, pass_on)
            self._control_clocks(doors)
            return
        for index in range(len(self._member)):
            self._add_replica(index, finished_on(index), watched=dispatcher.watched, eager=dispatcher.eager)
            if dispatcher.needs & Needs.CACHES:
                self._events.append(cache_events(self.replicas[index].engine, index, around.blocks))
        if apart is None:
            dispatcher.connect(self.replicas)
        self.deliver = dispatcher.deliver if gate is not None else dispatcher.route
        if self.moves is not None:
            self.moves.connect(self.replicas)
        if slicing is not None:
            slicing.connect(self.replicas)
        if apart is not None:
            self.deliver = apart.deliver
        self._control_clocks(doors)

    def _control_clocks(self, doors: Sequence[Door]) -> None:
        """Let somebody change those of the GPUs, if anybody should."""
        if self.clocks is None:
            return
        if self.lifecycle is None:
            self.clocks.begin(Fixed(self.replicas, self._member, len(self.cluster.groups)), doors)
        else:
            self.clocks.begin(Mortal(self.lifecycle), doors)
        self.deliver = self.clocks.seeing(self.deliver)

    def _come_and_go(
        self, life: LifePlan, doors: Sequence[Door], apart: Disaggregation | None, pass_on: Finished | None
    ) -> None:
        """Replicas that start and stop while the simulation runs. apart: prefill and decode on different ones."""
        for door in doors:
            if door.dispatcher.queue_timeout_s is None:
                door.dispatcher.queue_timeout_s = life.queue_timeout_s
        candidates, dispatcher = doors[0].candidates, doors[0].dispatcher
        partings = None if apart is None else Partings(apart)
        self.lifecycle = lifecycle = Lifecycle(
            self.clock,
            life,
            self.cluster.groups,
            Places(life.groups, self._member),
            build=self._new_replica,
            ways=partings or Direct(dispatcher, len(self._member)),
            candidates=candidates,
            fleet=self.around.fleet,
            columns=self.columns,
            blocks=self.around.blocks if dispatcher.needs & Needs.CACHES else None,
            pass_on=pass_on,
            endless=self._options.get("horizon_s") is not None,
            turnstile=self._turnstile,
        )
        if partings is not None:
            partings.attend(lifecycle)
        self._population = Population(
            lifecycle,
            doors,
            dispatcher.deliver if apart is None else apart.deliver,
            streams(self._options.get("seed", 0)),
            migration=self.moves if isinstance(self.moves, Migration) else None,
            clocks=self.clocks,
        )
        self.deliver = self._population.deliver

    def _new_replica(self, slot: int, on_finish: OnFinish) -> Replica:
        self._add_replica(slot, on_finish, watched=True, eager=True)
        return self.replicas[-1]

    def _add_replica(
        self, slot: int, on_finish: OnFinish | None, *, watched: bool | None = None, eager: bool | None = None
    ) -> None:
        """watched: it has events of its own; None: if somebody waits for finishes. eager: see ``Engine``."""
        index = len(self.replicas)
        group = self.cluster.groups[self._member[slot]]
        if self.clocks is not None:
            group = self.clocks.group(index, group)
        observer = self._options.get("observer")
        engine = build_engine(
            group,
            self.trace,
            Recorder(self.columns, index),
            on_finish=on_finish,
            observer=observer,
            step_mode=self._options.get("step_mode", False),
            sequential=self._options.get("sequential", False),
            processor=self._processors.get(slot),
            loans=self._loans.get(slot),
            seed=self._options.get("seed", 0),
        )
        self._tiers.connect(index, slot, group, engine)
        if eager is not None and isinstance(engine, Engine):
            merges = group.lora is not None and group.lora.merge is not None  # who has ended counts in the choice
            engine.eager = eager or merges or observer is not None
        seen = on_finish is not None if watched is None else watched
        self.replicas.append(Replica(index, group, self.clock, engine, self.columns.replica, watched=seen, place=slot))
        if self.clocks is not None:
            self.clocks.add(self.replicas[-1], self._member[slot], float(self.clock.now))

    def _feedback(self) -> Finished | None:
        """Who is told when a request has ended."""
        if not self.arrivals.has_feedback:
            return None
        if self.cluster.disaggregation is None and self.cluster.migration is None and not self.cluster.sliced:
            return self.arrivals.finished
        # Who lands makes plans at that instant too.
        return (self._turnstile or Turnstile(self.clock)).after(self.arrivals.finished)

    def _decode_router(self, around: Surroundings) -> Router | None:
        if self.cluster.disaggregation is None:
            return None
        asked = self.cluster.disaggregation.decode_router
        rng = streams(self._options.get("seed", 0)).stream("decode-router")
        return _router(asked.policy, replace(around, rng=rng), asked.options, "cluster.disaggregation.decode_router")

    def _movers(
        self,
        dispatcher: Dispatcher,
        needs: Needs,
        decode_router: Router | None,
        handed_to: Candidates | None,
        pass_on: Finished | None,
    ) -> Disaggregation | Migration | None:
        """Who takes requests from one replica to another. needs: of the router."""
        cluster, fleet = self.cluster, self.around.fleet
        if cluster.migration is not None:
            endless = self._options.get("horizon_s") is not None
            return Migration(cluster, self.clock, self.columns, dispatcher, endless=endless, turnstile=self._turnstile)
        if handed_to is None or decode_router is None:
            return None
        decode = Dispatcher(
            self.clock, self.columns, decode_router, fleet, handed_to, pass_on, watched=True, also=needs
        )
        return Disaggregation(
            cluster, self._member, self.clock, self.columns, self.trace, dispatcher, decode, turnstile=self._turnstile
        )

    def _surroundings(self) -> Surroundings:
        """What routers see; filled in as the simulation runs."""
        groups = [self.cluster.groups[g] for g in self._member]
        fleet = Fleet(
            len(groups),
            weight=[group.weight for group in groups],
            watts=[group.watts for group in groups],
            num_blocks=[group.kv_blocks for group in groups],
            block_size=[group.args.block_size for group in groups],
            metrics_interval_s=self.cluster.router.metrics_interval_s,
            scrape=lambda now: self._scrape(fleet, now),
        )
        prefix = self.trace.prefix
        block_size = ids_block_size(self.trace, self.cluster.groups)
        return Surroundings(
            fleet,
            self.trace,
            streams(self._options.get("seed", 0)).stream("router"),
            blocks=PrefixIndex(),
            block_tokens=max(prefix.block_tokens, block_size) if prefix is not None else 0,
            # Prices of steps say nothing of nodes that each compute at their own time.
            predict=None if any(g.nodes for g in groups) else LinearPredictor(self.cluster.groups, self._member),
            tiers=self._tiers,
        )

    def _scrape(self, fleet: Fleet, now: float) -> None:
        """Read the engines' queues and KV usage as they are at ``now``."""
        here = enumerate(self.replicas) if self.lifecycle is None else self.lifecycle.answering()
        for i, replica in here:
            if not self._reads_metrics:
                replica.engine.settle_cache(now)  # only the caches' events are wanted
                continue
            replica.engine.settle(now)
            state = replica.engine.state
            fleet.waiting[i], fleet.running[i] = len(state.waiting), len(state.running)
            fleet.free_blocks[i] = state.pool.free
            if self._reads_queues:
                fleet.queued_tokens[i] = queued_tokens(state)
        for events in self._events if self.lifecycle is None else self.lifecycle.caches():
            events.deliver()


def simulate(
    trace: Trace,
    args: EngineArgs,
    cost: StepCost,
    num_gpu_blocks: int,
    *,
    max_model_len: int = 0,
    **options: Unpack[Options],
) -> SimulationRecords:
    """Serve ``trace`` on one replica: see ``Group`` for the engine's arguments, ``Options`` for the others."""
    return Simulation(trace, single(args, cost, num_gpu_blocks, max_model_len=max_model_len), **options).run()


def _router(name: str, around: Surroundings, options: Mapping[str, bool | int | float | str], field: str) -> Router:
    """Raises PolicyError whose ``where`` names the field. field: of the router, in a scenario."""
    policy = ROUTERS.get(name)
    try:
        return policy(around, options)
    except PolicyError as error:
        raise PolicyError(error.message, where=error.where or f"{field}.options", remedy=error.remedy) from None


def places(cluster: ClusterPlan) -> list[int]:
    """Group of each place for a replica."""
    if cluster.life is None:
        return [g for g, group in enumerate(cluster.groups) for _ in range(group.count)]
    return [g for g, life in enumerate(cluster.life.groups) for _ in range(life.max_replicas)]


def others_act(cluster: ClusterPlan) -> bool:
    """Whether more than arrivals reaches the engines, so that they need events of their own: anything but the plain
    parts of a plan."""
    plain = ("groups", "router", "admission", "front")
    shared = any(g.shares is not None or (g.tiers is not None and g.tiers.shared) for g in cluster.groups)
    others = shared or cluster.sliced or any(g.lends for g in cluster.groups)
    return others or any(getattr(cluster, f.name) != f.default for f in fields(cluster) if f.name not in plain)
