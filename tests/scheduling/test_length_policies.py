"""Order and memory by predicted lengths: what it gains where there is a queue, and that it gains nothing elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import kendalltau

from simulator.replica.records import SimulationRecords
from simulator.scheduling.prediction import LengthPredictor, Prediction
from simulator.scheduling.request import Request
from tests.scheduling.test_policies import MEMORY_BOUND, at_once, makespan, serve
from traces.trace import Trace

MEDIAN, SPREAD = 100.0, 1.0
RANK: dict[str, object] = {"predictor": "rank", "median_tokens": MEDIAN, "spread": SPREAD}
SWAP: dict[str, object] = {"preemption": "swap", "kv_bytes_per_token": 131072}


def outputs(n: int, seed: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    normal = np.random.default_rng(seed).standard_normal(n)
    return np.clip(MEDIAN * np.exp(SPREAD * normal), 1, 1500).astype(np.int64)


def load(rho: float, n: int = 500, prompt: int = 100) -> Trace:
    """Poisson arrivals at a share of what four sequences at a time can serve."""
    output = outputs(n, seed=1)
    capacity = n / makespan(serve(at_once(np.full(n, prompt), output), "vllm", max_num_seqs=4))
    gaps = np.random.default_rng(2).exponential(1 / (rho * capacity), n)
    return Trace(np.cumsum(gaps), np.full(n, prompt), output)


def four(trace: Trace, policy: str, **options: object) -> SimulationRecords:
    return serve(trace, policy, max_num_seqs=4, async_scheduling=False, options=options)


def per_token(records: SimulationRecords) -> float:
    """Mean normalized latency, s/token."""
    requests = records.requests
    return float(((requests.finish - requests.arrival) / requests.output_tokens).mean())


@pytest.fixture(scope="module")
def busy() -> Trace:
    return load(0.9)


@pytest.fixture(scope="module")
def quiet() -> Trace:
    return load(0.2)


class TestPredictors:
    def predictions(self, **options: object) -> tuple[np.ndarray[tuple[int], np.dtype[np.float64]], ...]:
        predict = LengthPredictor(Prediction(**options))  # type: ignore[arg-type]
        true = outputs(4000, seed=3)
        given = [predict(Request(row, 0.0, 10, int(tokens))) for row, tokens in enumerate(true)]
        return true.astype(np.float64), np.array(given)

    def test_an_oracle_knows(self) -> None:
        true, given = self.predictions()
        np.testing.assert_array_equal(true, given)

    def test_log_normal_errors_have_their_sigma(self) -> None:
        true, given = self.predictions(predictor="log-normal", sigma=0.4)
        error = np.log(given[true > 20] / true[true > 20])  # no prediction is below one token
        assert error.std() == pytest.approx(0.4, rel=0.03)
        assert error.mean() == pytest.approx(0.0, abs=0.02)

    @pytest.mark.parametrize("tau", [0.0, 0.3, 0.6, 1.0])
    def test_ranks_have_their_kendall_tau(self, tau: float) -> None:
        true, given = self.predictions(**RANK, tau=tau)
        assert kendalltau(true, given).statistic == pytest.approx(tau, abs=3 * 0.0105)  # its standard error of 4,000

    @pytest.mark.parametrize("accuracy", [0.1, 0.7, 1.0])
    def test_bins_are_right_as_often_as_they_say(self, accuracy: float) -> None:
        true, given = self.predictions(predictor="bins", bin_tokens=150, num_bins=10, accuracy=accuracy)
        right = np.minimum(np.ceil(true / 150), 10) * 150
        assert (right == given).mean() == pytest.approx(accuracy, abs=0.02)
        assert set(np.unique(given / 150)) <= set(range(1, 11))

    def test_a_prediction_belongs_to_its_row_and_seed(self) -> None:
        _, first = self.predictions(**RANK, tau=0.5)
        _, again = self.predictions(**RANK, tau=0.5)
        _, other = self.predictions(**RANK, tau=0.5, seed=1)
        np.testing.assert_array_equal(first, again)
        assert kendalltau(first, other).statistic < 0.5


class TestShortestFirst:
    @pytest.mark.parametrize("policy", ["sjf", "srpt", "ltr"])
    def test_it_pays_in_a_queue_and_not_without_one(self, policy: str, busy: Trace, quiet: Trace) -> None:
        options: dict[str, object] = {"predictor": "oracle"}
        gain = per_token(four(busy, "vllm")) / per_token(four(busy, policy, **options))
        idle = per_token(four(quiet, "vllm")) / per_token(four(quiet, policy, **options))
        assert gain > 1.5
        assert idle == pytest.approx(1.0, abs=0.06)

    def test_the_better_the_ranking_the_better_the_order(self, busy: Trace) -> None:
        latency = [per_token(four(busy, "sjf", **RANK, tau=tau)) for tau in (0.0, 0.3, 0.6, 1.0)]
        assert latency == sorted(latency, reverse=True)
        assert latency[0] == pytest.approx(per_token(four(busy, "vllm")), rel=0.25)  # an order is as good as another

    def test_without_a_queue_it_is_vllm_to_the_bit(self, quiet: Trace) -> None:
        ours = serve(quiet, "sjf")
        np.testing.assert_array_equal(ours.requests.finish, serve(quiet, "vllm").requests.finish)

    def test_preempting_beats_waiting_for_the_long_ones(self) -> None:
        """Four long requests hold every sequence when short ones come."""
        trace = Trace(np.array([0.0] * 4 + [0.5] * 8), np.full(12, 100), np.array([1000] * 4 + [10] * 8))
        waits, gives_way = (four(trace, policy).requests for policy in ("sjf", "srpt"))
        assert gives_way.preemptions[:4].sum() > 0 == waits.preemptions.sum()
        assert (gives_way.finish[4:] - 0.5).max() < 0.1 * (waits.finish[4:] - 0.5).min()

    @pytest.mark.parametrize("policy", ["srpt", "ltr"])
    def test_kv_stays_on_the_gpu_until_others_need_its_room(self, policy: str) -> None:
        """As before, with memory for all twelve and for half of that: coming back costs nothing, or the KV again."""
        trace = Trace(np.array([0.0] * 4 + [0.5] * 8), np.full(12, 100), np.array([1000] * 4 + [10] * 8))
        options: dict[str, object] = (
            {"predictor": "oracle", "preempt_until": 1.0} if policy == "srpt" else {"predictor": "oracle"}
        )
        roomy, scarce = (serve(trace, policy, max_num_seqs=4, kv_tokens=n, options=options) for n in (16384, 1200))
        assert roomy.requests.preemptions[:4].sum() > 0 == roomy.tokens_recomputed
        assert scarce.tokens_recomputed > 0

    def test_who_is_nearly_done_stays(self) -> None:
        trace = Trace(np.array([0.0] * 4 + [6.0] * 4), np.full(8, 100), np.array([1000] * 4 + [10] * 4))
        stays = four(trace, "srpt", preempt_until=0.5).requests
        goes = four(trace, "srpt", preempt_until=1.0).requests
        assert stays.preemptions.sum() == 0 < goes.preemptions.sum()

    def test_the_starving_get_their_turn(self) -> None:
        """A long request beside a stream of short ones that fills the engine."""
        n = 400
        trace = Trace(np.r_[0.0, np.arange(n) * 0.08], np.full(n + 1, 100), np.r_[300, np.full(n, 14)])
        starves = serve(trace, "ltr", max_num_seqs=1, options={"predictor": "oracle", "starvation_steps": 0}).requests
        served = serve(
            trace, "ltr", max_num_seqs=1,
            options={"predictor": "oracle", "starvation_steps": 100, "quantum_steps": 400},
        ).requests  # fmt: skip
        assert served.first_token[0] < 0.1 * starves.first_token[0]


class TestS3:
    def runs(self, outputs: object, policy: str, **options: object) -> float:
        trace = at_once(np.full(len(outputs), 30), outputs)  # type: ignore[arg-type]
        engine = {} if policy != "vllm" else {"enable_prefix_caching": False, "async_scheduling": False}
        return makespan(serve(trace, policy, MEMORY_BOUND, kv_tokens=16384, options=options, **engine))

    def test_reserving_the_prediction_is_worth_several_times_the_longest(self) -> None:
        output = np.minimum(outputs(400, seed=4), 1000)
        longest, s3 = self.runs(output, "orca"), self.runs(output, "s3")
        assert 3 < longest / s3 < 8
        assert self.runs(output, "vllm") / s3 < 1.1  # and nothing next to paging

    def test_no_gain_where_every_request_is_the_longest(self) -> None:
        output = np.full(40, 2000)
        assert self.runs(output, "orca") == pytest.approx(self.runs(output, "s3"), rel=0.01)

    def test_what_outgrows_its_slots_is_computed_again_in_twice_as_many(self) -> None:
        """A predictor whose longest bin ends at 20 tokens: 30 + 20 tokens are reserved, then 64 blocks' worth twice."""
        trace = at_once([30], [200])
        options = {"predictor": "bins", "bin_tokens": 10, "num_bins": 2, "accuracy": 1.0}
        records = serve(trace, "s3", MEMORY_BOUND, block_size=1, options=options)
        assert records.requests.preemptions[0] == 3  # at 49, 98 and 196 tokens of 229
        assert records.tokens_recomputed == 49 + 98 + 196


class TestResponseLength:
    def runs(self, output: object, policy: str, **options: object) -> SimulationRecords:
        trace = at_once(np.full(len(output), 30), output)  # type: ignore[arg-type]
        return serve(trace, policy, MEMORY_BOUND, max_num_seqs=16, options=options)

    def test_batches_of_equal_length_waste_no_slots(self) -> None:
        output = np.minimum(outputs(320, seed=5), 900)
        static, perceived = self.runs(output, "static"), self.runs(output, "response-length")
        known, guessed = (
            self.runs(output, "response-length", **o) for o in ({"predictor": "oracle"}, {**RANK, "tau": 0.0})
        )
        assert 1.5 < makespan(static) / makespan(perceived) < 3
        assert makespan(known) < makespan(perceived) < makespan(guessed) < makespan(static) * 1.1
        assert perceived.requests.preemptions.sum() > 0 == known.requests.preemptions.sum()

    def test_nothing_to_gain_where_outputs_are_equal_or_slots_never_padded(self) -> None:
        equal = np.full(160, 100)
        options = {"predictor": "oracle"}
        assert makespan(self.runs(equal, "static")) == pytest.approx(
            makespan(self.runs(equal, "response-length", **options))
        )
        output = np.minimum(outputs(320, seed=5), 900)
        assert makespan(self.runs(output, "orca")) < makespan(self.runs(output, "response-length", **options)) * 1.1


class TestFastServe:
    def test_nobody_has_to_know_who_is_short(self, busy: Trace, quiet: Trace) -> None:
        """Better than first come, first served; shortest remaining first knows the lengths and is better still."""
        fcfs, mlfq, srpt = (
            per_token(four(busy, p, **o)) for p, o in (("vllm", {}), ("fastserve", SWAP), ("srpt", SWAP))
        )
        assert fcfs / mlfq > 1.5
        assert srpt < mlfq * 1.05
        assert per_token(four(quiet, "fastserve", **SWAP)) == pytest.approx(per_token(four(quiet, "vllm")), rel=0.06)

    def test_long_prompts_skip_the_first_queues(self) -> None:
        """Joining the first queue, a long prompt holds up those who are about to end."""
        rng = np.random.default_rng(6)
        trace = Trace(
            np.cumsum(rng.exponential(0.1, 300)),
            rng.choice([50, 2000], 300, p=[0.8, 0.2]),
            rng.integers(5, 40, 300),
        )
        options = {**SWAP, "starvation_s": 0.0, "seconds_per_prompt_token": 5e-5, "quantum_s": 0.02}
        skip, naive = (
            serve(trace, "fastserve", max_num_seqs=2, max_model_len=4096, options={**options, "skip_join": skips})
            for skips in (True, False)
        )
        assert per_token(skip) < per_token(naive)

    def small(self, **options: object) -> SimulationRecords:
        """KV for two or three requests, one waiting for each that runs."""
        options = {**SWAP, "starvation_s": 0.0, **options}
        return serve(load(0.9, n=120), "fastserve", kv_tokens=2048, max_num_seqs=4, options=options)

    def test_copies_beside_the_computation_cost_less(self) -> None:
        ahead, stops = (self.small(pcie_gb_s=4.0, proactive=proactive) for proactive in (True, False))
        assert ahead.requests.preemptions.sum() > 0
        assert per_token(ahead) < per_token(stops)

    def test_a_link_that_cannot_keep_up_holds_the_engine_all_the_same(self) -> None:
        slow, fast = (makespan(self.small(pcie_gb_s=gb_s)) for gb_s in (0.05, 25.0))
        assert slow > 1.1 * fast

    def test_with_room_for_everybody_nothing_is_copied(self) -> None:
        trace = load(0.9, n=120)
        slow, fast = (
            serve(trace, "fastserve", max_num_seqs=4, options={**SWAP, "pcie_gb_s": gb_s}) for gb_s in (0.001, 25.0)
        )
        assert fast.requests.preemptions.sum() > 0
        np.testing.assert_array_equal(slow.requests.finish, fast.requests.finish)
