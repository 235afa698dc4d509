"""Clocks that a controller changes while the simulation runs: steps, energy and records follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.cluster.elastic import GroupLife, LifePlan, ScalingPlan
from simulator.cluster.plan import ClocksPlan, ClusterPlan, Group, RouterPlan
from simulator.cluster.simulation import Simulation
from simulator.core.errors import PolicyError
from simulator.cost.power import ClockedCost, PowerModel, PowerSetting
from simulator.metrics.energy import EnergyPlan, power_over_time, summarize_energy
from simulator.replica.records import ClusterEvent, SimulationRecords, Status
from simulator.scaling import ClockController, Order, View
from tests.cluster.test_many_replicas import ARGS, LINEAR, same, trace
from traces.trace import Trace

POWER = PowerModel(idle_w=100.0, tdp_w=700.0, ridge_tokens=300.0)
SYNC = replace(ARGS, async_scheduling=False, enable_prefix_caching=False)
HERE = "tests.cluster.test_clocks"


def clocked(policy: str, options: Mapping[str, object], *, count: int = 1, interval_s: float = 1.0) -> ClusterPlan:
    group = Group(SYNC, LINEAR, 400, count=count, power=POWER, num_gpus=2)
    clocks = ClocksPlan(f"{HERE}:{policy}" if policy[0].isupper() else policy, options, interval_s)  # type: ignore[arg-type]
    return ClusterPlan((group,), RouterPlan("least-requests"), clocks=clocks)


class Nothing(ClockController):
    """Looks only."""

    seen: list[View]

    def __init__(self, around: object, options: object) -> None:
        type(self).seen = []

    def orders(self, view: View) -> Sequence[Order]:
        self.seen.append(view)
        return []


class Half(ClockController):
    """Half the clock from the second look on."""

    def __init__(self, around: object, options: object) -> None:
        self._looks = 0

    def orders(self, view: View) -> Sequence[Order]:
        self._looks += 1
        return [Order(0, 0.5, why="test")] if self._looks == 2 else []


class Dice(ClockController):
    """Another clock at every look, sometimes later."""

    def __init__(self, around: object, options: object) -> None:
        self._random = np.random.default_rng(3)

    def orders(self, view: View) -> Sequence[Order]:
        clock, after = self._random.choice([0.2, 0.5, 0.9, 1.0]), self._random.choice([0.0, 0.07])
        return [Order(0, float(clock), float(after))]


class Wrong(ClockController):
    """Wants what no GPU can do."""

    def __init__(self, around: object, options: object) -> None: ...

    def orders(self, view: View) -> Sequence[Order]:
        return [Order(0, 1.5)]


def energy(records: SimulationRecords) -> dict[str, float]:
    plan = EnergyPlan({"replicas": (POWER, 2)})
    found: dict[str, float] = summarize_energy(records, plan, (0.0, records.end))["energy"]
    return found


def test_a_controller_that_does_nothing_changes_nothing() -> None:
    requests = trace(120, 40.0)
    plan = clocked("Nothing", {}, count=2)
    watched, plain = Simulation(requests, plan).run(), Simulation(requests, replace(plan, clocks=None)).run()
    same(watched, plain)
    assert watched.end == plain.end
    assert watched.clocks == ()
    assert energy(watched)["kwh"] == energy(plain)["kwh"]


def test_the_power_that_is_shown_is_the_power_that_is_accounted_for() -> None:
    requests = trace(120, 40.0)
    records = Simulation(requests, clocked("Nothing", {}, count=2, interval_s=0.25)).run()
    shown = np.array([view.groups[0].watts for view in Nothing.seen])
    edges = np.array([0.0, *(view.now for view in Nothing.seen)])
    accounted = power_over_time(records, EnergyPlan({"replicas": (POWER, 2)}), edges)
    np.testing.assert_allclose(shown, accounted, rtol=1e-9)


def test_steps_are_slower_from_the_next_one_on_and_draw_less() -> None:
    """One request of 16 prompt tokens decodes alone; at 2 s its clock is halved."""
    requests = Trace(np.zeros(1), np.array([16]), np.array([900]))
    plan = clocked("Half", {})
    records = Simulation(requests, plan).run()
    assert records.clocks is not None
    (change,) = records.clocks
    assert 2.0 <= change.time < 2.006
    assert [(event.kind, event.text) for event in records.events] == [("clock", "replicas: 50% of the maximum (test)")]
    steps = records.steps
    before, after = steps.start < change.time, steps.start >= change.time
    slow = ClockedCost(LINEAR, replace(POWER, setting=PowerSetting(clock=0.5)))
    last = np.flatnonzero(after)[0]
    context = int(steps.context_tokens[last])
    assert steps.step[last] == pytest.approx(slow.decode(1, context, 0, 0).first, rel=1e-12)
    busy = float(POWER.watts(1)) - POWER.idle_w
    half = float(POWER.watts(1, 0.5)) - POWER.idle_w
    seconds = steps.num_steps * steps.step + steps.increment * steps.num_steps * (steps.num_steps - 1) / 2
    own = seconds * (np.where(steps.prefill_tokens > 0, float(POWER.watts(16)) - POWER.idle_w, busy))
    joules = own[before].sum() + seconds[after].sum() * half + POWER.idle_w * records.end
    assert energy(records)["kwh"] * 3.6e6 == pytest.approx(2 * joules, rel=1e-9)


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(1, 3),
    lead=st.booleans(),
    policy=st.sampled_from(["Dice", "polca", "slo-clock"]),
    life=st.booleans(),
)
def test_spans_are_steps(seed: int, count: int, lead: bool, policy: str, life: bool) -> None:
    requests = trace(60, 60.0, seed=seed)
    options: dict[str, object] = {"limit_w": count * 900.0, "low": "replicas", "delay_s": 0.1, "brake_delay_s": 0.05}
    plan = clocked(policy, options if policy == "polca" else {}, count=count, interval_s=0.1)
    plan = replace(plan, groups=(replace(plan.groups[0], args=replace(ARGS, async_scheduling=lead)),))
    if life:
        scaling = ScalingPlan("energy", {"window_s": 0.5}, 0.3)
        plan = replace(plan, life=LifePlan((GroupLife(1, 4, count, 0.2),), scaling))
    runs = [Simulation(requests, plan, step_mode=mode).run() for mode in (False, True)]
    same(*runs)
    assert (runs[0].requests.status == Status.FINISHED).all()
    assert runs[0].clocks == runs[1].clocks
    assert runs[0].events == runs[1].events
    assert energy(runs[0])["kwh"] == pytest.approx(energy(runs[1])["kwh"], rel=1e-9)


def test_polca_locks_the_low_first_and_brakes_at_the_limit() -> None:
    """Two groups under full load: 2 x 2 GPUs of up to 700 W on 2,600 W."""
    requests = Trace(np.arange(4000) / 250.0, np.full(4000, 200), np.full(4000, 20))
    plan = clocked("polca", {"limit_w": 2400.0, "low": "low", "delay_s": 2.0, "brake_delay_s": 0.5}, interval_s=0.5)
    low = replace(plan.groups[0], name="low")
    records = Simulation(requests, replace(plan, groups=(low, replace(low, name="high")))).run()
    told: list[ClusterEvent] = list(records.events)
    assert told
    first = next(event for event in told if event.kind == "clock")
    assert first.text.startswith("low: ")
    watts = power_over_time(records, EnergyPlan({"low": (POWER, 2), "high": (POWER, 2)}), np.arange(0.0, 16.0, 0.5))
    assert watts[:4].max() > 2000
    assert watts[-8:].max() < 2400.0
    with pytest.raises(PolicyError, match="is no group"):
        Simulation(requests, clocked("polca", {"limit_w": 1.0, "low": "hihg"}))


def test_off_the_peak_the_clock_falls_and_the_slo_holds() -> None:
    requests = trace(300, 20.0)
    plan = clocked("slo-clock", {"tpot_s": 0.05, "ttft_s": 1.0}, count=2)
    slow, fast = Simulation(requests, plan).run(), Simulation(requests, replace(plan, clocks=None)).run()
    assert energy(slow)["kwh"] < 0.9 * energy(fast)["kwh"]
    tpot = (slow.requests.finish - slow.requests.first_token) / np.maximum(requests.output_tokens - 1, 1)
    assert np.percentile(tpot, 99) < 0.05


def test_what_clocks_cannot_do_is_refused() -> None:
    requests = trace(60, 20.0)
    with pytest.raises(PolicyError, match="shares from"):
        Simulation(requests, clocked("Wrong", {})).run()
