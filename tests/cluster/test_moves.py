"""Requests that change engines in the middle lose no token and leave no block behind."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from simpy.events import Event

from simulator.cluster.clock import TRANSFER
from simulator.cluster.plan import ClusterPlan, Group, RouterPlan
from simulator.cluster.simulation import Simulation
from simulator.metrics import analyse
from simulator.metrics.token_times import tokens_made
from simulator.replica.moves import elsewhere, evacuate, land, take_out
from simulator.replica.records import SimulationRecords, Status
from simulator.scheduling import Request
from tests.cluster.test_many_replicas import ARGS, LINEAR, same, trace
from tests.scheduling.invariants import clock_never_runs_back, ends_once, nobody_is_left


def run(seed: int, strike_s: float, *, lose: bool, step_mode: bool, blocks: int, stages: int) -> SimulationRecords:
    """At ``strike_s`` everybody leaves replica 0 (having lost everything), or its oldest decode moves with its KV."""
    requests = trace(60, 80.0, seed=seed)
    args = replace(ARGS, pipeline_parallel_size=stages, async_scheduling=bool(seed % 2))
    group = Group(args, LINEAR, blocks, count=2)
    built = Simulation(requests, ClusterPlan((group,), RouterPlan("least-requests")), step_mode=step_mode, watched=True)
    one, two = built.replicas

    def fail(now: float) -> bool:
        for request in evacuate(one.engine):

            def again(_: Event, request: Request = request) -> None:
                two.receive(request, built.clock.now)

            built.clock.at(max(now, one.engine.busy_until), TRANSFER, again)
        return True

    def move(now: float) -> bool:
        oldest = next((r for r in one.engine.state.running if r.decoding), None)
        if oldest is None:
            return True
        computed, sent = take_out(one.engine, oldest)
        moved = elsewhere(oldest, computed=computed)
        moved.target = moved.prompt_tokens
        need = -(-computed // args.block_size)
        built.columns.replica[moved.row] = 1

        def arrive(time: float) -> bool:
            pool = two.engine.state.pool
            if not taken:
                if pool.free < need:
                    return False
                pool.take(need)
                taken.append(need)
            return land(two.engine, moved, sent)

        taken: list[int] = []
        built.clock.at(max(now, sent) + 0.01, TRANSFER, lambda _: two.at_next_step(arrive, built.clock.now))
        return True

    built.clock.at(strike_s, TRANSFER, lambda _: one.at_next_step(fail if lose else move, strike_s))
    records = built.run()
    ends_once(records, requests, drained=True)
    clock_never_runs_back(records)
    for replica in built.replicas:
        nobody_is_left(replica.engine.state)
    made = tokens_made(analyse(records).ranges, len(requests))
    finished = records.requests.status == Status.FINISHED
    np.testing.assert_array_equal(made[finished], requests.output_tokens[finished])
    return records


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    strike_s=st.floats(0.0, 1.5),
    lose=st.booleans(),
    blocks=st.sampled_from([90, 2000]),
    stages=st.sampled_from([1, 1, 2]),
)
def test_nothing_is_lost(seed: int, strike_s: float, lose: bool, blocks: int, stages: int) -> None:
    runs = [run(seed, strike_s, lose=lose, step_mode=mode, blocks=blocks, stages=stages) for mode in (False, True)]
    same(*runs)
