"""Each policy shows what its paper is known for."""

from __future__ import annotations

import numpy as np
import pytest

from simulator.cluster.plan import single
from simulator.cluster.simulation import Simulation
from simulator.cost.analytic import FixedCost, LinearCost
from simulator.cost.interface import StepCost
from simulator.metrics import analyse
from simulator.metrics.token_times import pooled_gaps
from simulator.replica.records import SimulationRecords
from simulator.scheduling import EngineArgs
from tests.scheduling.invariants import check
from traces.prefix import from_rows
from traces.trace import Trace

# About an 8B model on an 80 GB GPU: 6 ms to read the weights, 50 us of compute per prompt token.
GPU = LinearCost(base=0.006, per_prefill_token=5e-5, per_decode=2e-5, per_context_token=4e-8)
MEMORY_BOUND = LinearCost(base=0.02, per_prefill_token=1e-6, per_decode=1e-5, per_context_token=0.0)


def serve(
    trace: Trace, policy: str, cost: StepCost = GPU, kv_tokens: int = 1 << 17, **arguments: object
) -> SimulationRecords:
    args = {"max_model_len": 2048, "max_num_seqs": 256, "max_num_batched_tokens": 2048, **arguments}
    step_mode = bool(args.pop("step_mode", False))
    engine = EngineArgs(policy=policy, **args)  # type: ignore[arg-type]
    run = Simulation(trace, single(engine, cost, kv_tokens // engine.block_size + 1), step_mode=step_mode)
    records = run.run()
    check(records, trace, run.replicas[0].engine.state)
    assert np.isfinite(records.requests.finish).all()
    return records


def makespan(records: SimulationRecords) -> float:
    return float(records.requests.finish.max() - records.requests.arrival.min())


def ttft(records: SimulationRecords) -> float:
    return float((records.requests.first_token - records.requests.arrival).mean())


def gaps(records: SimulationRecords) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Every inter-token gap, s."""
    found = analyse(records)
    values, counts = pooled_gaps(found.ranges, found.clock, np.ones(len(records.requests.arrival), dtype=bool))
    return np.repeat(values, counts)


def at_once(prompt: object, output: object) -> Trace:
    return Trace(np.zeros(len(prompt)), np.asarray(prompt), np.asarray(output))  # type: ignore[arg-type]


class TestOrcaAgainstStatic:
    def outputs(self, values: np.ndarray[tuple[int], np.dtype[np.int64]], policy: str) -> float:
        return makespan(serve(at_once(np.full(len(values), 64), values), policy, MEMORY_BOUND, max_num_seqs=16))

    def test_orca_wins_where_outputs_differ(self) -> None:
        outputs = np.random.default_rng(0).integers(1, 129, 320)
        static, orca = self.outputs(outputs, "static"), self.outputs(outputs, "orca")
        # A batch of 16 lasts for the longest of 16 outputs: 128 x 16/17 on average, against a mean of 64.5.
        assert static / orca == pytest.approx(128 * 16 / 17 / 64.5, rel=0.1)

    def test_the_gain_vanishes_when_all_outputs_are_equal(self) -> None:
        outputs = np.full(320, 64)
        assert self.outputs(outputs, "static") == pytest.approx(self.outputs(outputs, "orca"), rel=1e-9)

    def test_a_static_batch_leaves_together_and_nobody_joins_it(self) -> None:
        trace = Trace(np.array([0.0, 0.0, 0.05]), np.array([8, 8, 8]), np.array([10, 40, 1]))
        requests = serve(trace, "static", FixedCost(0.01, 0.0), max_num_seqs=16).requests
        assert requests.finish[0] == requests.finish[1] == pytest.approx(0.4)
        assert requests.first_token[0] == pytest.approx(0.01)
        assert requests.scheduled[2] == requests.finish[0]


class TestMemory:
    def test_paging_admits_several_times_the_requests_of_contiguous_reservations(self) -> None:
        rng = np.random.default_rng(1)
        trace = at_once(rng.integers(50, 150, 300), rng.integers(50, 150, 300))
        runs = {
            name: serve(trace, "orca", kv_tokens=16384, options={"reservation": name})
            for name in ("max", "pow2", "oracle")
        }
        runs["paged"] = serve(trace, "vllm", kv_tokens=16384)
        most = {name: int(records.steps.num_running.max()) for name, records in runs.items()}
        assert most["max"] == 16384 // 2048
        assert most["max"] * 5 < most["pow2"] < most["oracle"] < most["paged"]
        spans = {name: makespan(records) for name, records in runs.items()}
        assert spans["max"] > 3 * spans["pow2"] > 3 * spans["oracle"]

    def test_swapping_saves_long_contexts_and_recomputing_short_ones(self) -> None:
        def both(trace: Trace, kv_tokens: int, **options: object) -> tuple[float, float]:
            swapped = {"preemption": "swap", "kv_bytes_per_token": 131072, **options}
            swap = serve(trace, "vllm-v0", kv_tokens=kv_tokens, options=swapped)
            recompute = serve(trace, "vllm-v0", kv_tokens=kv_tokens)
            assert swap.requests.preemptions.sum() > 0 < recompute.requests.preemptions.sum()
            assert swap.tokens_recomputed == 0 < recompute.tokens_recomputed
            return makespan(swap), makespan(recompute)

        long = at_once(np.full(12, 1000), np.full(12, 900))
        swap, recompute = both(long, 13000)
        assert swap < recompute
        short = at_once(np.full(60, 16), np.full(60, 200))
        swap, recompute = both(short, 4000, pcie_gb_s=0.5)
        assert recompute < swap

    def test_without_swap_space_swapping_is_recomputing(self) -> None:
        trace = at_once(np.full(12, 1000), np.full(12, 900))
        options = {"preemption": "swap", "kv_bytes_per_token": 131072, "swap_space_gib": 0.0}
        swap = serve(trace, "vllm-v0", kv_tokens=13000, options=options)
        np.testing.assert_array_equal(swap.requests.finish, serve(trace, "vllm-v0", kv_tokens=13000).requests.finish)

    @pytest.mark.parametrize("async_scheduling", [False, True])
    def test_every_copy_takes_its_time(self, async_scheduling: bool) -> None:
        """Room for 16 tokens, and both requests have 8: one is done, the other has to wait until that is known, if it
        is not known yet. Its 8 tokens are copied out and in again at 8 a second."""
        options = {"preemption": "swap", "kv_bytes_per_token": 125_000_000, "swap_space_gib": 8.0, "pcie_gb_s": 1.0}
        records = serve(
            at_once([4, 4], [5, 13]), "vllm-v0", FixedCost(0.01, 0.0), kv_tokens=16, block_size=1,
            async_scheduling=async_scheduling, options={**options, "watermark": 0.0},
        )  # fmt: skip
        assert records.requests.preemptions.tolist() == [0, int(async_scheduling)]
        assert records.requests.finish[1] == pytest.approx(13 * 0.01 + (2.0 if async_scheduling else 0.0))

    def test_starting_prompts_without_room_for_them_costs_recomputation(self) -> None:
        rng = np.random.default_rng(2)
        trace = at_once(rng.integers(500, 1500, 60), rng.integers(100, 400, 60))
        fastgen, sarathi = (serve(trace, name, kv_tokens=8000).tokens_recomputed for name in ("fastgen", "sarathi"))
        assert fastgen > sarathi > 0


@pytest.fixture
def trace() -> Trace:
    rng = np.random.default_rng(3)
    return Trace(np.cumsum(rng.exponential(0.2, 150)), np.full(150, 1800), rng.integers(50, 240, 150))


class TestStalls:
    """Decodes at work while prompts of 1,800 tokens keep coming."""

    def test_sarathi_bounds_every_gap_by_its_chunk_and_prefill_first_stalls(self, trace: Trace) -> None:
        tau = 256
        sarathi, v0 = serve(trace, "sarathi", max_num_batched_tokens=tau), serve(trace, "vllm-v0")
        steps = sarathi.steps
        most_decodes = int(steps.num_decodes.max())
        bound = GPU.mixed(most_decodes, int(steps.context_tokens.max()), 0, [(tau, 0)], 0)
        assert gaps(sarathi).max() <= bound
        assert gaps(v0).max() > GPU.mixed(0, 0, 0, [(1800, 0)], 1) > 4 * bound  # a whole prompt, and a decode after it

    def test_prefill_first_has_the_lower_ttft_and_the_worse_itl_tail(self, trace: Trace) -> None:
        sarathi, v0 = serve(trace, "sarathi", max_num_batched_tokens=256), serve(trace, "vllm-v0")
        assert ttft(v0) < ttft(sarathi)
        assert np.percentile(gaps(v0), 99) > 3 * np.percentile(gaps(sarathi), 99)

    def test_a_smaller_chunk_trades_ttft_for_itl(self, trace: Trace) -> None:
        small, large = (serve(trace, "sarathi", max_num_batched_tokens=tau) for tau in (256, 1024))
        assert gaps(small).max() < gaps(large).max()
        assert ttft(small) > ttft(large)


def test_fastgen_composes_forward_passes_of_one_size() -> None:
    rng = np.random.default_rng(4)
    trace = at_once(rng.integers(1, 1500, 120), rng.integers(1, 80, 120))
    sizes = {}
    for policy in ("fastgen", "vllm-v0", "orca"):
        steps = serve(trace, policy, max_num_batched_tokens=512, max_num_seqs=64).steps
        tokens = np.repeat(steps.num_decodes + steps.prefill_tokens, steps.num_steps)
        backlog = np.flatnonzero(np.repeat(steps.num_prefills, steps.num_steps))[-1]  # until the last prompt is done
        sizes[policy] = tokens[:backlog]
    assert (sizes["fastgen"] == 512).mean() > 0.95
    assert sizes["fastgen"].max() == 512
    assert all(sizes[other].std() > 5 * sizes["fastgen"].std() for other in ("vllm-v0", "orca"))


class TestSglang:
    def families(self, n: int) -> Trace:
        """Eight prefixes of 400 tokens, taken in turn."""
        rows = [[i % 8 * 1000 + block for block in range(25)] for i in range(n)]
        return Trace(np.linspace(0.0, 0.01 * (n - 1), n), np.full(n, 420), np.full(n, 20), prefix=from_rows(rows, 16))

    def order(self, trace: Trace, policy: str, max_num_seqs: int = 256) -> SimulationRecords:
        options = {"schedule_policy": policy}
        return serve(trace, "sglang", kv_tokens=2400, options=options, max_num_seqs=max_num_seqs)

    def test_longest_prefix_match_hits_more_than_fcfs(self) -> None:
        trace = self.families(120)
        hits = {name: self.order(trace, name).requests.cached_tokens.sum() for name in ("lpm", "fcfs")}
        assert hits["lpm"] > 2 * hits["fcfs"]
        assert hits["lpm"] > 0.6 * trace.prompt_tokens.sum()

    def test_with_more_than_128_waiting_the_queue_is_first_come_first_served(self) -> None:
        trace = self.families(200)
        trace = Trace(np.zeros(200), trace.prompt_tokens, trace.output_tokens, prefix=trace.prefix)
        requests = self.order(trace, "lpm", max_num_seqs=1).requests
        order = np.argsort(requests.scheduled, kind="stable")
        assert order[:72].tolist() == list(range(72))
        assert order[72:].tolist() != list(range(72, 200))
        hits = requests.cached_tokens[order]  # five families fit the cache
        assert (hits[:72] == 0).all()
        assert (hits[72:] > 0).mean() > 0.9

    def test_requests_that_share_a_new_prefix_wait_for_the_first_of_them(self) -> None:
        trace = self.families(16)
        trace = Trace(np.zeros(16), trace.prompt_tokens, trace.output_tokens, prefix=trace.prefix)
        requests = serve(trace, "sglang", max_num_batched_tokens=8 * 432, options={"schedule_policy": "lpm"}).requests
        assert (requests.cached_tokens[:8] == 0).all()
        assert (requests.cached_tokens[8:] == 400).all()

    @pytest.mark.parametrize("step_mode", [False, True])
    def test_a_full_batch_leaves_the_queue_unsorted(self, step_mode: bool) -> None:
        """The last request shares the first one's prefix, cached when it comes and evicted when there is a place."""
        trace = Trace(
            np.array([0.0, 1.0, 1.1, 1.1]), np.array([100, 200, 100, 100]), np.array([2, 440, 4, 4]),
            prefix=from_rows([list(range(6)), list(range(100, 112)), list(range(200, 206)), list(range(6))], 16),
        )  # fmt: skip
        options = {"schedule_policy": "lpm"}
        requests = serve(trace, "sglang", kv_tokens=640, max_num_seqs=1, options=options, step_mode=step_mode).requests
        assert requests.arrival[3] < requests.finish[1]
        assert (np.diff(requests.scheduled) > 0).all()
        assert requests.cached_tokens.tolist() == [0, 0, 0, 0]

    def test_a_bold_estimate_runs_more_and_retracts_some(self) -> None:
        rng = np.random.default_rng(6)
        trace = at_once(rng.integers(20, 60, 200), rng.integers(100, 300, 200))
        runs = {
            scale: serve(trace, "sglang", kv_tokens=8192, options={"schedule_conservativeness": scale})
            for scale in (0.1, 10.0)  # ratios of 0.07 and 1
        }
        running = {scale: int(r.steps.num_running.max()) for scale, r in runs.items()}
        assert runs[10.0].requests.preemptions.sum() == 0 < runs[0.1].requests.preemptions.sum()
        assert running[0.1] > running[10.0]

    def test_clients_that_ask_for_more_than_they_use_keep_the_batch_small(self) -> None:
        rng = np.random.default_rng(7)
        trace = at_once(rng.integers(20, 60, 100), rng.integers(20, 60, 100))
        asked = {m: serve(trace, "sglang", kv_tokens=8192, options={"max_new_tokens": m}) for m in (0, 2000)}
        most = {m: int(records.steps.num_running.max()) for m, records in asked.items()}
        assert most[2000] < most[0] / 2
        exact = serve(trace, "sglang", kv_tokens=8192, options={"max_new_tokens": 2000, "ignore_eos": True})
        assert exact.steps.num_running.max() <= most[2000]
