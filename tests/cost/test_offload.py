"""Weights and KV in host memory or on disk: a step is as long as its slowest part, worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.cluster.plan import single
from simulator.cluster.simulation import Simulation
from simulator.core.errors import UserError
from simulator.cost.calibrated import cost_model
from simulator.cost.hosted import Offload
from simulator.cost.memory import memory_plan
from simulator.cost.offload import CPU_EFFICIENCY, balanced_cpu_share
from simulator.cost.placement import Deployment
from simulator.cost.served_experts import HOST_EFFICIENCY
from simulator.cost.step import OperatorCost
from simulator.hardware.gpu import gpu
from simulator.hardware.host import host, hosts
from simulator.model.catalogue import model
from simulator.model.weights import layer_weight_bytes
from simulator.scheduling import EngineArgs
from tests.scheduling.invariants import check
from tests.scheduling.test_span_is_step import same_requests, same_steps
from traces.trace import Trace

OPT = model("facebook/opt-13b")
T4 = gpu("T4")
SERVER = host("GCP-N1-T4")
LAYERS = sum(layer_weight_bytes(OPT, layer, 1, "float16", None) for layer in OPT.layers)
KV = 819_200  # bytes per token
LINK, READ, WRITE = 16e9 * HOST_EFFICIENCY, 2e9, 1e9
CPU = SERVER.memory_bandwidth * CPU_EFFICIENCY


def cost(offload: Offload | None) -> OperatorCost:
    return cost_model(OPT, T4, None, Deployment(offload=offload))


def step(offload: Offload, batch: int = 8, context: int = 4000) -> float:
    return cost(offload).decode(batch, context, 0, 0).first


def test_streaming_takes_the_bytes_over_the_link() -> None:
    assert step(Offload(weights_host=1.0)) == pytest.approx(LAYERS / LINK)
    assert step(Offload(weights_host=0.5)) == pytest.approx(0.5 * LAYERS / LINK)
    alone = cost(None).decode(8, 4000, 0, 0).first
    assert step(Offload(weights_host=1.0, overlap=False)) == pytest.approx(alone + LAYERS / LINK)
    assert step(Offload(weights_host=0.001)) == pytest.approx(alone)  # hidden behind the GPU


def test_a_disk_is_slower_than_the_link_behind_it() -> None:
    on_disk = Offload(host=SERVER, weights_host=0.5, weights_disk=0.5)
    assert step(on_disk) == pytest.approx(0.5 * LAYERS / READ)
    both = replace(on_disk, kv_disk=1.0)
    assert step(both, 256, 100_000) == pytest.approx((0.5 * LAYERS + 100_000 * KV) / READ)


def test_kv_is_copied_or_read_by_the_cpu() -> None:
    copied = Offload(host=SERVER, kv_host=1.0)
    assert step(copied, 16, 32_000) == pytest.approx(32_000 * KV / LINK)
    line = cost(copied).decode(16, 32_000, 0, 0)
    assert line.increment == pytest.approx(16 * KV / LINK)
    gpu_part = cost(None).decode(16, 0, 0, 0).first
    by_cpu = replace(copied, attention="cpu")
    assert step(by_cpu, 16, 32_000) == pytest.approx(gpu_part + 32_000 * KV / CPU)
    widened = replace(copied, attention="cpu_fp32")
    assert step(widened, 16, 32_000) == pytest.approx(gpu_part + 5 * 32_000 * KV / CPU)


def test_prompts_store_their_kv() -> None:
    on_disk = cost(Offload(host=SERVER, kv_disk=1.0))
    assert on_disk.mixed(0, 0, 0, [(64, 0)], 1) == pytest.approx(
        max(64 * KV / WRITE, cost(None).mixed(0, 0, 0, [(64, 0)], 1))
    )
    prefix = cost(Offload(host=SERVER, kv_host=1.0)).mixed(0, 0, 0, [(1, 2000)], 1)
    assert prefix == pytest.approx(2000 * KV / LINK)


def test_the_cpu_multiplies_its_share_beside_the_gpu() -> None:
    """At the balanced share both take as long, and any other share takes longer (HeteGen, section 3.2)."""
    share = balanced_cpu_share(SERVER, T4, 1)
    assert share == pytest.approx(CPU / (CPU + LINK))
    seconds = {a: step(Offload(host=SERVER, weights_host=1.0, cpu_share=a), 1) for a in (0.0, share - 0.05, share, 1.0)}
    assert min(seconds, key=seconds.__getitem__) == share
    assert seconds[0.0] / seconds[share] == pytest.approx((CPU + LINK) / LINK, rel=0.1)
    serial = Offload(host=SERVER, weights_host=1.0, cpu_share=1.0, overlap=False)
    assert step(serial, 1) > LAYERS * 0.99 / CPU


def test_neurons_that_no_token_needs_are_skipped() -> None:
    dense = Offload(host=SERVER, weights_host=0.6, cpu_share=1.0)
    sparse = replace(dense, activated=0.1, hot=0.6)
    assert step(sparse, 1) < step(dense, 1) / 4
    assert step(replace(sparse, hot=0.9), 1) < step(sparse, 1)
    everybody = [step(sparse, n) / step(dense, n) for n in (1, 4, 16, 64)]
    assert everybody == sorted(everybody)  # the more tokens, the fewer neurons that none needs
    assert dense.by_gpu(1, 0.6) == pytest.approx(0.4)
    assert dense.by_cpu(1, 0.6) == pytest.approx(0.6)


def test_memory_holds_what_is_left_and_two_layers_in_flight() -> None:
    whole = memory_plan(OPT, gpu("l40s"), max_model_len=512, max_num_seqs=8, max_num_batched_tokens=512).weight_bytes
    away = memory_plan(
        OPT, T4, max_model_len=512, max_num_seqs=8, max_num_batched_tokens=512, offload=Offload(weights_host=0.8)
    )
    assert away.weight_bytes == pytest.approx(whole - 0.8 * LAYERS + 2 * 0.8 * LAYERS / 40, rel=1e-6)
    assert sum(size for _, size in away.terms) == away.total_bytes
    in_host = Offload(host=SERVER, weights_host=1.0, kv_host=1.0)
    plan = memory_plan(OPT, T4, max_model_len=512, max_num_seqs=8, max_num_batched_tokens=512, offload=in_host)
    assert plan.num_gpu_blocks == int((SERVER.memory_bytes - LAYERS) // (16 * KV))
    assert plan.kv_cache_bytes == 0
    assert sum(size for _, size in plan.terms) == plan.total_bytes


@pytest.mark.parametrize(
    ("offload", "words"),
    [
        (Offload(weights_host=0.8, weights_disk=0.5), "1.3 of the whole"),
        (Offload(kv_host=1.0), "host is not known"),
        (Offload(host=host("Xeon-Gold-6136"), weights_disk=0.5), "has no disk"),
        (Offload(host=SERVER, weights_host=0.5, activated=0.5), "copied whole"),
        (Offload(host=SERVER, weights_host=0.9, cpu_share=1.0, activated=0.5), r"MLPs of .* 0\.67"),
    ],
)
def test_what_does_not_fit_is_refused(offload: Offload, words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        cost(offload)
    assert error.value.remedy


def test_a_host_that_is_too_small_says_so() -> None:
    small = Offload(host=host("Core-i7-12700K"), weights_host=1.0)
    with pytest.raises(UserError, match=r"exceed the .* of the host's memory"):
        memory_plan(model("facebook/opt-66b"), gpu("A100"), offload=small)
    with pytest.raises(UserError, match="unknown host 'xeon'"):
        host("xeon")
    assert all(x.source and x.memory_bandwidth > 0 for x in hosts().values())


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([0.0, 0.3, 1.0]),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.sampled_from(["gpu", "cpu", "cpu_fp32"]),
    st.sampled_from([0.0, 0.7]),
    st.booleans(),
    st.integers(1, 12),
)
def test_spans_are_steps(
    weights: float,
    kv: float,
    attention: str,
    cpu_share: float,
    overlap: bool,
    seqs: int,  # noqa: FBT001
) -> None:
    offload = Offload(
        host=SERVER, weights_host=weights, kv_host=kv, attention=attention, cpu_share=cpu_share, overlap=overlap  # type: ignore[arg-type]
    )  # fmt: skip
    rng = np.random.default_rng(3)
    trace = Trace(np.cumsum(rng.exponential(2.0, 12)), rng.integers(1, 900, 12), rng.integers(1, 60, 12))
    args = EngineArgs(max_num_seqs=seqs, max_num_batched_tokens=512, max_model_len=1024, enable_prefix_caching=False)
    plan = single(args, cost(offload), 200)
    runs = [Simulation(trace, plan, step_mode=mode) for mode in (False, True)]
    spans, steps = (run.run() for run in runs)
    same_requests(spans, steps)
    same_steps(spans.steps, steps.steps)
    for records, run in zip((spans, steps), runs, strict=True):
        check(records, trace, run.replicas[0].engine.state)
