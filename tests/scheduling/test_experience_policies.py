"""Deadlines, aging and the experience of readers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from simulator.cost.analytic import FixedCost, LinearCost
from simulator.metrics.experience import quality_of_experience
from simulator.metrics.stats import Floats
from simulator.replica.records import SimulationRecords
from tests.scheduling.test_policies import makespan, serve
from traces.trace import Labels, Trace

SWAP: dict[str, object] = {"preemption": "swap", "kv_bytes_per_token": 131072}


class TestDeadlines:
    def trace(self, gap: float, n: int = 400) -> Trace:
        rng = np.random.default_rng(0)
        codes = rng.integers(0, 2, n).astype(np.int32)
        arrival = np.cumsum(rng.exponential(gap, n))
        return Trace(arrival, np.full(n, 300), rng.integers(20, 80, n), slo_class=Labels(codes, ("chat", "mail")))

    def met(self, trace: Trace, policy: str) -> float:
        """Share of requests whose first token came in time: chat within 0.4 s, mail within 20 s."""
        options = {"deadlines_s": "0.4, 20"} if policy == "edf" else {}
        requests = serve(trace, policy, max_num_seqs=4, options=options).requests
        assert trace.slo_class is not None
        limit = np.where(trace.slo_class.codes == 0, 0.4, 20.0)
        return float((requests.first_token - requests.arrival <= limit).mean())

    def test_who_can_wait_makes_way(self) -> None:
        trace = self.trace(0.1)
        assert self.met(trace, "vllm") < 0.9 < 0.97 < self.met(trace, "edf")

    def test_nothing_to_gain_without_a_queue(self) -> None:
        trace = self.trace(1.0)
        assert self.met(trace, "vllm") == self.met(trace, "edf") == 1.0

    def test_one_class_is_first_come_first_served(self) -> None:
        trace = self.trace(0.08)
        one = Trace(trace.arrival, trace.prompt_tokens, trace.output_tokens)
        ours, vllm = (serve(one, policy, max_num_seqs=4).requests.finish for policy in ("edf", "vllm"))
        np.testing.assert_array_equal(ours, vllm)


class TestAging:
    def waits(self, policy: str, **arguments: Any) -> tuple[float, float]:
        """Longest wait of low priority, mean wait of high priority, s: high priority alone nearly fills the engine."""
        n = 500
        priority = np.where(np.arange(n) % 10 == 0, 1, 0)
        trace = Trace((np.arange(n) * 0.05).astype(np.float64), np.full(n, 100), np.full(n, 34), priority=priority)
        requests = serve(trace, policy, max_num_seqs=4, **arguments).requests
        wait = requests.scheduled - requests.arrival
        return float(wait[priority == 1].max()), float(wait[priority == 0].mean())

    def test_between_priority_and_first_come_first_served(self) -> None:
        strict = self.waits("vllm", scheduling_policy="priority")
        aged = self.waits("aging", options={"aging_s": 1.0})
        fcfs = self.waits("vllm")
        assert strict[0] > 2 * aged[0] and aged[0] > fcfs[0]
        assert strict[1] <= aged[1] <= fcfs[1]

    @pytest.mark.parametrize(("aging_s", "same"), [(0.0, "fcfs"), (1e6, "priority")])
    def test_its_ends_are_those(self, aging_s: float, same: str) -> None:
        assert self.waits("aging", options={"aging_s": aging_s}) == self.waits("vllm", scheduling_policy=same)


class TestAndes:
    """KV for about 13 requests, each of which gets 140 tokens/s while it runs; 8.5 requests/s can be served."""

    def trace(self, gap: float, n: int = 300) -> Trace:
        rng = np.random.default_rng(3)
        return Trace(np.cumsum(rng.exponential(gap, n)), rng.integers(50, 150, n), rng.integers(100, 400, n))

    def qoe(self, trace: Trace, policy: str, pace: float) -> tuple[Floats, SimulationRecords]:
        options = {**SWAP, "expected_tokens_per_s": pace} if policy == "andes" else {}
        records = serve(trace, policy, kv_tokens=4096, async_scheduling=False, options=options)
        return quality_of_experience(records, expected_tokens_per_s=pace), records

    def test_readers_gain_under_overload_at_hardly_any_throughput(self) -> None:
        trace = self.trace(0.06)
        (fcfs, before), (andes, after) = (self.qoe(trace, policy, 60.0) for policy in ("vllm", "andes"))
        assert 1.5 < andes.mean() / fcfs.mean() < 4.7
        assert makespan(after) < 1.1 * makespan(before)

    def test_nothing_to_gain_while_everybody_fits(self) -> None:
        trace = self.trace(0.5)
        (fcfs, before), (andes, after) = (self.qoe(trace, policy, 60.0) for policy in ("vllm", "andes"))
        assert andes.mean() == pytest.approx(fcfs.mean(), rel=0.01)
        np.testing.assert_allclose(after.requests.finish, before.requests.finish)

    def test_a_lead_is_lent_until_it_is_spent(self) -> None:
        """Who reads 4.8 tokens/s does not notice having given way; who reads 60 does."""
        trace = self.trace(0.06)
        slow, records = self.qoe(trace, "andes", 4.8)
        assert (records.requests.preemptions > 0).sum() > 50
        assert slow[records.requests.preemptions > 0].min() > 0.99
        fast, records = self.qoe(trace, "andes", 60.0)
        assert fast[records.requests.preemptions > 0].mean() < 0.95

    def test_a_cap_of_none_preempts_nobody(self) -> None:
        options = {**SWAP, "preemption_cap": 0.0}
        records = serve(self.trace(0.06), "andes", max_num_seqs=8, options=options)
        assert records.requests.preemptions.sum() == 0


class TestQuality:
    """The metric itself, by hand: tokens every ``step`` seconds, the first after ``step`` too."""

    def one(self, step: float, output: int = 5) -> float:
        trace = Trace(np.zeros(1), np.array([10]), np.array([output]))
        records = serve(trace, "vllm", FixedCost(step, 0.0), async_scheduling=False)
        return float(quality_of_experience(records, expected_ttft_s=1.0, expected_tokens_per_s=2.0)[0])

    def test_tokens_in_time_are_worth_one_however_early(self) -> None:
        assert self.one(0.5) == self.one(0.01) == self.one(0.01, output=1) == 1.0

    def test_late_tokens_cost_their_area(self) -> None:
        """Read at 2, 4, 6, 8, 10 s; expected at 1, 1.5, 2, 2.5, 3 s."""
        assert self.one(2.0) == pytest.approx((8 + 6 + 4 + 2 + 0) / (9 + 8.5 + 8 + 7.5 + 7))

    def test_a_late_first_token_delays_all_reading(self) -> None:
        """All tokens come at about 3 s: they are read at 3, 3.5, ... 5 s."""
        trace = Trace(np.zeros(1), np.array([10]), np.array([5]))
        cost = LinearCost(1e-6, 0.3, 0.0, 0.0)
        records = serve(trace, "vllm", cost, async_scheduling=False)
        found = quality_of_experience(records, expected_ttft_s=1.0, expected_tokens_per_s=2.0)[0]
        assert found == pytest.approx((2 + 1.5 + 1 + 0.5 + 0) / (4 + 3.5 + 3 + 2.5 + 2), rel=1e-4)
