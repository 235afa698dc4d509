"""Phases of prompts and decoding iterations in turns, and what they are for: a batch that does not dwindle."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from simulator.cluster.simulation import simulate
from simulator.core.errors import PolicyError
from simulator.cost.analytic import LinearCost
from simulator.replica.records import SimulationRecords
from simulator.scheduling import EngineArgs, resolve
from traces.trace import Trace

COST = LinearCost(0.01, 1e-5, 0.0, 0.0)


def served(outputs: list[int], policy: str, arrival: list[float] | None = None, **given: object) -> SimulationRecords:
    options = {"encode_batch": 4, "decode_steps": 8} if policy == "exegpt" else {}
    stages = int(str(given.pop("stages", 1)))
    args = EngineArgs(
        policy=policy, options={**options, **given}, max_num_seqs=16, max_model_len=200, pipeline_parallel_size=stages
    )
    n = len(outputs)
    trace = Trace(np.array(arrival or [0.0] * n), np.full(n, 10), np.array(outputs))
    return simulate(trace, resolve(args), COST, 1000)


def test_phases_come_every_so_many_iterations() -> None:
    records = served([33] * 12, "exegpt")
    prompts = records.steps.num_prefills > 0
    phases = np.flatnonzero(prompts)
    assert records.steps.num_prefills[phases].tolist() == [4, 4, 4]
    between = [int(records.steps.num_steps[a + 1 : b].sum()) for a, b in pairwise(phases)]
    assert between == [8, 8]


def test_who_comes_between_phases_waits_for_the_next() -> None:
    alone = served([40], "exegpt")
    first = float(alone.requests.first_token[0])
    token = 0.01 + 1e-5  # about a decoding iteration
    early = served([40, 40], "exegpt", [0.0, first + 0.5 * token])
    late = served([40, 40], "exegpt", [0.0, first + 20.5 * token])
    assert early.requests.scheduled[1] == pytest.approx(first + 8 * token, rel=0.02)
    assert late.requests.scheduled[1] < first + 21.5 * token  # the phase is long due


def test_the_batch_stays_where_a_static_one_dwindles() -> None:
    """Outputs of 1 to 99: the static batch ends with its longest member alone; with four new requests every eight
    iterations, of 50 tokens in the mean, all 16 slots are taken after four phases."""
    outputs = np.random.default_rng(0).integers(1, 100, 400).tolist()

    def mean_batch(records: SimulationRecords) -> float:
        steps = records.steps
        decoding = steps.num_decodes > 0
        return float(np.average(steps.num_decodes[decoding], weights=steps.num_steps[decoding]))

    ours, static = served(outputs, "exegpt"), served(outputs, "static")
    assert mean_batch(ours) > 13
    assert ours.end < 0.72 * static.end  # the mean is half the longest of 16; phases, and slots that wait for one, cost a third


@pytest.mark.parametrize("stages", [2, 4])
def test_in_a_pipeline_each_batch_on_the_way_has_its_share(stages: int) -> None:
    records = served([33] * 24, "exegpt", encode_batch=8, stages=stages)
    steps = records.steps
    assert steps.num_prefills.max() == 8 // stages and steps.num_decodes.max() == 16 // stages
    assert np.isfinite(records.requests.finish).all()


def test_it_needs_to_know_how_long_requests_may_be() -> None:
    one = Trace(np.zeros(1), np.array([10]), np.array([5]))
    with pytest.raises(PolicyError, match="max_model_len"):
        simulate(one, EngineArgs(policy="exegpt"), COST, 100)
    with pytest.raises(PolicyError, match="Did you mean 'decode_steps'"):
        simulate(one, EngineArgs(policy="exegpt", options={"decode_step": 4}, max_model_len=50), COST, 99)
