"""The CPU suite end to end. Needs torch, which the ordinary development environment does not hold: `make test-profiler`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra: profile); make test-profiler runs this")

from profiler.measure.campaign import load  # noqa: E402
from profiler.measure.clock import CpuClock  # noqa: E402
from profiler.measure.devices import Device, Effort  # noqa: E402
from profiler.measure.errors import CampaignError  # noqa: E402
from profiler.measure.journal import read  # noqa: E402
from profiler.measure.points import points  # noqa: E402
from profiler.measure.runner import run_campaign  # noqa: E402
from profiler.measure.suites import BUILDERS, gemm  # noqa: E402

ROOT = Path(__file__).resolve().parents[3]
CAMPAIGN = """
name: minimal
device: cpu
threads: 1
rotate_bytes: 1000000
timing: {warmup: 1, min_repeats: 3, max_repeats: 5, target_s: 0.005}
models:
  - {name: tiny, hidden_size: 64, num_hidden_layers: 2, num_attention_heads: 4, num_key_value_heads: 2, intermediate_size: 96,
     vocab_size: 128}
  - {name: tiny-moe, hidden_size: 64, num_hidden_layers: 1, num_attention_heads: 4, num_key_value_heads: 2,
     intermediate_size: 32, vocab_size: 128, num_local_experts: 4, num_experts_per_tok: 2}
suites:
  ceilings: {dtypes: [fp32], size: 128, copy_bytes: 1048576}
  gemm: {dtypes: [fp32, bf16, int8], tokens: [1, 17], unfused: true}
  prefill_attention: {dtypes: [fp32], batches: [1, 2], new_tokens: [1, 9], computed_tokens: [0, 12], windows: [null, 8], backends: [sdpa, sdpa_math]}
  decode_attention: {dtypes: [fp32], batches: [1, 4], contexts: [5, 40], windows: [null, 16], backends: [loop, gather]}
  packed_attention: {dtypes: [fp32], queries: [1, 6], keys: [6, 40]}
  moe: {dtypes: [fp32], tokens: [1, 12]}
  elementwise:
    dtypes: [fp32, bf16]
    tokens: [1, 5]
    kernels: [rms_norm, add_rms_norm, rope_and_cache, silu_mul, embedding, sample_greedy, sample_top_p, add_rms_norm_unfused, rope_and_cache_unfused]
  copies: {sizes: [4096]}
  layer: {dtypes: [fp32], decodes: [[3, 20]], chunks: [[], [[5, 4]]], modes: [eager]}
  step: {dtypes: [fp32], decodes: [[0, 0], [3, 20]], chunks: [[], [[7, 0]]], modes: [eager, graph]}
"""
GEMM = "name: g\ndevice: cpu\nthreads: 1\ntiming: {min_repeats: 2, target_s: 0.001}\nsuites:\n  gemm: {dtypes: [fp32], shapes: [[64, 64]], tokens: [%s]}\n"


def quiet(_: str) -> None: ...


def written(folder: Path, text: str) -> Path:
    path = folder / "campaign.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_every_suite_measures_on_the_cpu_and_every_time_was_checked(tmp_path: Path):
    campaign = load(written(tmp_path, CAMPAIGN))
    outcome = run_campaign(campaign, tmp_path, say=quiet)
    rows = list(read(outcome.path))
    header, measured = rows[0], [r for r in rows if r["kind"] == "point"]
    assert header["kind"] == "header"
    assert header["device"]["type"] == "cpu"
    assert header["versions"]["torch"] == torch.__version__
    assert {r["id"] for r in rows if "id" in r} == {p["id"] for p in points(campaign)}
    assert {r["op"] for r in measured} == {
        "ceiling", "gemm", "prefill_attention", "decode_attention", "packed_attention", "moe", "elementwise", "copy", "layer",
        "step",
    }  # fmt: skip
    for row in measured:
        assert 0 < row["p10_s"] <= row["median_s"] <= row["p90_s"]
        assert row["check"] is None or row["check"] <= row["check_limit"]
    unchecked = {(r["op"], r.get("quantity")) for r in measured if r["check"] is None}
    assert unchecked == {("ceiling", "bandwidth"), ("ceiling", "launch"), ("ceiling", "timer")}
    skipped = {r["op"]: r["reason"] for r in rows if r["kind"] == "skipped"}
    assert "GPU" in skipped["step"]  # graphs
    assert "its own host" in skipped["copy"]
    assert set(skipped) <= {"step", "copy", "moe"}
    assert [r["suite"] for r in rows if r["kind"] == "suite"] == list(campaign.suites)


def test_a_finished_campaign_measures_nothing_more(tmp_path: Path):
    campaign = load(written(tmp_path, GEMM % "1, 2, 3"))
    first = run_campaign(campaign, tmp_path, say=quiet)
    again = run_campaign(campaign, tmp_path, say=quiet)
    assert (first.measured, again.measured, again.resumed) == (3, 0, 3)
    more = run_campaign(load(written(tmp_path, GEMM % "1, 2, 3, 4")), tmp_path, say=quiet)
    assert (more.measured, more.resumed) == (1, 3)


def test_the_time_limit_stops_between_points_and_the_next_run_goes_on(tmp_path: Path):
    campaign = load(written(tmp_path, GEMM % "1, 2, 3"))
    stopped = run_campaign(campaign, tmp_path, time_limit_s=-1.0, say=quiet)
    assert (stopped.measured, stopped.left) == (0, 3)
    assert run_campaign(campaign, tmp_path, say=quiet).measured == 3


def test_killed_in_the_middle_no_point_is_lost_or_repeated(tmp_path: Path):
    many = ", ".join(str(n) for n in range(1, 300))
    path, out = written(tmp_path, GEMM % many), tmp_path / "out" / "measurements.jsonl"
    command = [sys.executable, "-m", "profiler.measure", str(path), "--out", str(out.parent)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    limit = time.monotonic() + 60
    while time.monotonic() < limit and not (out.exists() and out.read_bytes().count(b"\n") > 20):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = [r["id"] for r in read(out) if r["kind"] == "point"]
    assert 0 < len(before) < 299
    campaign = load(path)
    run_campaign(campaign, out.parent, say=quiet)
    ids = [r["id"] for r in read(out) if r["kind"] == "point"]
    assert ids[: len(before)] == before
    assert len(ids) == len(set(ids)) == 299


def test_a_wrong_kernel_gives_no_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    right = gemm.product
    monkeypatch.setattr(gemm, "product", lambda x, w, scale: right(x, w, scale) * 1.001)
    rows = list(read(run_campaign(load(written(tmp_path, GEMM % "1, 2")), tmp_path, say=quiet).path))
    reasons = [r["reason"] for r in rows if r["kind"] == "skipped"]
    assert len(reasons) == 2
    assert all("wrong result: relative error 0.001" in r for r in reasons)
    assert not [r for r in rows if r["kind"] == "point"]


def test_not_a_number_never_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gemm, "product", lambda x, w, scale: x @ w.t() * float("nan"))
    outcome = run_campaign(load(written(tmp_path, GEMM % "1")), tmp_path, say=quiet)
    assert (outcome.measured, outcome.skipped) == (0, 1)


def test_a_point_that_fails_is_skipped_with_its_reason_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    right = BUILDERS["gemm"]

    def build(point, ctx):
        if point["m"] == 2:
            raise torch.OutOfMemoryError("no room")
        return right(point, ctx)

    monkeypatch.setitem(BUILDERS, "gemm", build)
    rows = list(read(run_campaign(load(written(tmp_path, GEMM % "1, 2, 3")), tmp_path, say=quiet).path))
    assert [r["m"] for r in rows if r["kind"] == "point"] == [1, 3]
    assert [(r["m"], r["reason"]) for r in rows if r["kind"] == "skipped"] == [(2, "out of memory")]


def test_another_device_does_not_write_into_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    campaign = load(written(tmp_path, GEMM % "1"))
    run_campaign(campaign, tmp_path, say=quiet)
    about = Device.describe
    monkeypatch.setattr(Device, "describe", lambda self: about(self) | {"name": "another"})
    with pytest.raises(CampaignError, match="this is another"):
        run_campaign(campaign, tmp_path, say=quiet)


def test_a_gpu_that_is_not_there_is_said_so(tmp_path: Path):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(CampaignError, match="no CUDA GPU"):
        run_campaign(load(written(tmp_path, "name: g\nsuites:\n  gemm: {}\n")), tmp_path, say=quiet)


def test_the_cpu_clock_skips_waits_and_counts_work():
    clock, wall = CpuClock(), time.perf_counter()
    start = clock.now()
    clock.wait_until(start + 100.0)
    assert 100.0 <= clock.now() - start < 101.0
    assert time.perf_counter() - wall < 5.0
    device = Device("cpu", threads=1, clock="cpu")
    timing = device.time(lambda _: sum(range(20_000)), Effort(1, 5, 5, 0.0))
    assert timing.method == "cpu_time"
    assert timing.median_s > 0


def test_times_grow_with_the_work(tmp_path: Path):
    text = GEMM.replace("[64, 64]", "[512, 512]").replace("min_repeats: 2", "min_repeats: 9") % "8, 512"
    rows = [
        r for r in read(run_campaign(load(written(tmp_path, text)), tmp_path, say=quiet).path) if r["kind"] == "point"
    ]
    small, large = sorted(rows, key=lambda r: r["m"])
    assert large["flops"] == 64 * small["flops"] == 2 * 512**3
    assert large["median_s"] > 3 * small["median_s"]
