"""Invariant 8: energy, carbon and cost of a run are the sums over its replicas, hours and steps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.cluster.elastic import FaultPlan, GroupLife, LifePlan, ScalingPlan
from simulator.cluster.plan import ClusterPlan, Group, RouterPlan
from simulator.cluster.simulation import Simulation
from simulator.cost.analytic import FixedCost
from simulator.cost.power import PowerModel
from simulator.metrics import summarize
from simulator.metrics.energy import EnergyPlan, power_over_time, summarize_energy
from simulator.metrics.fleet import replica_columns
from simulator.replica.records import SimulationRecords
from simulator.scheduling import EngineArgs
from traces.trace import Trace

ARGS = EngineArgs(max_num_seqs=8, max_num_batched_tokens=512, enable_prefix_caching=False, async_scheduling=False)
POWER = PowerModel(idle_w=100, tdp_w=500, ridge_tokens=300)


def run(seed: int = 0, *, cold_s: float = 30.0, count: int = 300) -> SimulationRecords:
    rng = np.random.default_rng(seed)
    arrival = np.sort(rng.uniform(0, 9000, count))
    requests = Trace(arrival, rng.integers(10, 900, count), rng.integers(1, 60, count))
    group = Group(ARGS, FixedCost(0.05, 1e-4), 4000, num_gpus=2, gpu="X")
    life = LifePlan(
        (GroupLife(1, 4, 2, cold_s),),
        ScalingPlan("queue", {"target_requests": 1.5, "average_s": 0, "stabilization_down_s": 30}),
        (FaultPlan("failures", {"mtbf_s": 2000.0, "mttr_s": 60.0}),),
    )
    return Simulation(requests, ClusterPlan((group,), RouterPlan("least-requests"), life=life), seed=seed).run()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), low=st.floats(0, 4000), width=st.floats(10, 6000))
def test_hours_replicas_and_steps_add_up_to_the_same_energy(seed: int, low: float, width: float) -> None:
    records = run(seed)
    window = (low, min(low + width, records.end))
    series = np.random.default_rng(seed).uniform(20, 600, 5).tolist()
    found = summarize_energy(records, EnergyPlan({"replicas": (POWER, 2)}, 1.3, series), window)
    energy = found["energy"]
    assert sum(energy["kwh_by_replica"]) == pytest.approx(energy["kwh"])
    assert sum(energy["kwh_by_group"].values()) == pytest.approx(energy["kwh"])
    joules = 0.0  # by hand: every replica's idle power while it is held, and what each step draws beyond
    for replica in records.replicas:
        joules += 2 * 100 * max(min(replica.stopped, window[1]) - max(replica.started, window[0]), 0.0)
    steps = records.steps
    for i in range(len(steps.start)):
        n = int(steps.num_steps[i])
        end = steps.start[i] + n * steps.step[i] + steps.increment[i] * n * (n - 1) / 2
        seconds = max(min(end, window[1]) - max(steps.start[i], window[0]), 0.0)
        joules += 2 * (float(POWER.watts(steps.num_decodes[i] + steps.prefill_tokens[i])) - 100) * seconds
    assert energy["kwh"] == pytest.approx(1.3 * joules / 3.6e6)
    carbon = found["carbon"]
    assert carbon is not None
    assert min(series) - 1e-9 <= carbon["mean_gco2_per_kwh"] <= max(series) + 1e-9
    assert carbon["gco2"] == pytest.approx(carbon["mean_gco2_per_kwh"] * energy["kwh"])


def test_carbon_follows_the_hour() -> None:
    """All requests come in the third hour: the first two hours' intensity counts for idle power alone."""
    requests = Trace(np.linspace(7200, 9000, 200), np.full(200, 400), np.full(200, 20))
    group = Group(ARGS, FixedCost(0.05, 1e-4), 4000, num_gpus=1, gpu="X")
    records = Simulation(requests, ClusterPlan((group,))).run()
    plan = EnergyPlan({"replicas": (POWER, 1)}, 1.0, [0.0, 0.0, 1000.0])
    whole = summarize_energy(records, plan, (0.0, 10_800.0))
    third = summarize_energy(records, plan, (7200.0, 10_800.0))
    assert whole["carbon"]["gco2"] == pytest.approx(1000 * third["energy"]["kwh"])
    assert whole["energy"]["kwh"] == pytest.approx(third["energy"]["kwh"] + 2 * 0.1)  # two idle hours of 100 W


def test_power_over_time_integrates_to_the_energy() -> None:
    records = run(4)
    plan = EnergyPlan({"replicas": (POWER, 2)}, 1.1)
    edges = np.linspace(0.0, records.end, 173)
    watts = power_over_time(records, plan, edges)
    energy = summarize_energy(records, plan, (0.0, records.end))["energy"]
    assert float((watts * np.diff(edges)).sum()) == pytest.approx(3.6e6 * energy["kwh"])
    assert energy["mean_w"] <= energy["peak_hour_w"] <= energy["peak_minute_w"] <= 1.1 * 4 * 2 * 500


def test_an_idle_replica_draws_idle_power_from_its_start() -> None:
    records = run(3)
    summary = summarize(records, energy=EnergyPlan({"replicas": (POWER, 2)}))
    hours = summary["scaling"]["replica_hours"]
    assert summary["energy"]["idle_kwh"] == pytest.approx(hours * 0.2)
    assert summary["carbon"] is None


def test_what_came_and_went_is_counted() -> None:
    records = run(1)
    summary = summarize(records)
    scaling = summary["scaling"]
    lives = records.replicas
    low, high = summary["window"]["start_s"], summary["window"]["end_s"]
    by_hand = sum(max(min(x.stopped, high) - max(x.started, low), 0.0) for x in lives) / 3600
    assert scaling["replica_hours"] == pytest.approx(by_hand)
    assert scaling["cold_starts"] == sum(x.started > 0 for x in lives) > 0
    assert scaling["failures"] == sum(x.why_stopped == "failed" for x in lives) > 0
    assert 1 <= scaling["mean_replicas"] <= scaling["peak_replicas"] <= 4
    assert scaling["mean_cold_start_s"] == pytest.approx(30.0)
    assert summary["engine"]["utilization"] == pytest.approx(
        summary["engine"]["busy_s"] / (scaling["replica_hours"] * 3600)
    )


def test_imbalance_is_per_second_that_a_replica_was_there() -> None:
    """Equal engines behind least-requests are about equally busy while they are there, however short that is."""
    summary = summarize(run(2))
    columns = replica_columns(run(2))
    assert columns["busy_s"].max() / columns["busy_s"].mean() > 2
    assert summary["cluster"]["imbalance"]["busy_s"] < columns["busy_s"].max() / columns["busy_s"].mean()
