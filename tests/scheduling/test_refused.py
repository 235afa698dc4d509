"""A request that lacks blocks is not looked up again while that cannot help: the records are the same as if it were."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator import native
from simulator.cluster.plan import single
from simulator.cluster.simulation import Simulation
from simulator.cost.analytic import LinearCost
from simulator.kv.prefix import BlockTable, Hit, PrefixCache
from simulator.replica.records import SimulationRecords
from simulator.scheduling import EngineArgs
from simulator.scheduling.vllm import Vllm
from traces.prefix import from_rows
from traces.trace import Trace

ARGS = EngineArgs(max_num_seqs=16, max_num_batched_tokens=256, enable_prefix_caching=True, async_scheduling=False)
COST = LinearCost(0.005, 2e-5, 1e-4, 1e-8, 1e-9)


def documents(seed: int, count: int) -> Trace:
    """Requests on documents that branch: two of three levels are shared by many."""
    rng = np.random.default_rng(seed)
    depth = rng.integers(0, 4, count)
    first, second = rng.integers(0, 3, count), rng.integers(0, 2, count)
    rows = []
    for n in range(count):
        path = [1 + first[n], 10 * (1 + first[n]) + second[n], 1000 + n]
        rows.append([int(100 * path[level] + k) for level in range(depth[n]) for k in range(6)])
    prompt = np.array([16 * len(row) for row in rows]) + rng.integers(0, 60, count) + (depth == 0)
    return Trace(
        np.sort(rng.uniform(0, count / 40, count)), prompt, rng.integers(1, 80, count), prefix=from_rows(rows, 16)
    )


def simulated(trace: Trace, args: EngineArgs, blocks: int, *, remembers: bool) -> SimulationRecords:
    built = Simulation(trace, single(args, COST, blocks))
    policy = built.replicas[0].engine.policy
    assert isinstance(policy, Vllm)
    assert policy.remembers
    policy.remembers = remembers
    return built.run()


@pytest.mark.skipif(native.CORE == "compiled", reason="replaces a method of a compiled class")
def test_most_looks_are_spared(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    lookup = PrefixCache.lookup

    def counted(cache: PrefixCache, table: BlockTable, max_blocks: int) -> Hit:
        asked.append(max_blocks)
        return lookup(cache, table, max_blocks)

    monkeypatch.setattr(PrefixCache, "lookup", counted)
    trace = documents(0, 200)
    simulated(trace, ARGS, 60, remembers=True)
    sparing = len(asked)
    simulated(trace, ARGS, 60, remembers=False)
    assert sparing < 0.85 * (len(asked) - sparing)


CHANGES = ({}, {"async_scheduling": True}, {"pipeline_parallel_size": 2}, {"long_prefill_token_threshold": 32})


@pytest.mark.parametrize("change", CHANGES, ids=str)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), blocks=st.integers(24, 80))
def test_records_are_those_of_looking_every_time(change: dict[str, int], seed: int, blocks: int) -> None:
    trace, args = documents(seed, 60), replace(ARGS, **change)
    found = simulated(trace, args, blocks, remembers=True)
    wanted = simulated(trace, args, blocks, remembers=False)
    for part in ("requests", "steps"):
        for field in fields(getattr(wanted, part)):
            a, b = getattr(getattr(found, part), field.name), getattr(getattr(wanted, part), field.name)
            np.testing.assert_array_equal(a, b, err_msg=field.name)
