"""Who is turned away, who waits at the router, and that nobody is lost on the way in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.cluster.admission import FULL, MISS, QUEUE, RATE, TIMEOUT, TOKENS, Admission
from simulator.cluster.clock import TRANSFER
from simulator.cluster.plan import ClusterPlan, Group, RouterPlan
from simulator.cluster.simulation import Simulation
from simulator.core.errors import ScenarioError
from simulator.cost.analytic import FixedCost, LinearCost
from simulator.metrics import summarize
from simulator.replica.records import SimulationRecords, Status
from simulator.scheduling import EngineArgs
from tests.cluster.test_many_replicas import same
from tests.cluster.test_many_replicas import trace as conversations
from tests.scheduling.invariants import clock_never_runs_back, ends_once, nobody_is_left
from traces.trace import Labels, Trace

ARGS = EngineArgs(max_num_seqs=8, max_num_batched_tokens=512, enable_prefix_caching=False, async_scheduling=True)
COST = LinearCost(0.005, 2e-5, 1e-4, 1e-8, 1e-9)
SECOND = FixedCost(0.01, 0.0)  # 100 tokens a second


def evenly(n: int, per_s: float, **columns: Any) -> Trace:
    """Requests of 20 prompt and 100 output tokens."""
    plain = {"arrival": np.arange(n) / per_s, "prompt_tokens": np.full(n, 20), "output_tokens": np.full(n, 100)}
    return Trace(**(plain | columns))


def run(
    trace: Trace,
    admission: Admission,
    *,
    count: int = 2,
    router: str = "least-requests",
    cost: Any = SECOND,
    args: EngineArgs = ARGS,
    **options: Any,
) -> tuple[SimulationRecords, Simulation]:
    plan = ClusterPlan((Group(args, cost, 4000, count=count),), RouterPlan(router), admission=admission)
    built = Simulation(trace, plan, **options)
    records = built.run()
    ends_once(records, trace, drained="horizon_s" not in options)
    for replica in built.replicas:
        nobody_is_left(replica.engine.state)
    return records, built


def accepted(records: SimulationRecords) -> list[int]:
    return np.flatnonzero(records.requests.status == Status.FINISHED).tolist()


def most_in_flight(records: SimulationRecords, replica: int) -> int:
    """Requests routed and not finished, at most; those that leave at an instant leave first. Requests that waited at
    the router have no record of when they left it, so admission to the batch stands in for it."""
    requests = records.requests
    mine = requests.replica == replica
    events = [(t, -1) for t in requests.finish[mine].tolist()] + [(t, 1) for t in requests.scheduled[mine].tolist()]
    return int(np.cumsum([change for _, change in sorted(events)]).max())


class TestRates:
    def test_a_bucket_lets_in_its_burst_and_then_its_rate(self) -> None:
        records, _ = run(evenly(40, 16), Admission(requests_per_s=4, burst_requests=3))
        # Level 3 at the start and a quarter more at each later arrival: 3, 2.25, 1.5, 0.75, 1, 0.25, ...
        assert accepted(records) == [0, 1, 2, *range(4, 40, 4)]
        assert records.rejections == {RATE: 28}

    def test_tokens_are_those_of_the_prompt(self) -> None:
        prompt = np.where(np.arange(20) % 2, 90, 10)
        trace = evenly(20, 1, prompt_tokens=prompt)
        records, _ = run(trace, Admission(tokens_per_s=10, burst_tokens=20))
        assert accepted(records) == list(range(0, 20, 2))  # 90 tokens never fit a bucket of 20
        assert records.rejections == {TOKENS: 10}

    def test_tenants_do_not_take_from_each_other(self) -> None:
        tenant = Labels(np.where(np.arange(40) % 4 == 0, 1, 0).astype(np.int32), ("loud", "quiet"))
        trace = evenly(40, 8, tenant=tenant)
        together, _ = run(trace, Admission(requests_per_s=2, burst_requests=1))
        apart, _ = run(trace, Admission(requests_per_s=2, burst_requests=1, per_tenant=True))
        quiet = set(range(0, 40, 4))
        assert quiet <= set(accepted(apart))
        assert len(accepted(together)) < len(accepted(apart)) < 40

    def test_a_rule_without_its_column_is_an_error(self) -> None:
        for rule, words in (
            (Admission(requests_per_s=1, per_tenant=True), "tenant column"),
            (Admission(order="deadline"), "TTFT limit"),
            (Admission(reject_predicted_miss=True, class_ttft_s={"chat": 1.0}), "slo_class column"),
        ):
            with pytest.raises(ScenarioError, match=words):
                run(evenly(3, 1), rule)


class TestLimits:
    @pytest.mark.parametrize("count", [1, 3])
    @pytest.mark.parametrize("when_full", ["reject", "queue"])
    def test_no_replica_has_more_than_the_limit(self, when_full: Any, count: int) -> None:
        records, _ = run(evenly(60, 20), Admission(max_in_flight=2, when_full=when_full), count=count)
        assert max(most_in_flight(records, replica) for replica in range(count)) == 2
        if when_full == "reject":
            assert set(records.rejections) == {FULL}
            assert len(accepted(records)) == 60 - records.rejections[FULL] < 60
        else:
            assert len(accepted(records)) == 60
            # Nobody idles while somebody waits: 2 x count at a time, a second each and a step or two between them.
            assert records.end == pytest.approx(60 / (2 * count), rel=0.08)

    def leaves(self, order: Any, n: int = 12, **more: Any) -> list[int]:
        """Order in which requests that came together are served, one at a time."""
        columns = {
            "priority": np.arange(n)[::-1] // 2,
            "slo_class": Labels((np.arange(n) % 2).astype(np.int32), ("batch", "chat")),
        }
        rules = Admission(max_in_flight=1, when_full="queue", order=order, **more)
        records, _ = run(evenly(n, 1000, **columns), rules, count=1)
        return np.argsort(records.requests.scheduled).tolist()

    def test_the_queue_keeps_its_order(self) -> None:
        assert self.leaves("fifo") == list(range(12))
        # The first is served at once; then the smallest priority, which the last ones have.
        assert self.leaves("priority") == [0, 10, 11, 8, 9, 6, 7, 4, 5, 2, 3, 1]
        assert self.leaves("deadline", class_ttft_s={"chat": 1.0, "batch": 9.0}) == [
            0,
            *range(1, 12, 2),
            *range(2, 12, 2),
        ]

    def test_a_full_queue_and_a_long_wait_end_it(self) -> None:
        rules = Admission(max_in_flight=1, when_full="queue", max_queue=3)
        records, _ = run(evenly(10, 1000), rules, count=1)
        assert accepted(records) == [0, 1, 2, 3]
        assert records.rejections == {QUEUE: 6}
        rules = Admission(max_in_flight=1, when_full="queue", queue_timeout_s=2.5)
        records, _ = run(evenly(10, 1000), rules, count=1)
        assert accepted(records) == [0, 1, 2]  # the third begins after 2 s, the fourth would after 3
        assert records.rejections == {TIMEOUT: 7}

    def test_what_cannot_be_in_time_is_turned_away_and_the_others_are(self) -> None:
        """At four times what one replica can prefill."""
        n = 400
        trace = Trace(np.arange(n) / 160.0, np.full(n, 500), np.full(n, 2))
        args = EngineArgs(
            max_num_seqs=64, max_num_batched_tokens=512, enable_prefix_caching=False, async_scheduling=True
        )
        cost = LinearCost(0.005, 4e-5, 1e-4, 1e-8, 0.0)
        limit = 0.5
        rules = Admission(reject_predicted_miss=True, ttft_s=limit)
        records, built = run(trace, rules, count=1, cost=cost, args=args)
        everybody, _ = run(trace, Admission(max_in_flight=10**6), count=1, cost=cost, args=args)
        assert set(records.rejections) == {MISS}
        ttft = (records.requests.first_token - records.requests.arrival)[accepted(records)]
        # It fills what the limit leaves; the step in flight, 20 ms, is what the prediction does not see.
        assert 0.9 * limit < np.median(ttft) <= limit + 0.02
        assert np.max(ttft) <= 1.1 * limit
        late = everybody.requests.first_token - everybody.requests.arrival
        assert np.mean(late <= limit) < 0.5
        # Nearly as much is served as an engine that is never idle could.
        assert len(accepted(records)) > 0.9 * records.end / cost.mixed(0, 0, 0, [(500, 0)], 1)
        assert built.dispatcher is not None

    def test_the_summary_says_why(self) -> None:
        records, _ = run(evenly(20, 100), Admission(max_in_flight=1))
        found = summarize(records)
        assert found["rejections_run"] == {FULL: found["requests"]["rejected"]}
        assert "rejections_run" not in summarize(run(evenly(3, 1), Admission())[0])


class TestWhoWaitsForAnAnswer:
    def test_a_rejected_turn_is_followed_by_the_next(self) -> None:
        """Two conversations of three turns; the second turn of the later one comes when the bucket is empty."""
        trace = Trace(
            np.zeros(6),
            np.full(6, 20),
            np.full(6, 100),
            session=np.array([0, 0, 0, 1, 1, 1]),
            turn=np.array([0, 1, 2, 0, 1, 2]),
            think_time=np.array([np.nan, 1.0, 1.0, np.nan, 1.5, 1.5]),
        )
        records, _ = run(trace, Admission(requests_per_s=0.5, burst_requests=2))
        assert records.requests.status.tolist().count(Status.REJECTED) == records.rejections[RATE] > 0
        assert np.isfinite(records.requests.arrival).all()  # everybody came
        rejected = np.flatnonzero(records.requests.status == Status.REJECTED)
        for row in rejected[rejected % 3 < 2].tolist():
            assert trace.think_time is not None
            assert records.requests.arrival[row + 1] == records.requests.arrival[row] + trace.think_time[row + 1]

    def test_users_of_a_closed_loop_try_the_next_one(self) -> None:
        records, _ = run(evenly(30, 1), Admission(max_in_flight=1), count=2, closed_loop_users=3)
        assert records.requests.status.tolist().count(Status.REJECTED) == records.rejections[FULL] > 0
        assert len(accepted(records)) + records.rejections[FULL] == 30


class TestClosed:
    def serve(
        self, at: Sequence[tuple[float, int, bool]], *, router: str = "least-requests", **options: Any
    ) -> SimulationRecords:
        """Replicas close and open at given times: (s, replica, open)."""
        plan = ClusterPlan(
            (Group(ARGS, SECOND, 4000, count=2),), RouterPlan(router), admission=options.pop("admission", Admission())
        )
        built = Simulation(evenly(20, 10), plan, watched=True, **options)
        dispatcher = built.dispatcher
        assert dispatcher is not None
        for time, replica, is_open in at:

            def change(_: Any, time: float = time, replica: int = replica, is_open: bool = is_open) -> None:
                dispatcher._candidates.set_open(replica, is_open)
                if is_open:
                    dispatcher.flush(time)

            built.clock.at(time, TRANSFER, change)
        return built.run()

    def test_requests_wait_until_a_replica_opens(self) -> None:
        records = self.serve([(0.45, 0, False), (0.45, 1, False), (1.25, 1, True)])
        assert (records.requests.status == Status.FINISHED).all()
        waited = np.flatnonzero((records.requests.arrival > 0.45) & (records.requests.arrival < 1.25))
        assert len(waited) == 8
        assert (records.requests.scheduled[waited] >= 1.25).all()
        assert (records.requests.replica[waited] == 1).all()
        assert (np.diff(records.requests.scheduled[waited]) >= 0).all()

    def test_or_until_their_patience_ends(self) -> None:
        rules = Admission(queue_timeout_s=0.5)
        records = self.serve([(0.45, 0, False), (0.45, 1, False), (1.25, 1, True)], admission=rules)
        gone = np.flatnonzero(records.requests.status == Status.REJECTED)
        assert records.requests.arrival[gone].tolist() == [0.5, 0.6, 0.7]  # 0.8 and later are served at 1.25
        assert records.rejections == {TIMEOUT: 3}

    def test_those_who_wait_in_vain_have_failed(self) -> None:
        records = self.serve([(0.45, 0, False), (0.45, 1, False)])
        assert records.requests.status.tolist() == [Status.FINISHED] * 5 + [Status.FAILED] * 15
        stopped = self.serve([(0.45, 0, False), (0.45, 1, False)], horizon_s=5.0)
        assert stopped.requests.status.tolist() == [Status.FINISHED] * 5 + [Status.IN_FLIGHT] * 15


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    router=st.sampled_from(["round-robin", "least-requests", "prefix-aware", "predicted-latency", "length-predicted"]),
    count=st.integers(1, 4),
    rules=st.builds(
        Admission,
        requests_per_s=st.sampled_from([None, 30.0]),
        tokens_per_s=st.sampled_from([None, 20_000.0]),
        max_in_flight=st.sampled_from([None, 3, 12]),
        when_full=st.sampled_from(["reject", "queue"]),
        max_queue=st.sampled_from([None, 5]),
        order=st.sampled_from(["fifo", "deadline", "priority"]),
        ttft_s=st.just(0.4),
        reject_predicted_miss=st.booleans(),
        queue_timeout_s=st.sampled_from([None, 0.3]),
    ),
    users=st.sampled_from([None, None, 9]),
)
def test_every_request_ends_once_under_any_rules_and_spans_are_steps(
    seed: int, router: str, count: int, rules: Admission, users: int | None
) -> None:
    requests = conversations(80, 100.0, seed=seed)
    args = EngineArgs(
        max_num_seqs=16, max_num_batched_tokens=512, enable_prefix_caching=True, async_scheduling=bool(seed % 2)
    )
    runs = []
    for step_mode in (False, True):
        options = {"closed_loop_users": users, "step_mode": step_mode, "seed": seed}
        records, _ = run(requests, rules, count=count, router=router, cost=COST, args=args, **options)
        clock_never_runs_back(records)
        assert sum(records.rejections.values()) == np.sum(records.requests.status == Status.REJECTED)
        runs.append(records)
    same(*runs)
    assert runs[0].rejections == runs[1].rejections
