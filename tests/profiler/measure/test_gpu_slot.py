"""What would cost a rented GPU's half hour: lost devices, crashes in a kernel, suites that fail. No GPU needed."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra: profile); make test-profiler runs this")

from profiler.measure import devices, runner  # noqa: E402
from profiler.measure.campaign import load  # noqa: E402
from profiler.measure.devices import Device, Effort  # noqa: E402
from profiler.measure.errors import CampaignError  # noqa: E402
from profiler.measure.journal import Journal, read  # noqa: E402
from profiler.measure.runner import run_campaign  # noqa: E402
from profiler.measure.suites.case import Case  # noqa: E402

ROOT = Path(__file__).resolve().parents[3]
TWO = "name: g\ndevice: cpu\nthreads: 1\ntiming: {min_repeats: 2, target_s: 0.001}\nsuites:\n  gemm: {dtypes: [fp32], shapes: [[64, 64]], tokens: [1, 2, 3]}\n"


def campaign(folder: Path) -> Any:
    path = folder / "campaign.yaml"
    path.write_text(TWO, encoding="utf-8")
    return load(path)


def quiet(_: str) -> None: ...


class FakeCuda:
    """Events on a stream whose every call lasts as long as it says; whatever is not recorded in order fails."""

    def __init__(self, seconds: Callable[[int], float]) -> None:
        self.seconds, self.now, self.calls, self.slept = seconds, 0.0, 0, 0
        outer = self

        class Event:
            def __init__(self, *, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                self.at = outer.now

            def elapsed_time(self, end: Event) -> float:
                return (end.at - self.at) * 1e3

        self.Event = Event

    def _sleep(self, cycles: int) -> None:
        assert cycles > 0
        self.slept += 1

    def synchronize(self) -> None: ...

    def call(self, _: int) -> None:
        self.now += self.seconds(self.calls)
        self.calls += 1


@pytest.fixture
def on_fake_cuda(monkeypatch: pytest.MonkeyPatch) -> Callable[[FakeCuda], Device]:
    def make(fake: FakeCuda) -> Device:
        device = Device("cpu", threads=1)
        device.kind = "cuda"
        monkeypatch.setattr(devices.torch, "cuda", fake)
        return device

    return make


def test_events_give_the_seconds_of_single_calls_whatever_came_first(
    on_fake_cuda: Callable[[FakeCuda], Device],
) -> None:
    fake = FakeCuda(lambda i: 5.0 if i < 2 else 1e-4)  # two slow warm-up calls
    found = on_fake_cuda(fake).time(fake.call, Effort(warmup=2, min_repeats=7, max_repeats=60, target_s=0.003))
    assert found.median_s == pytest.approx(1e-4)
    assert 30 <= found.repeats <= 60
    assert fake.slept >= 2  # launches are hidden in every batch
    assert found.method == "events"


def test_a_slow_kernel_is_called_as_often_as_must_be_and_no_more(on_fake_cuda: Callable[[FakeCuda], Device]) -> None:
    fake = FakeCuda(lambda _: 2.0)
    found = on_fake_cuda(fake).time(fake.call, Effort(warmup=1, min_repeats=3, max_repeats=60, target_s=0.03))
    assert (found.repeats, fake.calls) == (3, 4)


def test_a_lost_device_ends_the_process_and_the_next_one_goes_on_after_the_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build, lost = runner.BUILDERS["gemm"], []

    def kills(point: Any, context: Any) -> Case:
        if point["m"] == 2:
            lost.append(True)
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return build(point, context)

    monkeypatch.setattr(runner, "BUILDERS", {"gemm": kills})
    monkeypatch.setattr(Device, "alive", lambda _: not lost)
    with pytest.raises(CampaignError, match="illegal memory access"):
        run_campaign(campaign(tmp_path), tmp_path, say=quiet)
    lost.clear()
    outcome = run_campaign(campaign(tmp_path), tmp_path, say=quiet)
    assert (outcome.resumed, outcome.measured, outcome.left) == (2, 1, 0)
    rows = [r for r in read(outcome.path) if r["kind"] in ("point", "skipped")]
    assert [(r["kind"], r["m"]) for r in rows] == [("point", 1), ("skipped", 2), ("point", 3)]


def test_a_point_that_kills_the_process_is_passed_over_the_third_time(tmp_path: Path) -> None:
    """A crash inside a kernel leaves no exception behind: only a process that is not there any more."""
    program = (
        "import os, sys\nfrom pathlib import Path\nfrom profiler.measure import runner\nfrom profiler.measure.campaign import load\n"
        "build = runner.BUILDERS['gemm']\n"
        "runner.BUILDERS = {'gemm': lambda p, c: os._exit(139) if p['m'] == 2 else build(p, c)}\n"
        "runner.run_campaign(load(Path(sys.argv[1])), Path(sys.argv[2]), say=lambda _: None)\n"
    )
    campaign(tmp_path)
    command = [sys.executable, "-c", program, str(tmp_path / "campaign.yaml"), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    assert [subprocess.run(command, env=environment, check=False).returncode for _ in range(3)] == [139, 139, 0]
    rows = [r for r in read(tmp_path / "measurements.jsonl") if r["kind"] in ("point", "skipped")]
    assert [(r["kind"], r["m"]) for r in rows] == [("point", 1), ("skipped", 2), ("point", 3)]
    assert "ended 2 times" in rows[1]["reason"]
    assert not (tmp_path / "measurements.jsonl.at-work").exists()


def test_an_interruption_by_hand_is_no_death(tmp_path: Path) -> None:
    with Journal(tmp_path / "m.jsonl") as journal:
        for _ in range(3):
            with pytest.raises(KeyboardInterrupt), journal.at_work_on("a"):
                raise KeyboardInterrupt
        assert journal.deaths("a") == 0


def test_memory_that_a_point_ran_out_of_is_given_back_before_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[object] = []
    seen = []

    class Buffer: ...

    def build(point: Any, _: Any) -> Case:
        import weakref

        buffer = Buffer()
        held.append(weakref.ref(buffer))
        raise torch.OutOfMemoryError(f"CUDA out of memory at {point['m']}") if point["m"] == 2 else ValueError(buffer)

    monkeypatch.setattr(runner, "BUILDERS", {"gemm": build})
    monkeypatch.setattr(Device, "free", lambda _: seen.append([ref() for ref in held if ref() is not None]))  # type: ignore[operator]
    outcome = run_campaign(campaign(tmp_path), tmp_path, say=quiet)
    assert outcome.skipped == 3
    assert seen == [[], [], []]  # nothing of the failed point is alive when its memory is asked back
    reasons = [r["reason"] for r in read(outcome.path) if r["kind"] == "skipped"]
    assert reasons[1] == "out of memory"


FAKE_PYTHON = """#!/usr/bin/env bash
echo "$@" >>"$OUT/calls"
case "$2" in
profiler.measure)
  echo '{"kind":"point"}' >>"$OUT/measurements.jsonl"
  [ "$(wc -l <"$OUT/measurements.jsonl")" -ge 3 ] || exit 139 ;;
profiler.serve) echo '{}' >"$OUT/served-a-decoder.json"; exit 2 ;;
esac
"""


def test_one_call_on_a_gpu_survives_what_fails_and_leaves_what_was_measured(tmp_path: Path) -> None:
    fake = tmp_path / "python"
    fake.write_text(FAKE_PYTHON, encoding="utf-8")
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    out = tmp_path / "out"
    environment = {
        **os.environ,
        "OUT": str(out),
        "PYTHON": str(fake),
        "KERNELS_S": "20",
        "TOTAL_S": "40",
        "ATTEMPTS": "3",
    }
    script = ROOT / "profiler" / "campaigns" / "run_on_gpu.sh"
    done = subprocess.run(
        ["bash", str(script), "h200"], env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    calls = (out / "calls").read_text().splitlines()
    assert sum("profiler.measure h200" in c for c in calls) == 3  # twice it died
    assert sum("profiler.serve run serve-h200" in c for c in calls) == 3  # never well, never for ever
    assert done.returncode == 2
    assert "status 139" in done.stdout
    assert "measurements.jsonl" in done.stdout
    assert json.loads((out / "served-a-decoder.json").read_text()) == {}


def test_without_nvml_readings_are_empty_and_nothing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    meter = devices.Meter("cuda")
    assert (meter.driver(), meter.clock_mhz(), meter.energy_j()) == (None, None, None)
    broken = SimpleNamespace(nvmlInit=lambda: None, nvmlDeviceGetHandleByIndex=lambda _: 0)
    monkeypatch.setitem(sys.modules, "pynvml", broken)
    assert devices.Meter("cuda").state()["sm_mhz"] is None
