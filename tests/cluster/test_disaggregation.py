"""Prefill here, decode there: nothing is lost on the way, and the way takes the time it takes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.cluster.plan import ClusterPlan, DisaggregationPlan, Group, MixedPlan, RouterPlan
from simulator.cluster.simulation import Simulation
from simulator.cluster.transfers import KvBytes
from simulator.core.errors import ScenarioError
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
    prefills: int = 2,
    decodes: int = 2,
    *,
    both: int = 0,
    blocks: int = 400,
    bandwidth: float | None = None,
    **options: object,
) -> ClusterPlan:
    args = options.pop("args", ARGS)
    groups = (
        Group(args, LINEAR, blocks, name="prefill", count=prefills, role="prefill", kv=KV),  # type: ignore[arg-type]
        Group(args, LINEAR, blocks, name="decode", count=decodes, role="decode", kv=KV),  # type: ignore[arg-type]
    )
    groups += (replace(groups[0], name="both", role="both", count=both),) if both else ()
    h100 = gpu("H100")
    slots = [Slot(h100, group.name) for group in groups for _ in range(group.count)]
    fabric = Fabric(efficiency=1.0, fabric_bandwidth=bandwidth, placement="packed")
    h100s = [replace(slot, gpu=replace(h100, gpus_per_node=1)) for slot in slots]
    router = RouterPlan("least-requests")
    return ClusterPlan(groups, router, DisaggregationPlan(**options), topology=Topology(h100s, fabric))  # type: ignore[arg-type]


def computed_is_owed_together(records: SimulationRecords, built: Simulation) -> None:
    """Invariant 4 over all replicas. Who is preempted with prefix caching may hit what others computed meanwhile."""
    requests, steps = records.requests, records.steps
    served = requests.status == Status.FINISHED
    computed = int((steps.num_decodes * steps.num_steps).sum() + steps.prefill_tokens.sum())
    owed = int((requests.prompt_tokens + requests.output_tokens - 1 - requests.cached_tokens)[served].sum())
    owed += records.tokens_recomputed
    owed += sum(lane.tokens_padded for replica in built.replicas for lane in replica.engine.state.lanes)
    caching = any(replica.engine.state.caching for replica in built.replicas)
    if caching and requests.preemptions.any():
        assert computed <= owed
    else:
        assert computed == owed


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
    computed_is_owed_together(records, built)
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
    mixed=st.sampled_from([None, None, MixedPlan(300, 2), MixedPlan(None, 1)]),
    both=st.sampled_from([0, 0, 1]),
    budget=st.sampled_from([512, 512, 64]),
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
    mixed: MixedPlan | None,
    both: int,
    budget: int,
) -> None:
    requests = trace(60, 80.0, seed=seed)
    args = replace(ARGS, pipeline_parallel_size=stages, async_scheduling=bool(seed % 2), max_num_batched_tokens=budget)
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
        mixed=mixed,
        both=both,
    )
    plan = replace(plan, router=replace(plan.router, metrics_interval_s=interval))
    runs = [
        checked(Simulation(requests, plan, closed_loop_users=users, step_mode=mode, seed=seed), requests)
        for mode in (False, True)
    ]
    same(*runs)


SYNC = replace(ARGS, async_scheduling=False, enable_prefix_caching=False)


def one(prompt: int, output: int, **options: object) -> SimulationRecords:
    """A request alone on one prefill and one decode replica with a NIC of 1 GB/s."""
    requests = Trace(np.zeros(1), np.array([prompt]), np.array([output]))
    plan = disaggregated(1, 1, blocks=2000, bandwidth=1e9, **{"args": SYNC, **options})
    return checked(Simulation(requests, plan), requests)


def test_the_way_takes_its_time() -> None:
    """480 tokens are computed in 5 ms + 480 x 20 us + 480 x 480 x 1 ns = 14.83 ms, the TTFT. Their KV, 62.9 MB, takes
    62.9 ms over 1 GB/s and 10 us of latency; then comes the second token, after a step of 5 ms + 100 us + 10 ns x 481."""
    records = one(480, 3)
    transfers, requests = records.transfers, records.requests
    assert transfers is not None
    assert requests.first_token[0] == pytest.approx(0.0148304)
    assert transfers.num_bytes[0] == 480 * 131072
    assert transfers.end[0] - transfers.start[0] == pytest.approx(480 * 131072 / 1e9 + 10e-6, rel=1e-9)
    assert transfers.start[0] == pytest.approx(requests.first_token[0], abs=1e-12)
    second = transfers.end[0] + 0.005 + 1e-4 + 1e-8 * 481
    assert requests.finish[0] == pytest.approx(second + 0.005 + 1e-4 + 1e-8 * 482)
    assert (requests.replica[0], records.prefill_replica) == (1, [0])


def test_layer_by_layer_only_the_last_layer_is_left_when_the_prompt_is_computed() -> None:
    """200 GB/s are fast enough for the other 31 of 32 layers to keep up."""
    fast = {"args": SYNC, "push": True, "bandwidth": None}
    requests = Trace(np.zeros(1), np.array([480]), np.array([3]))
    ends = []
    for layerwise in (False, True):
        records = checked(Simulation(requests, disaggregated(1, 1, layerwise=layerwise, **fast)), requests)  # type: ignore[arg-type]
        assert records.transfers is not None
        ends.append(records.transfers.end[0] - records.requests.first_token[0] - 10e-6)
    assert ends == pytest.approx([480 * 131072 / 50e9, 480 * 131072 / 50e9 / 32], rel=1e-9)


def test_a_slow_network_is_behind_layer_by_layer_too() -> None:
    """1 GB/s cannot keep up: the transfer takes what its bytes take, from the beginning of the prompt on."""
    records = one(480, 3, push=True, layerwise=True)
    assert records.transfers is not None
    assert records.transfers.end[0] == pytest.approx(480 * 131072 / 1e9 + 10e-6, rel=1e-9)


def test_the_decode_side_may_compute_the_last_prompt_token_again() -> None:
    """Its token comes after the transfer of 479 tokens' KV and a step with that one token over 480."""
    records = one(480, 3, first_token="decode")
    transfers = records.transfers
    assert transfers is not None
    assert transfers.num_bytes[0] == 479 * 131072
    assert records.requests.first_token[0] == pytest.approx(transfers.end[0] + 0.005 + 2e-5 + 959e-9, rel=1e-9)
    assert records.tokens_recomputed == 1


def test_one_output_token_needs_no_decode_replica() -> None:
    records = one(480, 1)
    assert records.transfers is not None
    assert not len(records.transfers.start)
    assert records.requests.replica.tolist() == [0]


def test_a_full_decode_side_holds_the_blocks_of_the_prefill_side() -> None:
    """20 requests of 10 blocks come at once; the decode replica has room for four of them at a time, so the others wait
    on the prefill replica, whose blocks (for 8 of them) are full: it stops computing prompts."""
    requests = Trace(np.zeros(20), np.full(20, 150), np.full(20, 10))
    plan = disaggregated(1, 1, args=SYNC)
    small = (replace(plan.groups[0], num_gpu_blocks=81), replace(plan.groups[1], num_gpu_blocks=41))
    pressed, free = (
        checked(Simulation(requests, p), requests) for p in (replace(plan, groups=small), plan)
    )  # fmt: skip
    assert pressed.transfers is not None
    assert pressed.transfers.request.tolist() == list(range(20))  # first come, first served
    here = pressed.steps.replica == 0
    assert pressed.steps.free_blocks[here].min() == 0
    assert pressed.requests.first_token.max() > 1.5 * free.requests.first_token.max()
    in_batch = pressed.steps.num_decodes[pressed.steps.replica == 1]
    assert in_batch.max() <= 4


def test_what_the_decode_side_has_cached_is_not_sent() -> None:
    """Conversations come back: their prompts' blocks are where they were decoded, if the router sends them there."""
    requests = trace(200, 20.0)
    sent = {}
    for hits in (True, False):
        plan = disaggregated(1, 1, blocks=3000, decode_prefix_hits=hits)
        records = checked(Simulation(requests, plan), requests)
        assert records.transfers is not None
        sent[hits] = records.transfers.num_bytes.sum()
    multi = requests.output_tokens > 1
    assert sent[False] == requests.prompt_tokens[multi].sum() * 131072
    assert sent[True] < 0.5 * sent[False]


def test_short_prompts_are_computed_where_they_are_decoded() -> None:
    requests = trace(100, 20.0)
    records = checked(Simulation(requests, disaggregated(min_prompt_tokens=100)), requests)
    short = requests.prompt_tokens < 100
    assert records.prefill_replica is not None
    assert (records.prefill_replica[short] == records.requests.replica[short]).all()
    assert (records.requests.replica[short] >= 2).all()
    long = ~short & (requests.output_tokens > 1)
    assert np.isin(records.prefill_replica[long], [0, 1]).all()
    assert (records.requests.replica[long] >= 2).all()


def test_requests_that_fit_one_side_alone_are_rejected() -> None:
    """A prompt of 600 tokens fits the prefill replica with 10 tokens of output or 900; the decode replica holds 800."""
    requests = Trace(np.zeros(4), np.full(4, 600), np.array([10, 900, 1, 201]))
    plan = disaggregated(1, 1)
    small = replace(plan, groups=(plan.groups[0], replace(plan.groups[1], num_gpu_blocks=51)))
    records = checked(Simulation(requests, small), requests)
    served = [Status.FINISHED, Status.REJECTED, Status.FINISHED, Status.FINISHED]
    assert records.requests.status.tolist() == served


@pytest.mark.parametrize("seed", range(8))
def test_prompts_that_wait_for_blocks_hold_none_on_the_other_side(seed: int) -> None:
    """Prompts in many chunks on small replicas: one that is preempted gives up what it has reserved on the decode side,
    else it waits for the blocks of those that wait for its reservation, for ever."""
    requests = trace(60, 200.0, seed=seed)
    args = replace(ARGS, max_num_batched_tokens=64, long_prefill_token_threshold=32, scheduler_reserve_full_isl=False)
    plan = disaggregated(2, 2, blocks=40, bandwidth=1e9, args=args, push=True, layerwise=bool(seed % 2))
    same(*(checked(Simulation(requests, plan, step_mode=mode), requests) for mode in (False, True)))


@pytest.mark.parametrize("horizon", [0.05, 0.4, 1.1])
def test_a_horizon_leaves_requests_on_the_way_in_flight(horizon: float) -> None:
    requests = trace(60, 80.0)
    plan = disaggregated(bandwidth=1e9)
    runs = [Simulation(requests, plan, horizon_s=horizon, step_mode=mode).run() for mode in (False, True)]
    same(*runs)
    records = runs[0]
    ends_once(records, requests, drained=False)
    assert (records.requests.status == Status.IN_FLIGHT).any()
    transfers = records.transfers
    assert transfers is not None
    assert ((transfers.end <= horizon) | np.isinf(transfers.end)).all()
    carried = [b for name, b in records.link_bytes.items() if name.endswith("in")]
    assert sum(carried) == pytest.approx(transfers.num_bytes.sum(), rel=1e-9)


@pytest.mark.parametrize(
    ("prefill", "decode", "first_token"),
    [
        ("vllm", "vllm-v0", "prefill"),
        ("vllm-v0", "sarathi", "decode"),
        ("sarathi", "fastgen", "decode"),
        ("fastgen", "sarathi", "prefill"),
        ("orca", "vllm", "prefill"),
        ("static", "fastgen", "decode"),
    ],
)
def test_policies_of_both_sides_may_differ(prefill: str, decode: str, first_token: str) -> None:
    requests = trace(80, 80.0, seed=5)
    plan = disaggregated(blocks=90, bandwidth=1e10, first_token=first_token)
    one, other = plan.groups
    args = [
        replace(ARGS, policy=policy, async_scheduling=False, enable_prefix_caching=None, max_model_len=640)
        for policy in (prefill, decode)
    ]
    plan = replace(plan, groups=(replace(one, args=args[0]), replace(other, args=args[1])))
    same(*(checked(Simulation(requests, plan, step_mode=mode), requests) for mode in (False, True)))


def test_what_cannot_be_handed_over_is_refused() -> None:
    plan = disaggregated()
    with pytest.raises(ScenarioError, match="layer by layer"):
        Simulation(trace(5), disaggregated(layerwise=True))
    with pytest.raises(ScenarioError, match="role prefill"):
        Simulation(trace(5), replace(plan, groups=tuple(replace(g, role="both") for g in plan.groups)))
    with pytest.raises(ScenarioError, match="topology"):
        Simulation(trace(5), replace(plan, topology=None))
    orca = replace(ARGS, policy="orca", enable_prefix_caching=False, async_scheduling=False)
    for policy, why in (("orca", "'orca' reserves"), ("sglang", "'sglang' promises")):
        args = replace(orca, policy=policy)
        with pytest.raises(ScenarioError, match=why):
            Simulation(trace(5), replace(plan, groups=(plan.groups[0], replace(plan.groups[1], args=args))))


def test_decode_replicas_help_out_with_prompts_and_go_back() -> None:
    """A burst of long prompts and short answers swamps the one prefill replica of five; with a mixed pool the four decode
    replicas compute prompts as well, and say so, until the burst is over."""
    n = 120
    requests = Trace(np.arange(n) / 240.0, np.full(n, 480), np.full(n, 8))
    alone = disaggregated(1, 4, args=SYNC)
    helped = disaggregated(1, 4, args=SYNC, mixed=MixedPlan(prompt_tokens=1000))
    slow, fast = (checked(Simulation(requests, plan), requests) for plan in (alone, helped))
    assert np.percentile(fast.requests.first_token - requests.arrival, 90) < 0.5 * np.percentile(
        slow.requests.first_token - requests.arrival, 90
    )
    assert fast.prefill_replica is not None
    assert 0 < (fast.prefill_replica > 0).sum() < n
    assert (fast.requests.replica > 0).all()
    began = [event.replica for event in fast.events if "computes prompts too" in event.text]
    ended = [event.replica for event in fast.events if "its own role" in event.text]
    assert sorted(began) == sorted(ended)
    assert {event.kind for event in fast.events} == {"role"}
    assert not slow.events


def test_prefill_replicas_decode_when_the_decode_side_is_full() -> None:
    requests = Trace(np.arange(60) / 100.0, np.full(60, 100), np.full(60, 150))
    full = disaggregated(3, 1, blocks=81, args=SYNC)
    assert full.disaggregation is not None
    helped = replace(full, disaggregation=replace(full.disaggregation, mixed=MixedPlan(waiting_requests=3)))
    slow, fast = (checked(Simulation(requests, plan), requests) for plan in (full, helped))
    assert set(fast.requests.replica.tolist()) == {0, 1, 2, 3}
    assert set(slow.requests.replica.tolist()) == {3}
    assert fast.end < 0.6 * slow.end
    assert any("decodes too" in event.text for event in fast.events)
