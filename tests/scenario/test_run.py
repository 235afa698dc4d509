from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from simulator.core.errors import HardwareError, ModelError, PolicyError, TraceError, UserError
from simulator.replica.records import SimulationRecords, Status
from simulator.scenario.load import load, located
from simulator.scenario.result import Result, check_folder
from simulator.scenario.run import run
from simulator.scenario.setup import build
from simulator.scenario.source import override, parse_source, read_source
from simulator.scenario.trace import make_trace
from simulator.scenario.validate import validate

SCENARIOS = Path(__file__).resolve().parents[2] / "scenarios"
TEXT = """\
name: demo
model: meta-llama/Llama-3.1-8B
hardware: H100-SXM
workload:
  synthetic:
    num_requests: 200
    arrivals: {process: poisson, rate: 8}
    lengths:
      prompt: {distribution: uniform, low: 10, high: 800}
      output: {distribution: uniform, low: 1, high: 150}
slo: {ttft_s: 1, tpot_s: 50 ms}
"""


def result(*sets: str, seed: int | None = None) -> Result:
    return run(validate(override(parse_source(TEXT), sets)), seed)


def same(a: SimulationRecords, b: SimulationRecords) -> bool:
    return all(
        np.array_equal(getattr(a.requests, f.name), getattr(b.requests, f.name), equal_nan=f.name != "status")
        for f in dataclasses.fields(a.requests)
    )


class TestRun:
    def test_every_request_is_served_and_judged(self) -> None:
        found = result()
        assert (found.records.requests.status == Status.FINISHED).all()
        assert found.summary["slo"]["judged_requests"] == 200
        assert found.summary["stability"]["verdict"] == "stable"
        assert found.summary["cost"]["usd_per_hour"] > 0

    def test_same_seed_same_bytes_other_seed_other_bytes(self) -> None:
        first, again, other = result(seed=3), result(seed=3), result(seed=4)
        assert json.dumps(first.summary) == json.dumps(again.summary)
        assert first.provenance["scenario_sha256"] == again.provenance["scenario_sha256"]
        assert same(first.records, again.records)
        assert not same(first.records, other.records)
        assert first.provenance["scenario_sha256"] != other.provenance["scenario_sha256"]

    def test_steps_one_by_one_give_the_same_requests_as_spans(self) -> None:
        assert same(result().records, result("run.mode=step").records)

    def test_the_seed_of_the_lengths_is_not_that_of_the_arrivals(self) -> None:
        short, long = result(), result("workload.synthetic.lengths.output=10")
        assert (short.trace.arrival == long.trace.arrival).all()
        assert (short.trace.prompt_tokens == long.trace.prompt_tokens).all()

    def test_progress_is_told(self) -> None:
        seen: list[tuple[float, int, int]] = []
        run(validate(parse_source(TEXT)), progress=lambda now, arrived, total: seen.append((now, arrived, total)))
        assert seen
        assert {total for _, _, total in seen} == {200}
        assert seen == sorted(seen)


class TestEveryKnobMatters:
    @pytest.mark.parametrize(
        "setting",
        [
            "engine.max_num_seqs=2",
            "engine.max_num_batched_tokens=64",
            "engine.num_gpu_blocks_override=8300",
            "engine.gpu_memory_utilization=0.5",
            "engine.tensor_parallel_size=2",
            "engine.enable_chunked_prefill=false",
            "engine.long_prefill_token_threshold=32",
            "engine.async_scheduling=false",
            "engine.enforce_eager=true",
            "engine.block_size=64",
            "engine.max_model_len=700",
            "model.quantization=fp8",
            "model.kv_cache_dtype=fp8",
            "model.name=Qwen/Qwen3-8B",
            "hardware.gpu=A100",
            "hardware.price_per_gpu_hour=77",
            "workload.closed_loop={users: 3}",
            "workload.transforms=[{scale_rate: 3}]",
            "workload.transforms=[{to_rate: 3}]",
            "workload.transforms=[{arrivals: {process: constant, rate: 3}}]",
            "workload.transforms=[{window: {start_s: 2, end_s: 9}}]",
            "workload.transforms=[{sample: 0.5}]",
            "workload.transforms=[{repeat: 2}]",
            "workload.transforms=[{clip: {max_output_tokens: 5}}]",
            "workload.transforms=[{clip: {max_prompt_tokens: 50}}]",
            "workload.transforms=[{head: 20}]",
            "run.horizon_s=5",
            "run.warmup_s=5",
            "run.cooldown_s=5",
            "slo.ttft_s=1 ms",
            "slo.percentile=50",
            "seed=5",
        ],
    )
    def test_a_field_that_is_accepted_changes_the_outcome(self, setting: str) -> None:
        settings = ["hardware=" + "{gpu: H100-SXM}"] if setting.startswith("hardware.") else []
        settings += ["model={name: meta-llama/Llama-3.1-8B}"] if setting.startswith("model.") else []
        settings += ["engine.max_num_batched_tokens=1024"] if "chunked" in setting else []
        assert result(*settings, setting).summary != result(*settings).summary

    @pytest.mark.parametrize(
        "setting",
        ["engine.watermark=0.3", "engine.scheduler_reserve_full_isl=false", "engine.scheduling_policy=priority"],
    )
    def test_what_matters_only_under_memory_pressure_reaches_the_engine(self, setting: str) -> None:
        name = setting.partition(".")[2].partition("=")[0]
        changed, plain = (build(validate(override(parse_source(TEXT), s))).args for s in ([setting], []))
        assert getattr(changed, name) != getattr(plain, name)


class TestDefaults:
    def test_batch_limits_follow_the_gpu_as_in_vllm(self) -> None:
        small = build(validate(override(parse_source(TEXT), ["hardware=L4", "engine.max_model_len=4096"]))).args
        large = build(validate(parse_source(TEXT))).args
        assert (small.max_num_seqs, small.max_num_batched_tokens) == (256, 2048)
        assert (large.max_num_seqs, large.max_num_batched_tokens) == (1024, 8192)

    def test_the_scenario_that_was_run_says_what_was_chosen(self) -> None:
        assert result().scenario.engine.max_num_seqs == 1024
        assert result().scenario.engine.max_model_len == 131072

    def test_slo_limits_replace_those_of_the_preset(self) -> None:
        spec = "slo={preset: mlperf-llama3.1-8b-server, tpot_s: 40 ms}"
        slo = build(validate(override(parse_source(TEXT), [spec]))).slo
        assert slo is not None
        assert (slo.ttft_s, slo.tpot_s, slo.percentile) == (2.0, 0.04, 99.0)

    def test_models_with_several_kinds_of_attention_get_the_tokens_vllm_reports(self) -> None:
        setup = build(validate(override(parse_source(TEXT), ["model=openai/gpt-oss-20b"])))
        assert len(setup.memory.layout.groups) > 1
        tokens = (setup.num_gpu_blocks - 1) * setup.args.block_size
        assert 0 <= setup.memory.kv_tokens - tokens < setup.args.block_size


class TestErrorsAreLocated:
    @pytest.mark.parametrize(
        ("setting", "kind", "where", "text"),
        [
            ("model=llama-9", ModelError, "model", "unknown model"),
            ("model={config: nowhere.json}", ModelError, "model.config", "nowhere.json"),
            ("hardware=H1000", HardwareError, "hardware.gpu", "unknown GPU"),
            ("hardware=L4", HardwareError, "engine.max_model_len", "short"),
            ("model=meta-llama/Llama-3.1-70B", HardwareError, "model", "does not fit"),
            ("engine.max_model_len=999999", ModelError, "engine.max_model_len", "exceeds"),
            ("engine.policy=vlm", PolicyError, "engine.policy", "Did you mean 'vllm'?"),
            ("engine.policy=nowhere:X", PolicyError, "engine.policy", "cannot import"),
            ("model={name: llama-3.1-8b, dtype: float17}", ModelError, "model", "float17"),
            ("slo=mlperf-llama", UserError, "slo.preset", "unknown SLO preset"),
            ("workload={trace: nowhere.csv}", TraceError, "workload.trace", "nowhere.csv"),
            ("workload={preset: azure-chat}", TraceError, "workload.preset", "azure-chat"),
            (
                "workload.transforms=[{window: {start_s: 1 h, end_s: 2 h}}]",
                TraceError,
                "workload.transforms.0",
                "no request",
            ),
            ("run.warmup_s=1 h", UserError, "run", "nothing to measure"),
        ],
    )
    def test_file_line_path_value_and_remedy(self, setting: str, kind: type[UserError], where: str, text: str) -> None:
        source = override(parse_source(TEXT, name="demo.yaml"), [setting])
        with pytest.raises(kind) as caught, located(source):
            run(validate(source))
        assert str(caught.value).startswith(("--set", "demo.yaml:"))
        assert where in str(caught.value)
        assert text in str(caught.value)

    def test_the_line_in_the_file(self) -> None:
        source = parse_source(TEXT.replace("H100-SXM", "H100-SMX"), name="demo.yaml")
        with pytest.raises(HardwareError, match=r"^demo.yaml:3: hardware.gpu: unknown GPU"), located(source):
            run(validate(source))

    def test_of_what_the_simulation_refuses_too(self) -> None:
        text = TEXT + "cluster:\n  replicas: 2\n  migration: {}\n"
        line = 1 + text[: text.index("  migration:")].count("\n")
        source = override(parse_source(text, name="demo.yaml"), ["engine={policy: static}"])
        with pytest.raises(UserError, match=rf"^demo.yaml:{line}: cluster.migration: "), located(source):
            run(validate(source))


class TestPaths:
    def test_paths_start_at_the_file_and_overrides_where_the_user_is(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "a").mkdir()
        (tmp_path / "b").mkdir()
        table = "arrival,prompt_tokens,output_tokens\n0,10,2\n"
        (tmp_path / "a" / "x.csv").write_text(table)
        (tmp_path / "b" / "x.csv").write_text(table + "1,10,2\n")
        (tmp_path / "a" / "s.yaml").write_text(
            "model: llama-3.1-8b\nhardware: H100\nworkload: {trace: {path: x.csv}}\n"
        )
        monkeypatch.chdir(tmp_path / "b")
        in_file = load("../a/s.yaml")
        overridden = load("../a/s.yaml", ["workload.trace.path=x.csv"])
        assert len(make_trace(in_file.workload, 0)) == 1
        assert len(make_trace(overridden.workload, 0)) == 2
        assert in_file.name == "s"


class TestResultFolder:
    def test_everything_is_there_and_reads_back(self, tmp_path: Path) -> None:
        found = result()
        written = found.write(tmp_path / "out", perfetto=True, steps="spans")
        assert set(written) == {
            "aiperf.json", "provenance.json", "report.html", "requests.parquet", "scenario.yaml", "steps.parquet",
            "summary.json", "trace.json", "vllm_bench.json",
        }  # fmt: skip
        assert json.loads(written["summary.json"].read_text()) == found.summary
        assert json.loads(written["vllm_bench.json"].read_text())["completed"] == 200
        assert len(pd.read_parquet(written["requests.parquet"])) == 200
        assert "demo" in written["report.html"].read_text()
        assert json.loads(written["trace.json"].read_text())["traceEvents"]

    def test_the_written_scenario_runs_to_the_same_result(self, tmp_path: Path) -> None:
        table = tmp_path / "x.csv"
        table.write_text(
            "arrival,prompt_tokens,output_tokens\n" + "".join(f"{i / 9},{i + 5},{i % 7 + 1}\n" for i in range(50))
        )
        scenario = validate(override(parse_source(TEXT), [f"workload={{trace: {{path: {table}}}}}"]))
        first = run(scenario, 7)
        first.write(tmp_path / "out" / "deep")
        again = run(load(tmp_path / "out" / "deep" / "scenario.yaml"))
        assert again.summary == first.summary
        assert again.provenance["scenario_sha256"] == first.provenance["scenario_sha256"]

    def test_equal_runs_write_equal_bytes(self, tmp_path: Path) -> None:
        first, again = result().write(tmp_path / "a"), result().write(tmp_path / "b")
        for name in ("summary.json", "vllm_bench.json", "aiperf.json", "requests.parquet"):
            assert first[name].read_bytes() == again[name].read_bytes(), name

    def test_only_a_run_is_replaced(self, tmp_path: Path) -> None:
        found, mine = result(), tmp_path / "mine"
        mine.mkdir()
        check_folder(mine)
        (mine / "thesis.tex").write_text("years of work")
        with pytest.raises(UserError, match="would be replaced"):
            found.write(mine)
        assert (mine / "thesis.tex").read_text() == "years of work"
        with pytest.raises(UserError, match="is a file"):
            check_folder(mine / "thesis.tex")
        found.write(tmp_path / "run", steps="all")
        assert not (found.write(tmp_path / "run")["report.html"].parent / "steps.parquet").exists()

    def test_an_interruption_leaves_what_was_there(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        found = result()
        before = found.write(tmp_path / "run")["summary.json"].read_bytes()

        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(Result, "_write_report", interrupt)
        with pytest.raises(KeyboardInterrupt):
            found.write(tmp_path / "run")
        assert [path.name for path in tmp_path.iterdir()] == ["run"]
        assert (tmp_path / "run" / "summary.json").read_bytes() == before


class TestShippedScenarios:
    @pytest.mark.parametrize("path", sorted(SCENARIOS.glob("*.yaml")), ids=lambda path: path.stem)
    def test_each_is_valid_and_its_model_fits(self, path: Path) -> None:
        scenario = load(path)
        assert scenario.name == path.stem
        assert scenario.description
        assert build(scenario).memory.max_concurrency >= 1

    def test_the_quickstart_runs(self) -> None:
        found = run(load(SCENARIOS / "quickstart.yaml"))
        assert found.summary["requests"]["finished"] == 2000
        assert found.provenance["run_time"]["simulation_wall_s"] < 30

    @pytest.mark.parametrize(
        ("name", "trace"),
        [
            ("azure-conv", "azure-2023/AzureLLMInferenceTrace_conv.csv.gz"),
            ("azure-code", "azure-2023/AzureLLMInferenceTrace_code.csv.gz"),
            ("mooncake-conversation", "mooncake/conversation_trace.jsonl.gz"),
        ],
    )
    def test_the_examples_run_on_the_real_traces(self, shared_data: Path, name: str, trace: str) -> None:
        path = f"workload.trace.path={shared_data / 'traces' / trace}"
        found = run(load(SCENARIOS / f"{name}.yaml", [path, "workload.transforms=[{head: 300}]"]))
        assert found.summary["requests"]["finished"] == 300

    def test_a_trace_that_is_missing_is_named(self, tmp_path: Path) -> None:
        shutil.copy(SCENARIOS / "azure-conv.yaml", tmp_path)
        with pytest.raises(TraceError, match=r"AzureLLMInferenceTrace_conv\.csv"):
            run(load(tmp_path / "azure-conv.yaml"))

    def test_a_source_reads_each_file(self) -> None:
        for path in SCENARIOS.glob("*.yaml"):
            assert read_source(path).data["name"] == path.stem
