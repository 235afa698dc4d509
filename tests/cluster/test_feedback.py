"""Whoever waits for an answer before asking again: users of a closed loop, turns of a conversation."""

from __future__ import annotations

from math import inf, nan

import numpy as np
import pytest

from simulator.cluster import simulate
from simulator.core.errors import ScenarioError
from simulator.cost.analytic import FixedCost
from simulator.metrics import analyse, assess
from simulator.metrics.token_times import gaps_by_request
from simulator.replica.records import RequestRecords, SimulationRecords, Status
from simulator.scheduling import EngineArgs
from tests.oracles.theory import Floats, Ints, finite_source_throughput
from traces.programs import map_reduce
from traces.trace import Trace

STEP_S = 0.01


def args(*, max_num_seqs: int = 64, async_scheduling: bool = False) -> EngineArgs:
    return EngineArgs(
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=4096,
        enable_prefix_caching=False,
        async_scheduling=async_scheduling,
    )


def some(n: int, *, arrival: Floats | None = None) -> Trace:
    rng = np.random.default_rng(0)
    return Trace(np.zeros(n) if arrival is None else arrival, rng.integers(1, 300, n), rng.integers(1, 60, n))


def sessions(turns: list[tuple[float, float, int]], **columns: object) -> Trace:
    """(arrival s, think time s, session) per row; turns in row order."""
    arrival, think, session = (list(column) for column in zip(*turns, strict=True))
    n = len(turns)
    lengths = {"prompt_tokens": np.full(n, 20), "output_tokens": np.full(n, 10)} | columns
    return Trace(np.array(arrival), think_time=np.array(think), session=np.array(session), **lengths)  # type: ignore[arg-type]


def most_in_flight(requests: RequestRecords) -> int:
    """Of two events at one instant the finish comes first."""
    events = [(time, -1) for time in requests.finish.tolist()] + [(time, 1) for time in requests.arrival.tolist()]
    return int(np.cumsum([change for _, change in sorted(events)]).max())


def tokens_by(records: SimulationRecords, time: float) -> Ints:
    """Tokens of each request that were made before ``time``."""
    found = analyse(records)
    gaps = gaps_by_request(found.ranges, found.clock, len(records.requests.arrival))
    rows = enumerate(records.requests.first_token.tolist())
    return np.array([np.sum(first + np.cumsum([0.0, *gaps[row]]) < time - 1e-6) for row, first in rows])


class TestClosedLoop:
    def test_programs_have_no_place_in_it(self) -> None:
        """Calls would be sent before those they wait for have ended."""
        trace = map_reduce(some(3), chunk_tokens=4, output_tokens=2)
        with pytest.raises(ScenarioError, match="wait for the answers"):
            simulate(trace, args(), FixedCost(STEP_S, 0.0), 4000, closed_loop_users=2)

    @pytest.mark.parametrize("async_scheduling", [False, True])
    @pytest.mark.parametrize("users", [1, 7, 64, 200])
    def test_so_many_users_are_never_more(self, users: int, async_scheduling: bool) -> None:
        trace = some(400, arrival=np.linspace(0, 1e5, 400))  # these times do not matter
        records = simulate(
            trace, args(async_scheduling=async_scheduling), FixedCost(STEP_S, 1e-5), 4000, closed_loop_users=users
        )
        requests = records.requests
        assert (requests.status == Status.FINISHED).all()
        assert most_in_flight(requests) == users
        # The first ones come at once, every other one when somebody is done: at that very instant, in trace order.
        assert (requests.arrival[:users] == 0).all()
        np.testing.assert_array_equal(requests.arrival[users:], np.sort(requests.finish)[: 400 - users])

    def test_more_users_than_requests(self) -> None:
        records = simulate(some(5), args(), FixedCost(STEP_S, 0.0), 4000, closed_loop_users=50)
        assert (records.requests.arrival == 0).all()

    def test_users_skip_what_would_be_turned_away(self) -> None:
        """The bench client's user whose request is refused sends the next one at once."""
        trace = Trace(np.zeros(4), np.array([10, 9000, 10, 10]), np.array([5, 5, 5, 5]))
        requests = simulate(
            trace, args(), FixedCost(STEP_S, 0.0), 4000, max_model_len=100, closed_loop_users=1
        ).requests
        assert requests.status.tolist() == [Status.FINISHED, Status.REJECTED, Status.FINISHED, Status.FINISHED]
        assert requests.arrival.tolist() == pytest.approx([0, 0.05, 0.05, 0.1])

    def test_throughput_grows_with_users_up_to_what_the_engine_can(self) -> None:
        """X <= min(N / R, X_max), and X_max is reached: ``max_num_seqs`` answers of 50 tokens per 50 steps.

        Below it, a request takes its 50 steps and nobody waits but for the step in flight."""
        trace = Trace(np.zeros(2000), np.full(2000, 3), np.full(2000, 50))
        limit = 16 / (50 * STEP_S)
        for users in (1, 4, 16, 24, 64):
            records = simulate(trace, args(max_num_seqs=16), FixedCost(STEP_S, 0.0), 4000, closed_loop_users=users)
            found = 2000 / records.end
            bound = min(users / (50 * STEP_S), limit)
            assert found <= bound * (1 + 1e-9)
            # A user misses the step that is planned as its answer comes; the last requests leave the engine half empty.
            assert found >= bound * (50 / 51) * 0.97

    def test_requests_that_never_got_their_turn_never_arrived(self) -> None:
        trace = some(500, arrival=np.linspace(0, 50, 500))
        records = simulate(trace, args(), FixedCost(STEP_S, 0.0), 4000, closed_loop_users=4, horizon_s=10.0)
        requests = records.requests
        came = requests.arrival < inf
        assert int(came.sum()) == int((requests.status == Status.FINISHED).sum()) + 4
        assert np.isnan(requests.scheduled[~came]).all()
        assert (requests.status[~came] == Status.IN_FLIGHT).all()
        assert (requests.replica == np.where(came, 0, -1)).all()
        assert assess(records).verdict == "stable"


class TestThinkTime:
    @pytest.mark.parametrize("async_scheduling", [False, True])
    def test_each_turn_comes_a_think_time_after_the_last_answer(self, async_scheduling: bool) -> None:
        rng = np.random.default_rng(2)
        n, people = 600, 40
        session, turn = np.tile(np.arange(people), n // people), np.repeat(np.arange(n // people), people)
        think = np.where(turn == 0, nan, rng.exponential(1.5, n))
        think[100:110] = 0.0
        trace = Trace(
            np.sort(rng.uniform(0, 5, n)), rng.integers(1, 300, n), rng.integers(1, 60, n),
            session=session, turn=turn, think_time=think,
        )  # fmt: skip
        engine = args(max_num_seqs=8, async_scheduling=async_scheduling)
        requests = simulate(trace, engine, FixedCost(STEP_S, 1e-5), 4000).requests
        assert (requests.status == Status.FINISHED).all()
        np.testing.assert_array_equal(requests.arrival[:people], trace.arrival[:people])
        later = np.arange(people, n)
        np.testing.assert_array_equal(requests.arrival[later], requests.finish[later - people] + think[later])
        assert (requests.scheduled >= requests.arrival).all()

    def test_turns_go_by_their_number_not_by_their_row(self) -> None:
        trace = sessions([(0.0, 1.0, 0), (0.0, nan, 0), (0.0, 2.0, 0)], turn=np.array([1, 0, 2]))
        requests = simulate(trace, args(), FixedCost(STEP_S, 0.0), 4000).requests
        assert requests.arrival.tolist() == pytest.approx([0.1 + 1, 0, 1.2 + 2])

    def test_a_turn_that_is_turned_away_does_not_end_the_conversation(self) -> None:
        prompt = np.array([20, 9000, 20, 9000, 20])
        turns = [(0.0, nan, 0), (0.0, 1.0, 0), (0.0, 2.0, 0), (5.0, nan, 1), (5.0, 3.0, 1)]
        requests = simulate(
            sessions(turns, prompt_tokens=prompt), args(), FixedCost(STEP_S, 0.0), 4000, max_model_len=100
        ).requests
        refused, served = Status.REJECTED, Status.FINISHED
        assert requests.status.tolist() == [served, refused, served, refused, served]
        assert requests.arrival.tolist() == pytest.approx([0, 0.1 + 1, 0.1 + 1 + 2, 5, 5 + 3])

    def test_a_turn_without_a_turn_before_it_waits_for_nobody(self) -> None:
        """Its own first turn, no conversation at all, or a conversation whose beginning was cut away."""
        turns = [(0.0, 7.0, 0), (1.0, nan, 0), (2.0, 7.0, -1), (3.0, 7.0, -1), (4.0, 7.0, 5)]
        requests = simulate(sessions(turns), args(), FixedCost(STEP_S, 0.0), 4000).requests
        assert requests.arrival.tolist() == [0, 1, 2, 3, 4]
        assert (requests.status == Status.FINISHED).all()

    def test_throughput_is_that_of_the_machine_repairman(self) -> None:
        """Exponential thinking, exponential service, one at a time: exact mean value analysis.

        Throughput is a count over a time whose parts vary by at most their mean: 4 standard errors are ``4 / sqrt(n)``.
        """
        people, turns = 8, 5000
        service, think = 0.5, 3.0
        n = people * turns
        rng = np.random.default_rng(3)
        thinks = rng.exponential(think, n)
        thinks[:people] = nan
        trace = Trace(
            np.zeros(n), np.ones(n, dtype=np.int64), rng.geometric(STEP_S / service, n),
            session=np.tile(np.arange(people), turns), turn=np.repeat(np.arange(turns), people), think_time=thinks,
        )  # fmt: skip
        for async_scheduling in (False, True):
            engine = args(max_num_seqs=1, async_scheduling=async_scheduling)
            records = simulate(trace, engine, FixedCost(STEP_S, 0.0), 4000)
            found = n / records.end
            near = 4 / n**0.5
            assert found == pytest.approx(finite_source_throughput(people, think, service), rel=near)
            for wrong in (0.95, 1.05):
                assert found != pytest.approx(finite_source_throughput(people, think, service * wrong), rel=near)
            assert found <= min(people / (think + service), 1 / service)  # asymptotic bounds


class TestPrograms:
    @pytest.mark.parametrize("async_scheduling", [False, True])
    def test_a_call_comes_when_the_last_it_waits_for_has_ended(self, async_scheduling: bool) -> None:
        rng = np.random.default_rng(5)
        documents = Trace(np.sort(rng.uniform(0, 20, 60)), rng.integers(1, 4000, 60), np.ones(60))
        trace = map_reduce(documents, chunk_tokens=300, output_tokens=20, gap_s=0.5)
        requests = simulate(
            trace, args(max_num_seqs=8, async_scheduling=async_scheduling), FixedCost(STEP_S, 1e-5), 4000
        ).requests
        assert (requests.status == Status.FINISHED).all()
        assert trace.session is not None
        for program in range(60):
            rows = np.flatnonzero(trace.session == program)
            maps, reduce = rows[:-1], rows[-1]
            np.testing.assert_array_equal(requests.arrival[maps], documents.arrival[program])
            assert requests.arrival[reduce] == requests.finish[maps].max() + 0.5

    def test_a_call_that_is_turned_away_holds_nobody_up(self) -> None:
        trace = map_reduce(Trace(np.zeros(1), np.array([250]), np.ones(1)), chunk_tokens=100, output_tokens=10)
        requests = simulate(trace, args(), FixedCost(STEP_S, 0.0), 4000, max_model_len=70).requests
        assert requests.status.tolist() == [Status.REJECTED, Status.REJECTED, Status.FINISHED, Status.FINISHED]
        assert requests.arrival[3] == requests.finish[2]

    def test_calls_of_turns_that_are_not_there_come_by_themselves(self) -> None:
        trace = map_reduce(Trace(np.array([3.0]), np.array([250]), np.ones(1)), chunk_tokens=100, output_tokens=10)
        assert simulate(trace.select(np.array([3])), args(), FixedCost(STEP_S, 0.0), 4000).requests.arrival == 3.0


class TestHorizon:
    @pytest.mark.parametrize("stages", [1, 2])
    @pytest.mark.parametrize("async_scheduling", [False, True])
    @pytest.mark.parametrize("horizon_s", [0.0501, 1.234, 7.0, 1e6])
    def test_nothing_after_it_is_known_and_nothing_before_it_differs(
        self, horizon_s: float, async_scheduling: bool, stages: int
    ) -> None:
        def serve(until: float | None) -> SimulationRecords:
            trace = some(300, arrival=np.linspace(0, 12, 300))
            engine = EngineArgs(
                max_num_seqs=16,
                max_num_batched_tokens=256,
                enable_prefix_caching=False,
                async_scheduling=async_scheduling,
                pipeline_parallel_size=stages,
            )
            return simulate(trace, engine, FixedCost(STEP_S, 1e-5), 300, horizon_s=until)

        cut, whole = serve(horizon_s), serve(None)
        assert cut.end == horizon_s
        for name in ("scheduled", "first_token", "finish"):
            mine, all_times = getattr(cut.requests, name), getattr(whole.requests, name)
            np.testing.assert_array_equal(mine, np.where(all_times < horizon_s, all_times, nan), err_msg=name)
        finished = cut.requests.status == Status.FINISHED
        np.testing.assert_array_equal(finished, whole.requests.finish < horizon_s)
        assert (cut.requests.status[~finished] == Status.IN_FLIGHT).all()
        # Tokens made by then: all but those of the steps in flight.
        before, after = (tokens_by(records, horizon_s) for records in (cut, whole))
        np.testing.assert_array_equal(before, after)


class TestTies:
    @pytest.mark.parametrize("async_scheduling", [False, True])
    def test_requests_of_one_instant_share_their_first_step(self, async_scheduling: bool) -> None:
        arrival = np.repeat([0.0, 3.0, 3.3], [5, 7, 4])  # the last ones come within a step of the others
        trace = Trace(arrival, np.full(16, 10), np.full(16, 100))
        records = simulate(trace, args(async_scheduling=async_scheduling), FixedCost(0.04, 0.0), 4000)
        steps = records.steps
        assert steps.num_prefills[steps.num_prefills > 0].tolist() == [5, 7, 4]
        for at in (0.0, 3.0, 3.3):
            assert len(set(records.requests.scheduled[arrival == at].tolist())) == 1

    def test_an_arrival_at_the_very_end_of_a_step_joins_the_next(self) -> None:
        """Arrivals of an instant come before its scheduling."""
        trace = Trace(np.array([0.0, 0.25]), np.array([10, 10]), np.array([8, 8]))  # 0.25 s: binary, exact
        for step, scheduled in ((0.125, 0.25), (0.25, 0.25), (0.2, 0.4)):
            requests = simulate(trace, args(), FixedCost(step, 0.0), 4000).requests
            assert requests.scheduled[1] == pytest.approx(scheduled)

    def test_so_does_one_that_waited_for_an_answer(self) -> None:
        """As above, where the engine has events of its own: a turn after 0.125 s of thinking meets a step's end."""
        turns = [(0.0, nan, 0), (0.0, 0.125, 0), (0.0, nan, 1), (0.0, nan, 2)]
        trace = sessions(turns, output_tokens=np.array([1, 2, 2, 9]))  # the third one ends at 0.25 s too
        requests = simulate(trace, args(), FixedCost(0.125, 0.0), 4000).requests
        assert requests.arrival[1] == 0.25
        assert requests.scheduled[1] == 0.25


class TestRejection:
    def test_what_can_never_be_served_is_turned_away_without_a_trace(self) -> None:
        """Too long for the model (row 1), or for the whole KV cache of 63 blocks (row 3; row 2 just fits)."""
        trace = Trace(np.arange(4.0), np.array([10, 2001, 63 * 16 - 9, 63 * 16 - 9]), np.array([5, 1, 10, 11]))
        requests = simulate(trace, args(), FixedCost(STEP_S, 0.0), 64, max_model_len=2000).requests
        served, refused = Status.FINISHED, Status.REJECTED
        assert requests.status.tolist() == [served, refused, served, refused]
        for name in ("scheduled", "first_token", "finish"):
            assert np.isnan(getattr(requests, name)).tolist() == [False, True, False, True]
        assert requests.replica.tolist() == [0, -1, 0, -1]
        assert requests.arrival.tolist() == [0, 1, 2, 3]
