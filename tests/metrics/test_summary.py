"""The summary against sums over explicit lists."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest

from simulator.core.errors import UserError
from simulator.metrics import SLO_PRESETS, Slo, littles_law, requests_frame, slo_preset, steps_frame, summarize
from simulator.metrics.analysis import analyse
from simulator.metrics.series import mean_count, step_mean
from simulator.replica.records import Status
from tests.metrics.toy_engine import NAN, ToyConfig, ToyRequest, ToyRun, random_requests, run_toy
from traces.trace import Labels

TIGHT = ToyConfig(num_gpu_blocks=40, max_num_seqs=6)


@pytest.fixture(scope="module")
def toy() -> ToyRun:
    return run_toy(random_requests(5, 80, rate=6.0), TIGHT, replicas=2, reject=(7, 11))


def test_latency_definitions_token_by_token(toy: ToyRun) -> None:
    done = toy.finished()
    latency = summarize(toy.records)["latency"]
    want = {
        "ttft_s": [r.tokens[0] - r.arrival for r in done],
        "tpot_s": [(r.tokens[-1] - r.tokens[0]) / (r.output - 1) for r in done if r.output > 1],
        "e2e_s": [r.tokens[-1] - r.arrival for r in done],
        "normalized_latency_s_per_token": [(r.tokens[-1] - r.arrival) / r.output for r in done],
        "queue_time_s": [r.scheduled - r.arrival for r in done],
        "itl_s": toy.gaps(done),
    }
    for name, values in want.items():
        assert latency[name]["count"] == len(values)
        assert latency[name]["mean"] == pytest.approx(np.mean(values))
        for p in (50, 90, 95, 99):
            assert latency[name][f"p{p}"] == pytest.approx(np.percentile(values, p)), name


def test_tpot_is_the_mean_of_the_requests_own_gaps(toy: ToyRun) -> None:
    tpot = analyse(toy.records).latency.tpot
    for r in toy.finished():
        if r.output > 1:
            assert tpot[r.index] == pytest.approx(np.mean(toy.gaps([r])))


def test_throughput_in_a_window_counts_what_happened_in_it(toy: ToyRun) -> None:
    window = (2.0, 9.5)
    got = summarize(toy.records, window=window)["throughput"]

    def inside(t: float) -> bool:
        return window[0] <= t <= window[1]

    assert got["output_tokens"] == sum(inside(t) for r in toy.requests for t in r.tokens)
    assert got["input_tokens"] == sum(r.prompt for r in toy.requests if r.tokens and inside(r.tokens[0]))
    assert got["finished_requests"] == sum(inside(r.finish) for r in toy.finished())
    assert got["output_tokens_per_s"] == pytest.approx(got["output_tokens"] / 7.5)


def test_window_cuts_warm_up_from_percentiles_by_arrival(toy: ToyRun) -> None:
    window = (3.0, 8.0)
    summary = summarize(toy.records, window=window)
    chosen = [r for r in toy.finished() if window[0] <= r.arrival <= window[1]]
    assert summary["latency"]["ttft_s"]["count"] == len(chosen) > 5
    assert summary["latency"]["itl_s"]["count"] == len(toy.gaps(chosen))
    with pytest.raises(UserError, match="is empty"):
        summarize(toy.records, window=(8.0, 3.0))


def test_slo_attainment_and_goodput_request_by_request(toy: ToyRun) -> None:
    slo = Slo("mine", ttft_s=0.6, tpot_s=0.03, itl_s=0.2, e2e_s=2.0)
    summary = summarize(toy.records, slo=slo)

    def good(r: ToyRequest) -> bool:
        tpot = (r.tokens[-1] - r.tokens[0]) / (r.output - 1) if r.output > 1 else 0.0
        return (
            r.tokens[0] - r.arrival <= 0.6
            and tpot <= 0.03
            and max(toy.gaps([r]), default=0.0) <= 0.2
            and r.finish - r.arrival <= 2.0
        )

    count = sum(good(r) for r in toy.finished())
    assert 0 < count < len(toy.finished())
    got = summary["slo"]
    assert got["good_requests"] == count
    assert got["attainment"] == pytest.approx(count / len(toy.requests))  # two rejected ones are missed
    assert summary["goodput_request_per_s"] == pytest.approx(count / summary["window"]["duration_s"])
    assert summary["goodput_request_per_s"] <= summary["throughput"]["request_per_s"]
    assert got["percentile_s"]["ttft"] == summary["latency"]["ttft_s"]["p99"]
    assert got["percentile_s"]["itl"] == pytest.approx(summary["latency"]["itl_s"]["p99"])


def test_a_request_in_flight_is_missed_only_when_that_is_certain() -> None:
    long = ToyRequest(0, 0.0, 8, 400)
    late = ToyRequest(1, 0.0, 60, 400)
    toy = run_toy([long, late], ToyConfig(horizon=1.0, max_num_seqs=1))
    slo = summarize(toy.records, slo=Slo(ttft_s=0.5))["slo"]
    assert slo["judged_requests"] == 1  # the second waits past its TTFT; the first may still turn out well
    assert slo["attainment"] == 0.0
    lenient = summarize(toy.records, slo=Slo(ttft_s=5.0))["slo"]
    assert lenient["judged_requests"] == 0
    assert lenient["attainment"] is None


def test_breakdown_adds_up_to_e2e_and_names_stalls(toy: ToyRun) -> None:
    found = analyse(toy.records)
    parts = found.breakdown
    total = parts.queue + parts.prefill + parts.decode + parts.decode_shared + parts.preempted
    for r in toy.finished():
        assert total[r.index] == pytest.approx(r.finish - r.arrival)
        shared = 0.0
        for s in toy.steps:
            decoding = r.index in s.decodes
            between = s.replica == r.replica and r.tokens[0] <= s.start < r.finish and not decoding
            in_range = decoding or (between and not _preempted_at(r, s.start))
            shared += s.seconds if in_range and s.prefill_tokens and s.start >= r.tokens[0] else 0.0
        assert parts.decode_shared[r.index] == pytest.approx(shared)
    assert np.nansum(parts.preempted) > 0


def _preempted_at(r: ToyRequest, now: float) -> bool:
    """Between the last token of an earlier range and the token its recompute ended with."""
    starts = [row[3] for row in r.extra[1:]] + ([r.range[2]] if r.range and r.extra else [])
    ends = [max(t for t in r.tokens if t < start) for start in starts]
    return any(a <= now < b for a, b in zip(ends, starts, strict=True))


def test_engine_figures_step_by_step(toy: ToyRun) -> None:
    summary = summarize(toy.records, window=(0.0, toy.records.end))
    engine = summary["engine"]
    busy = sum(s.seconds for s in toy.steps)
    assert engine["utilization"] == pytest.approx(busy / (2 * toy.records.end))
    batch = sum(s.seconds * (len(s.decodes) + len(s.prefills)) for s in toy.steps) / busy
    assert engine["batch_size_requests"]["mean"] == pytest.approx(batch)
    assert engine["num_steps"] == len(toy.steps)
    assert engine["preemptions"] == engine["preemptions_run"] == sum(r.preemptions for r in toy.requests) > 0
    served = [r for r in toy.requests if r.status != Status.REJECTED]
    assert engine["prefix_hit_ratio_run"] == sum(r.cached for r in served) / sum(r.prompt for r in served)
    assert engine["kv_usage"]["max"] == pytest.approx(1 - min(s.free for s in toy.steps) / 40)
    prefill = sum(s.seconds for s in toy.steps if s.prefill_tokens)
    assert engine["prefill_step_time_share"] == pytest.approx(prefill / busy)


def test_littles_law_holds_without_preemption_and_catches_a_lost_request() -> None:
    toy = run_toy(random_requests(2, 60), ToyConfig(num_gpu_blocks=400), replicas=2)
    assert not any(r.preemptions for r in toy.requests)
    law = littles_law(toy.records)
    assert law.l_running == pytest.approx(law.lambda_w)
    assert law.l_running > 0.5
    r = toy.records.requests
    lost = replace(toy.records, requests=replace(r, scheduled=np.where(np.arange(60) == 30, NAN, r.scheduled)))
    assert littles_law(lost).relative_gap > 1e-3


def test_littles_law_leans_one_way_under_preemption(toy: ToyRun) -> None:
    law = littles_law(toy.records)
    assert law.lambda_w > law.l_running


def test_curves_are_exact_bin_means(toy: ToyRun) -> None:
    edges = np.linspace(0.0, toy.records.end, 14)
    done = toy.finished()
    got = mean_count(np.array([r.arrival for r in done]), np.array([r.finish for r in done]), edges)
    for k, (a, b) in enumerate(itertools.pairwise(edges)):
        want = sum(max(min(r.finish, b) - max(r.arrival, a), 0) for r in done) / (b - a)
        assert got[k] == pytest.approx(want, abs=1e-9)
    running = step_mean(toy.records, toy.records.steps.num_running.astype(float), edges)
    for k, (a, b) in enumerate(itertools.pairwise(edges)):
        want = sum(max(min(s.start + s.seconds, b) - max(s.start, a), 0) * s.running for s in toy.steps) / (b - a)
        assert running[k] == pytest.approx(want, abs=1e-9)


def test_classes_partition_the_requests(toy: ToyRun) -> None:
    names = ("free", "paid", "nobody")
    codes = np.arange(len(toy.requests), dtype=np.int32) % 3 - 1  # -1, 0, 1
    trace = replace(toy.trace, tenant=Labels(codes, names))
    summary = summarize(toy.records, trace, Slo(ttft_s=0.5))
    tenants = summary["classes"]["tenant"]
    assert set(tenants) == {"free", "paid", "(not given)"}
    assert sum(t["requests"]["arrived"] for t in tenants.values()) == len(toy.requests)
    assert sum(t["slo"]["good_requests"] for t in tenants.values()) == summary["slo"]["good_requests"]
    shares = [t["goodput_request_per_s"] for t in tenants.values()]
    assert sum(shares) == pytest.approx(summary["goodput_request_per_s"])
    free = [r for r in toy.finished() if codes[r.index] == 0]
    assert tenants["free"]["latency"]["itl_s"]["count"] == len(toy.gaps(free))


def test_cost_per_million_output_tokens(toy: ToyRun) -> None:
    summary = summarize(toy.records, usd_per_hour=36.0)
    seconds, tokens = summary["window"]["duration_s"], summary["throughput"]["output_tokens"]
    assert summary["cost"]["usd_per_million_output_tokens"] == pytest.approx(0.01 * seconds / tokens * 1e6)
    assert summarize(toy.records)["cost"] is None
    with pytest.raises(UserError, match="negative"):
        summarize(toy.records, usd_per_hour=-1.0)


def test_summary_is_strict_json_even_when_nothing_happened() -> None:
    nobody = run_toy([])
    refused = run_toy([ToyRequest(0, 1.0, 5, 5)], reject=(0,))
    for run in (nobody, refused):
        summary = summarize(run.records, run.trace, SLO_PRESETS["mlperf-llama2-70b-server"], usd_per_hour=1.0)
        json.dumps(summary, allow_nan=False)
        assert summary["latency"]["ttft_s"]["p99"] is None
    assert summarize(refused.records)["stability"]["verdict"] == "overloaded"


def test_presets_and_a_helpful_refusal() -> None:
    assert slo_preset("mlperf-llama2-70b-interactive") == Slo("mlperf-llama2-70b-interactive", 0.45, 0.04)
    with pytest.raises(UserError, match=r"Did you mean 'mlperf-llama3\.1-8b-server'"):
        slo_preset("mlperf-llama3-8b-server")
    with pytest.raises(UserError, match="not a positive number"):
        Slo(ttft_s=0.0)


def test_requests_frame_is_a_row_per_request(toy: ToyRun) -> None:
    trace = replace(toy.trace, tenant=Labels(np.zeros(80, dtype=np.int32), ("a",)))
    frame = requests_frame(toy.records, trace, Slo(ttft_s=0.6))
    assert len(frame) == 80
    assert frame["status"].value_counts()["finished"] == len(toy.finished())
    done = frame[frame["status"] == "finished"]
    assert done["ttft_s"].tolist() == [r.tokens[0] - r.arrival for r in toy.finished()]
    assert frame["meets_slo"].sum() == summarize(toy.records, slo=Slo(ttft_s=0.6))["slo"]["good_requests"]
    assert set(frame["tenant"]) == {"a"}


def test_steps_frame_expands_to_the_engines_own_steps(toy: ToyRun) -> None:
    steps = steps_frame(toy.records, expand=True).sort_values(["replica", "start_s"])
    want = sorted(toy.steps, key=lambda s: (s.replica, s.start))
    assert steps["start_s"].tolist() == [s.start for s in want]
    assert steps["duration_s"].tolist() == [s.seconds for s in want]
    assert steps["context_tokens"].tolist() == [s.context for s in want]
    assert steps["preempted"].sum() == sum(s.preempted for s in toy.steps)
    spans = steps_frame(toy.records)
    assert spans["num_steps"].sum() == len(want)
    assert spans["duration_s"].sum() == pytest.approx(sum(s.seconds for s in want))
    sampled = steps_frame(toy.records, expand=True, every=10).sort_values(["replica", "start_s"])
    tenth = [s.start for k in range(2) for s in [s for s in want if s.replica == k][::10]]
    assert sampled["start_s"].tolist() == tenth
    with pytest.raises(UserError, match="samples steps"):
        steps_frame(toy.records, every=10)
