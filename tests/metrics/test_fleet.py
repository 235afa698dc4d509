"""A cluster's rows add up to what the run did, replica by replica and group by group."""

from __future__ import annotations

import numpy as np
import pytest

from simulator.cluster.plan import ClusterPlan, Group, RouterPlan
from simulator.cluster.simulation import Simulation
from simulator.metrics import analyse, summarize
from simulator.metrics.fleet import replica_columns, summarize_fleet
from simulator.metrics.token_times import tokens_made
from simulator.replica.records import SimulationRecords
from simulator.report.fleet import _requests_inside, fleet_figures
from tests.cluster.test_many_replicas import ARGS, LINEAR, trace


@pytest.fixture(scope="module")
def records() -> SimulationRecords:
    groups = (Group(ARGS, LINEAR, 300, name="large", count=2), Group(ARGS, LINEAR, 250, name="small", gpu="L4"))
    return Simulation(trace(), ClusterPlan(groups, RouterPlan("least-requests"))).run()


def test_rows_add_up_to_the_run(records: SimulationRecords) -> None:
    columns = replica_columns(records)
    requests = records.requests
    assert columns["requests"].sum() == len(requests.arrival)
    assert not requests.preemptions.any()
    made = tokens_made(analyse(records).ranges, len(requests.arrival))
    assert columns["output_tokens"].sum() == made.sum() == requests.output_tokens.sum()
    assert columns["prompt_tokens"].sum() == requests.prompt_tokens.sum()
    assert (columns["busy_s"] <= columns["alive_s"] + 1e-9).all()
    summary = summarize_fleet(records)
    assert list(summary["groups"]) == ["large", "small"]
    assert summary["groups"]["large"]["replicas"] == 2
    assert summary["groups"]["large"]["requests_finished"] + summary["groups"]["small"]["requests_finished"] == 240
    assert summarize(records)["cluster"]["groups"].keys() == summary["groups"].keys()


def test_a_window_halves_what_lies_in_it(records: SimulationRecords) -> None:
    middle = records.end / 2
    first, second = (replica_columns(records, w)["busy_s"] for w in ((0.0, middle), (middle, records.end)))
    np.testing.assert_allclose(first + second, replica_columns(records)["busy_s"])


def test_requests_inside_integrate_to_the_steps(records: SimulationRecords) -> None:
    edges = np.linspace(0.0, records.end, 18)
    steps = records.steps
    n = steps.num_steps
    seconds = n * steps.step + steps.increment * n * (n - 1) / 2
    for replica in range(3):
        area = (_requests_inside(records, replica, edges) * np.diff(edges)).sum()
        mine = steps.replica == replica
        assert area == pytest.approx(((steps.num_running + steps.num_waiting) * seconds)[mine].sum(), rel=1e-9)


def test_the_report_shows_every_replica(records: SimulationRecords) -> None:
    [load] = fleet_figures(records)
    assert "large 0" in load.svg
    assert "small 2" in load.svg
