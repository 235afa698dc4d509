"""Prefill here, decode there: nothing is lost on the way, and the way takes the time it takes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.cluster.plan import ClusterPlan, DisaggregationPlan, Group, RouterPlan
from simulator.cluster.simulation import Simulation
from simulator.cluster.transfers import KvBytes
from simulator.hardware.gpu import gpu
from simulator.hardware.topology import Fabric, Slot, Topology
from simulator.metrics import analyse
from simulator.metrics.token_times import tokens_made
from simulator.replica.records import SimulationRecords, Status
from tests.cluster.test_many_replicas import ARGS, LINEAR, same, trace
from tests.scheduling.invariants import check_pool, clock_never_runs_back, ends_once, nobody_is_left
from traces.trace import Trace

KV = KvBytes(per_token=131072.0, layers=32)  # Llama-3.1-8B


def disaggregated(
    prefills: int = 2, decodes: int = 2, *, blocks: int = 400, bandwidth: float | None = None, **options: object
) -> ClusterPlan:
    args = options.pop("args", ARGS)
    groups = (
        Group(args, LINEAR, blocks, name="prefill", count=prefills, role="prefill", kv=KV),  # type: ignore[arg-type]
        Group(args, LINEAR, blocks, name="decode", count=decodes, role="decode", kv=KV),  # type: ignore[arg-type]
    )
    h100 = gpu("H100")
    slots = [Slot(h100, group.name) for group in groups for _ in range(group.count)]
    fabric = Fabric(efficiency=1.0, fabric_bandwidth=bandwidth, placement="packed")
    h100s = [replace(slot, gpu=replace(h100, gpus_per_node=1)) for slot in slots]
    router = RouterPlan("least-requests")
    return ClusterPlan(groups, router, DisaggregationPlan(**options), topology=Topology(h100s, fabric))  # type: ignore[arg-type]


def checked(built: Simulation, requests: Trace) -> SimulationRecords:
    """Run, and hold what must hold."""
    records = built.run()
    ends_once(records, requests, drained=True)
    clock_never_runs_back(records)
    for replica in built.replicas:
        nobody_is_left(replica.engine.state)
        assert not replica.engine.state.kept
        check_pool(replica.engine.state.pool)
    made = tokens_made(analyse(records).ranges, len(requests))
    finished = records.requests.status == Status.FINISHED
    np.testing.assert_array_equal(made[finished], requests.output_tokens[finished])
    assert built.around.fleet.in_flight.sum() == built.around.fleet.in_flight_tokens.sum() == 0
    transfers = records.transfers
    assert transfers is not None
    assert (transfers.end >= transfers.start).all()
    out = sum(b for name, b in records.link_bytes.items() if name.endswith("out"))
    into = sum(b for name, b in records.link_bytes.items() if name.endswith("in"))
    assert out == pytest.approx(transfers.num_bytes.sum(), rel=1e-9)
    assert into == pytest.approx(out, rel=1e-9)
    return records


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    blocks=st.sampled_from([60, 90, 400]),
    bandwidth=st.sampled_from([1e8, 1e9, 1e10, None]),
    interval=st.sampled_from([0.0, 0.05]),
    users=st.sampled_from([None, None, 9]),
    stages=st.sampled_from([1, 1, 1, 2]),
    router=st.sampled_from(["round-robin", "least-requests", "prefix-aware"]),
    first_token=st.sampled_from(["prefill", "decode"]),
    hits=st.booleans(),
    short=st.sampled_from([0, 100]),
    push=st.sampled_from(["pull", "push", "layers"]),
)
def test_every_token_is_made_once_and_every_byte_arrives(
    seed: int,
    blocks: int,
    bandwidth: float | None,
    interval: float,
    users: int | None,
    stages: int,
    router: str,
    first_token: str,
    hits: bool,
    short: int,
    push: str,
) -> None:
    requests = trace(60, 80.0, seed=seed)
    args = replace(ARGS, pipeline_parallel_size=stages, async_scheduling=bool(seed % 2))
    plan = disaggregated(
        blocks=blocks,
        bandwidth=bandwidth,
        args=args,
        decode_router=RouterPlan(router),
        first_token=first_token,
        decode_prefix_hits=hits,
        min_prompt_tokens=short,
        push=push != "pull",
        layerwise=push == "layers",
    )
    plan = replace(plan, router=replace(plan.router, metrics_interval_s=interval))
    runs = [
        checked(Simulation(requests, plan, closed_loop_users=users, step_mode=mode, seed=seed), requests)
        for mode in (False, True)
    ]
    same(*runs)
