"""Exports against the token lists of the brute-force engine, and against the shapes that other tools read."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from simulator.core.errors import UserError
from simulator.metrics import Slo, summarize
from simulator.replica.records import ClusterEvent, ReplicaRecord, TransferRecords
from simulator.report.exports import to_aiperf, to_perfetto, to_vllm_bench
from tests.metrics.toy_engine import ToyConfig, ToyRequest, ToyRun, random_requests, run_toy

SLO = Slo("mine", ttft_s=0.6, tpot_s=0.03)
# What `vllm bench serve --save-result` of vLLM 0.33 holds for a generation task without speculative decoding.
VLLM_KEYS = {
    "date", "endpoint_type", "backend", "label", "model_id", "tokenizer_id", "num_prompts", "request_rate", "burstiness",
    "max_concurrency", "duration", "completed", "failed", "total_input_tokens", "total_output_tokens",
    "request_throughput", "request_goodput", "output_throughput", "total_token_throughput", "max_output_tokens_per_s",
    "max_concurrent_requests", "rtfx",
} | {f"{s}_{m}_ms" for s in ("mean", "median", "std", "p99") for m in ("ttft", "tpot", "itl", "e2el")}  # fmt: skip
VLLM_LISTS = {"input_lens", "output_lens", "ttfts", "itls", "start_times", "generated_texts", "errors", "latencies"}


@pytest.fixture(scope="module")
def toy() -> ToyRun:
    return run_toy(
        random_requests(5, 80, rate=6.0), ToyConfig(num_gpu_blocks=40, max_num_seqs=6), replicas=2, reject=(7,)
    )


def test_vllm_shape_has_vllms_keys_and_only_detailed_has_lists(toy: ToyRun) -> None:
    summary = summarize(toy.records, slo=SLO)
    short = to_vllm_bench(summary, toy.records, model_id="m")
    assert set(short) >= VLLM_KEYS
    assert not VLLM_LISTS & set(short)
    detailed = to_vllm_bench(summary, toy.records, model_id="m", detailed=True)
    assert set(detailed) >= VLLM_KEYS | VLLM_LISTS
    json.dumps(detailed, allow_nan=False)


def test_vllm_figures_recomputed_from_its_own_lists_as_vllm_does(toy: ToyRun) -> None:
    result = to_vllm_bench(summarize(toy.records, slo=SLO), toy.records, model_id="m", detailed=True)
    ok = [i for i, error in enumerate(result["errors"]) if not error]
    assert result["completed"] == len(ok) == len(toy.finished())
    assert result["failed"] == 1
    itls = [gap for i in ok for gap in result["itls"][i]]
    assert result["p99_itl_ms"] == pytest.approx(np.percentile(itls, 99) * 1e3)
    assert result["std_itl_ms"] == pytest.approx(np.std(itls) * 1e3)
    tpots = [
        (result["latencies"][i] - result["ttfts"][i]) / (result["output_lens"][i] - 1)
        for i in ok
        if result["output_lens"][i] > 1
    ]
    assert result["mean_tpot_ms"] == pytest.approx(np.mean(tpots) * 1e3)
    assert result["median_ttft_ms"] == pytest.approx(np.median([result["ttfts"][i] for i in ok]) * 1e3)
    assert result["output_throughput"] == pytest.approx(sum(result["output_lens"]) / result["duration"])
    for i in ok:
        assert len(result["itls"][i]) == result["output_lens"][i] - 1
        assert result["ttfts"][i] + sum(result["itls"][i]) == pytest.approx(result["latencies"][i])


def test_vllm_peaks_are_those_of_the_busiest_second(toy: ToyRun) -> None:
    result = to_vllm_bench(summarize(toy.records), toy.records, model_id="m")
    done = toy.finished()
    zero = min(r.arrival for r in done)
    seconds = Counter(int(t - zero) for r in done for t in r.tokens)
    active = Counter(s for r in done for s in range(int(r.arrival - zero), int(r.finish - zero) + 1))
    assert result["max_output_tokens_per_s"] == max(seconds.values())
    assert result["max_concurrent_requests"] == max(active.values())


def test_vllm_peaks_of_a_trace_that_idles_for_ages_need_no_room_for_them() -> None:
    toy = run_toy([ToyRequest(0, 0.0, 8, 5), ToyRequest(1, 2.0**40, 8, 7)], ToyConfig())
    result = to_vllm_bench(summarize(toy.records), toy.records, model_id="m")
    assert result["max_output_tokens_per_s"] == 7
    assert result["max_concurrent_requests"] == 1


def test_vllm_shape_of_a_run_without_a_finished_request() -> None:
    toy = run_toy([ToyRequest(0, 0.0, 20, 500)], ToyConfig(horizon=1.0))
    result = to_vllm_bench(summarize(toy.records), toy.records, model_id="m", detailed=True)
    assert (result["completed"], result["mean_ttft_ms"], result["errors"]) == (0, 0.0, ["in_flight"])
    assert result["request_rate"] == "inf"


def test_aiperf_blocks(toy: ToyRun) -> None:
    out = to_aiperf(summarize(toy.records, slo=SLO), toy.records, config={"model": "m"})
    json.dumps(out, allow_nan=False)
    done = toy.finished()
    latency = np.array([r.finish - r.arrival for r in done]) * 1e3
    block = out["request_latency"]
    assert block["unit"] == "ms"
    assert block["count"] == len(done)
    assert block["avg"] == pytest.approx(latency.mean())
    assert block["std"] == pytest.approx(latency.std(ddof=1))
    for p in (1, 5, 10, 25, 50, 75, 90, 95, 99):
        assert block[f"p{p}"] == pytest.approx(np.percentile(latency, p))
    gaps = np.array(toy.gaps(done)) * 1e3
    assert out["inter_chunk_latency"]["p99"] == pytest.approx(np.percentile(gaps, 99))
    tpot = [(r.tokens[-1] - r.tokens[0]) / (r.output - 1) * 1e3 for r in done if r.output > 1]
    assert out["inter_token_latency"]["p90"] == pytest.approx(np.percentile(tpot, 90))
    assert out["output_token_throughput_per_user"]["unit"] == "tokens/sec/user"
    assert set(out["request_throughput"]) == {"unit", "avg"}  # derived: no distribution, no count
    assert out["request_count"]["avg"] == len(done)
    assert out["error_summary"][0]["count"] == 1
    assert out["input_config"] == {"model": "m"}


def test_aiperf_leaves_out_what_was_not_measured() -> None:
    toy = run_toy([ToyRequest(0, 0.0, 20, 1)])
    out = to_aiperf(summarize(toy.records), toy.records)
    assert out["time_to_first_token"]["std"] == 0.0
    assert not {"inter_token_latency", "goodput"} & set(out)


def test_perfetto_draws_every_step_and_nests_every_request(toy: ToyRun) -> None:
    out = to_perfetto(toy.records)
    json.dumps(out, allow_nan=False)
    events = out["traceEvents"]
    steps = [e for e in events if e["ph"] == "X"]
    assert sum(e["args"]["num_steps"] for e in steps) == len(toy.steps)
    assert sum(e["dur"] for e in steps) == pytest.approx(sum(s.seconds for s in toy.steps) * 1e6, rel=1e-6)
    assert {e["name"] for e in events if e["ph"] == "C"} == {"running", "waiting", "kv usage"}
    timed = [e["ts"] for e in events if e["ph"] != "M"]
    assert timed == sorted(timed)
    for r in toy.requests:
        stack: list[str] = []
        seen: list[str] = []
        for e in events:
            if e.get("cat") == "request" and e["id"] == r.index:
                if e["ph"] == "b":
                    stack.append(e["name"])
                    seen.append(e["name"])
                else:
                    assert stack.pop() == e["name"]
        assert not stack
        assert seen[0] == f"request {r.index}"
        resumed = max(len(r.extra), 0)
        assert seen.count("preempted") == resumed


def test_perfetto_cuts_a_window_and_says_when_it_cuts_more(toy: ToyRun) -> None:
    half = to_perfetto(toy.records, window=(2.0, 6.0))
    starts = [e["ts"] for e in half["traceEvents"] if e["ph"] == "X"]
    assert min(starts) >= 2e6
    assert max(starts) <= 6e6
    assert half["otherData"]["truncated"] is False
    small = to_perfetto(toy.records, max_events=300)
    assert small["otherData"]["truncated"] is True
    assert len(small["traceEvents"]) < 400
    with pytest.raises(UserError, match="is empty"):
        to_perfetto(toy.records, window=(6.0, 2.0))


def test_perfetto_shows_transfers_per_pair_of_replicas_and_marks_what_befell_them(toy: ToyRun) -> None:
    moved = TransferRecords(
        ("kv", "kv"), np.array([0, 1]), np.array([0, 0]), np.array([1, 1]), np.array([1e6, 2e6]),
        np.array([0.1, 0.2]), np.array([0.15, np.inf]),
    )  # fmt: skip
    lives = tuple(ReplicaRecord(name, "H100", 1, 0.0, 0.0, np.inf) for name in ("prefill", "decode"))
    event = ClusterEvent(0.3, "failure", 1, "MTBF")
    records = replace(toy.records, transfers=moved, replicas=lives, events=(event,))
    events = to_perfetto(records)["traceEvents"]
    names = [e["args"]["name"] for e in events if e["name"] == "process_name"]
    assert names == ["prefill 0", "decode 1", "between replicas"]
    begun = [e for e in events if e["ph"] == "b" and e["cat"] == "transfer"]
    assert [(e["name"], e["ts"], e["args"]["bytes"]) for e in begun] == [
        ("kv 0 -> 1", 1e5, 1e6),
        ("kv 0 -> 1", 2e5, 2e6),
    ]
    ended = [e["ts"] for e in events if e["ph"] == "e" and e["cat"] == "transfer"]
    assert ended == [1.5e5, pytest.approx(records.end * 1e6)]
    [mark] = [e for e in events if e["ph"] == "i" and e["cat"] == "cluster"]
    assert (mark["pid"], mark["name"], mark["ts"]) == (2, "failure", 3e5)
