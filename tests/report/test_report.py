"""The report: what it says first, that it stands alone, and that a browser draws it."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from simulator.metrics import Slo, Summary, analyse, slo_preset, summarize
from simulator.report import diagnose, write_report
from simulator.report.figures import time_figures
from simulator.report.words import accuracy, percent, seconds, state, tone, verdict_sentence
from simulator.scenario import load, run
from tests.metrics.toy_engine import ToyConfig, ToyRequest, ToyRun, random_requests, run_toy
from traces.trace import Labels

SECTIONS = ["verdict", "slo", "latency", "over-time", "breakdown", "engines", "provenance", "scenario", "glossary"]
PROVENANCE = {
    "windtunnel": "0.1",
    "seed": 7,
    "calibration": {"name": "h100", "held_out_error": "4.1 %"},
    "command": "windtunnel run a.yaml --seed 7",
}


def stable() -> ToyRun:
    return run_toy(random_requests(3, 200, rate=4.0), ToyConfig(num_gpu_blocks=2000, max_num_seqs=32))


def overloaded() -> ToyRun:
    return run_toy(random_requests(4, 400, rate=25.0), ToyConfig(max_num_seqs=8, num_gpu_blocks=400))


def one() -> ToyRun:
    return run_toy([ToyRequest(0, 0.0, 20, 12)])


def nothing_finished() -> ToyRun:
    return run_toy([ToyRequest(i, 0.0, 20, 500) for i in range(2)], ToyConfig(horizon=1.0))


def all_rejected() -> ToyRun:
    return run_toy([ToyRequest(0, 0.0, 20, 12)], reject=(0,))


def nobody() -> ToyRun:
    return run_toy([])


CASES = [stable, overloaded, one, nothing_finished, all_rejected, nobody]


def render(toy: ToyRun, path: Path, slo: Slo | None = None, **more: object) -> tuple[str, Summary]:
    slo = slo or slo_preset("mlperf-llama2-70b-interactive")
    summary = summarize(toy.records, toy.trace, slo)
    write_report(
        path,
        title="A <test> & more",
        summary=summary,
        records=toy.records,
        trace=toy.trace,
        scenario_yaml="name: <x> & y\n",
        provenance=PROVENANCE,
        slo=slo,
        **more,  # type: ignore[arg-type]
    )
    return path.read_text(encoding="utf-8"), summary


class _Sections(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        if tag == "section":
            self.ids.append(named["id"] or "")
        self.links += [v for k, v in attrs if k in {"src", "href"} and v and not v.startswith("data:")]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.__name__)
def test_every_run_has_every_section_and_stands_alone(case: object, tmp_path: Path) -> None:
    text, _ = render(case(), tmp_path / "report.html")  # type: ignore[operator]
    found = _Sections()
    found.feed(text)
    assert [s for s in found.ids if s != "classes"] == SECTIONS
    assert not found.links
    assert "<script" not in text
    assert not re.search(r"\bnan\b|\bNone\b|\binf\b", re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL))
    assert "A &lt;test&gt; &amp; more" in text
    assert "name: &lt;x&gt; &amp; y" in text
    assert "windtunnel run a.yaml --seed 7" in text
    assert "Step times: calibration h100; held-out error: 4.1 %." in text  # at the top: how far to trust it


def test_an_overloaded_run_says_so_and_quotes_no_latency_percentile(tmp_path: Path) -> None:
    text, summary = render(overloaded(), tmp_path / "report.html", max_num_seqs=8)
    assert "cannot keep up" in text
    assert "max_num_seqs (running slots)" in text
    for metric in ("ttft_s", "tpot_s", "e2e_s"):
        assert seconds(summary["latency"][metric]["p99"]) not in text
    assert "TTFT by time of arrival" in text
    last = seconds(summary["stability"]["mean_ttft_of_last_tenth_s"])
    assert f"for the first tenth of the requests and {last} for the last" in text
    assert "TTFT is the engine's own" in render(stable(), tmp_path / "stable.html")[0]


def test_a_stable_run_states_rate_and_slo_in_one_sentence(tmp_path: Path) -> None:
    text, summary = render(stable(), tmp_path / "report.html")
    sentence = verdict_sentence(summary)
    assert sentence.startswith("This design keeps up with")
    assert "meets its SLO" in sentence
    assert sentence in text
    missed = summarize(stable().records, slo=Slo("tight", ttft_s=0.03))
    assert "misses its SLO: p99 TTFT is" in verdict_sentence(missed)
    assert "30 ms is allowed" in verdict_sentence(missed)


def test_a_verdict_does_not_hide_rejections() -> None:
    summary = summarize(stable().records, slo=slo_preset("mlperf-llama2-70b-server"))
    assert tone(summary) == "good"
    summary["requests"] |= {"finished": 160, "rejected": 40}
    assert "of which it rejects 20.0 % because they can never fit, and meets" in verdict_sentence(summary)
    assert state(summary) == "stable, requests rejected"
    assert tone(summary) == "warn"


def test_output_and_input_share_a_chart_only_where_both_can_be_read() -> None:
    def titles(prompt: int, output: int) -> list[str]:
        requests = [ToyRequest(i, 0.5 * i, prompt, output) for i in range(40)]
        toy = run_toy(requests, ToyConfig(num_gpu_blocks=2000, max_num_seqs=32, max_num_batched_tokens=512))
        return [figure.title for figure in time_figures(toy.records, analyse(toy.records), None)]

    assert "Token throughput" in titles(20, 20)
    assert {"Output tokens", "Input tokens"} <= set(titles(200, 4))


def test_percentiles_of_a_backlog_are_those_of_this_run_only(tmp_path: Path) -> None:
    at_once = run_toy([ToyRequest(i, 0.0, 10, 30) for i in range(40)])
    text, summary = render(at_once, tmp_path / "report.html")
    assert summary["stability"]["verdict"] == "backlogged"
    assert "TTFT p99 of this run" in text
    assert "read these as the history of this run" in text


def test_too_few_requests_make_no_rate(tmp_path: Path) -> None:
    text, summary = render(one(), tmp_path / "report.html")
    assert "too few to judge a rate" in verdict_sentence(summary)
    assert "keeps up with" not in text


def test_classes_are_listed(tmp_path: Path) -> None:
    toy = stable()
    labels = Labels((np.arange(200) % 2).astype(np.int32), ("gold & co", "free"))
    text, _ = render(replace(toy, trace=replace(toy.trace, tenant=labels)), tmp_path / "report.html")
    assert 'id="classes"' in text
    assert "gold &amp; co" in text


@pytest.mark.parametrize(
    ("config", "rate", "count", "limit"),
    [
        (ToyConfig(num_gpu_blocks=30, max_num_seqs=30), 8.0, 150, "KV cache capacity"),
        (ToyConfig(num_gpu_blocks=900, max_num_seqs=3), 8.0, 150, "max_num_seqs (running slots)"),
        (ToyConfig(num_gpu_blocks=9000, max_num_seqs=500, max_num_batched_tokens=16), 40.0, 150, "prefill compute"),
        (ToyConfig(num_gpu_blocks=9000, max_num_seqs=500), 1.0, 100, "nothing binds"),
    ],
)
def test_the_binding_constraint_is_the_one_that_was_made_scarce(
    config: ToyConfig, rate: float, count: int, limit: str
) -> None:
    toy = run_toy(random_requests(1, count, rate=rate), config)
    summary = summarize(toy.records, slo=slo_preset("mlperf-llama2-70b-server"))
    got = diagnose(summary, toy.records, max_num_seqs=config.max_num_seqs,
                   max_num_batched_tokens=config.max_num_batched_tokens)  # fmt: skip
    assert got.constraint.startswith(limit)
    assert got.evidence
    assert got.next_steps


def test_a_cache_without_room_for_one_more_request_is_the_limit_though_far_from_full() -> None:
    """As under contiguous reservation: two thirds are in use, and every request needs two thirds."""
    requests = [ToyRequest(i, 0.01 * i, 76, 4) for i in range(40)]
    config = ToyConfig(num_gpu_blocks=30, max_num_seqs=8, max_num_batched_tokens=1000)
    toy = run_toy(requests, config)
    summary = summarize(toy.records)
    assert summary["engine"]["kv_usage"]["max"] < 0.8
    got = diagnose(summary, toy.records, max_num_seqs=8, max_num_batched_tokens=1000)
    assert got.constraint == "KV cache capacity"


SLOTS = """\
model: meta-llama/Llama-3.1-8B
hardware: H100-SXM
engine: {max_num_seqs: 32}
workload:
  synthetic:
    num_requests: 400
    arrivals: {process: poisson, rate: 400}
    lengths: {prompt: 60, output: {distribution: uniform, low: 5, high: 25}}
"""


@pytest.mark.parametrize("asynchronous", [True, False])
def test_slots_that_are_taken_are_named_whichever_way_the_engine_schedules(asynchronous: bool, tmp_path: Path) -> None:
    """Planned a step ahead, a batch seldom fills its last slot: whoever ends with the step in flight still holds it."""
    path = tmp_path / "slots.yaml"
    path.write_text(SLOTS)
    scenario = load(path, [f"engine.async_scheduling={str(asynchronous).lower()}"])
    found = run(scenario)
    got = diagnose(found.summary, found.records, max_num_seqs=32, max_num_batched_tokens=8192)
    assert got.constraint == "max_num_seqs (running slots)"


def test_a_pace_that_misses_is_not_put_down_to_a_queue_that_is_in_time() -> None:
    """Bursts of prompts wait for each other, yet TTFT is met; what they spoil is the TPOT of those that decode."""
    requests = [ToyRequest(i, 2.0 * (i // 6) + 0.001 * (i % 6), 60, 10) for i in range(120)]
    toy = run_toy(requests, ToyConfig(num_gpu_blocks=9000, max_num_seqs=500, max_num_batched_tokens=24))
    loose = summarize(toy.records, slo=Slo("loose", ttft_s=60.0))
    queueing = diagnose(loose, toy.records, max_num_seqs=500, max_num_batched_tokens=24)
    assert queueing.constraint == "prefill compute (token budget)"
    strict = summarize(toy.records, slo=Slo("strict", ttft_s=60.0, tpot_s=1e-3))
    got = diagnose(strict, toy.records, max_num_seqs=500, max_num_batched_tokens=24)
    assert strict["stability"]["verdict"] == "stable"
    assert got.constraint in {"decodes share steps with prefills", "decode step time"}


def test_the_top_of_the_page_names_the_calibration_and_three_of_its_errors() -> None:
    errors = "gemm 4.8 %, prefill_attention 4.7 %, decode_attention 2.2 %, experts 7.3 %, all_reduce 3.1 %"
    text = accuracy({"calibration": {"name": "H100", "held_out_error": errors, "beyond_the_measurements": "x"}})
    assert text == (
        "calibration H100; held-out error: gemm 4.8 %, prefill attention 4.7 %, decode attention 2.2 %, 2 more under "
        "Provenance; extrapolated in part (see there)"
    )
    roofline = {"calibration": {"source": "data-sheet roofline, no calibration", "stated_error": "unknown"}}
    assert accuracy(roofline) == "data-sheet roofline, no calibration; error: unknown"
    assert accuracy({}) == "not stated"


def test_same_run_same_bytes(tmp_path: Path) -> None:
    a, _ = render(stable(), tmp_path / "a.html")
    b, _ = render(stable(), tmp_path / "b.html")
    assert a == b


def test_numbers_read_well() -> None:
    assert [seconds(v) for v in (None, 0.0, 8.5e-4, 0.024, 0.9996, 1.3, 95.0, 750.0, 26_000.0)] == [
        "–", "0 s", "850 µs", "24.0 ms", "1,000 ms", "1.30 s", "95.0 s", "12.5 min", "7.22 h",
    ]  # fmt: skip
    assert [percent(v) for v in (None, 0.0, 0.5, 0.99996, 1.0)] == ["–", "0 %", "50.0 %", ">99.9 %", "100 %"]


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine to render the report with")
def test_chromium_renders_it_without_a_console_message(tmp_path: Path) -> None:
    """A page with a probe added: it measures every chart once drawn, and the browser logs every complaint."""
    text, _ = render(stable(), tmp_path / "report.html")
    probe = (
        "<script>addEventListener('load',()=>{const s=[...document.querySelectorAll('svg')];"
        "const wide=document.documentElement.scrollWidth>innerWidth;"
        "document.title='drawn '+s.filter(x=>x.getBoundingClientRect().width>200&&x.getBBox().width>200).length"
        "+' of '+s.length+' overflow '+wide})</script>"
    )
    (tmp_path / "probed.html").write_text(text.replace("</body>", probe + "</body>"), encoding="utf-8")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        done = subprocess.run(
            [
                str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
                "--disable-background-networking", "--disable-component-update", "--disable-sync",
                "--enable-logging=stderr", "--v=0", f"--user-data-dir={profile}", "--window-size=1200,2000",
                "--dump-dom", (tmp_path / "probed.html").as_uri(),
            ],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "CONSOLE" not in done.stderr
    charts = text.count("<svg")
    assert charts >= 8
    assert f"<title>drawn {charts} of {charts} overflow false</title>" in done.stdout
    for section in SECTIONS:
        assert f'id="{section}"' in done.stdout
