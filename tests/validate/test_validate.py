"""Each kind of measurement, made by the simulator itself with a known offset, shows exactly that error."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from profiler.validate import closed_loop, phases, rates, requests, steps, training
from profiler.validate.kinds import KINDS, discover
from profiler.validate.reading import MeasurementError
from profiler.validate.residuals import Comparison, Residual, mape, over
from profiler.validate.run import metrics, validate
from profiler.validate.served import Options, uniform_lengths
from simulator.cli.main import app
from simulator.cost.defaults import engine_overhead, overhead_of_version, overhead_presets
from simulator.hardware.gpu import gpu

OPTIONS = Options(calibration="roofline")


def write_csv(path: Path, rows: Sequence[dict[str, object]]) -> Path:
    with gzip.open(path, "wt", newline="") if path.suffix == ".gz" else path.open("w", newline="") as out:
        writer = csv.DictWriter(out, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def predictions(found: Comparison) -> dict[tuple[str, str], float]:
    return {(r.case, r.metric): r.predicted for r in found.residuals}


def loop_row(**given: object) -> dict[str, object]:
    return {
        "id": "a", "measured_date": "2030-01-01", "backend_version": "0.18.0", "model_path": "meta-llama/Llama-3.1-8B",
        "system": "h100_sxm", "prec": "bf16", "isl": 256, "osl": 64, "conc": 4, "tp_size": 1, "silicon_ttft_ms": 1.0,
        "silicon_tpot_ms": 1.0, "sat": "False",
        "protocol": "closed loop max_concurrency=conc, 10*conc prompts, len~U[0.8,1]*nominal", **given,
    }  # fmt: skip


def step_rows(periods_us: Sequence[float], decodes: int = 8) -> list[dict[str, object]]:
    start = np.concatenate([[0.0], np.cumsum(periods_us)])
    return [
        {
            "step.id": i, "step.ts_start_ns": int(t * 1e3), "batch.num_prefill_reqs": 0, "batch.num_decode_reqs": decodes,
            "batch.prefill_tokens": 0, "kv.blocks_total_gpu": 1001, "kv.blocks_free_gpu": 600, "cycle_time_us": "",
            "model": "meta-llama/Llama-3.1-8B", "tp": 1,
        }
        for i, t in enumerate(start)
    ]  # fmt: skip


def phase_rows(
    prompts: Sequence[int], outputs: Sequence[int], prefill: float, per_token: float
) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for i, (prompt, output) in enumerate(zip(prompts, outputs, strict=True)):
        begin = 100.0 * i  # far apart: each is served alone
        both = {"request_id": f"r{i}", "model": "Qwen/Qwen3-8B"}
        rows += [
            {**both, "phase_type": "prefill", "t_start": begin, "t_end": begin + prefill, "prefill_tokens": prompt, "decode_tokens": 0},
            {**both, "phase_type": "decode", "t_start": begin + prefill, "t_end": begin + prefill + output * per_token,
             "prefill_tokens": 0, "decode_tokens": output},
        ]  # fmt: skip
    return rows


def rate_row(**given: object) -> dict[str, object]:
    return {
        "exp": "x", "model": "meta-llama/Llama-3.1-8B", "gpu": "H100-SXM-80GB", "tp": 1, "vllm": "fork of v0.15.1 (tracing)",
        "max_num_batched_tokens": 2048, "max_num_seqs": 128, "stage": 0, "rate_rps": "5", "duration_s": 60,
        "sys_prompt_len": 100, "output_len": 30, "n_requests": 300, "prompt_len_mean": 591.6, "ttft_mean_ms": 1.0,
        "tpot_mean_ms": 1.0, "e2e_mean_ms": 1.0, "usable": "yes", **given,
    }  # fmt: skip


def request_folder(folder: Path, rows: Sequence[dict[str, object]], blocks: dict[str, list[int]] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    arguments = {
        "model": "meta-llama/Llama-3.1-8B",
        "max_num_seqs": 4,
        "max_num_batched_tokens": 2048,
        "dtype": "bfloat16",
    }
    (folder / "meta.json").write_text(
        json.dumps({"vllm_version": "0.19.0", "gpu": "H100-SXM", "engine_kwargs": arguments})
    )
    (folder / "requests.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    if blocks is not None:
        lines = [json.dumps({"request_id": k, "block_ids": v}) + "\n" for k, v in blocks.items()]
        (folder / "prompt_blocks.jsonl").write_text("".join(lines))
    return folder


def request_rows(
    times: Sequence[tuple[float, float, float]], prompt: int = 160, output: int = 20
) -> list[dict[str, object]]:
    return [
        {
            "request_id": f"q{i}",
            "input_toks": prompt,
            "output_toks": output,
            "queued_ts": a,
            "first_token_ts": f,
            "last_token_ts": e,
        }
        for i, (a, f, e) in enumerate(times)
    ]


def test_a_closed_loop_row_a_fifth_slower_than_the_simulator_is_a_fifth_off(tmp_path: Path) -> None:
    first = closed_loop.compare(write_csv(tmp_path / "a.csv", [loop_row()]), OPTIONS)
    own = predictions(first)
    slower = loop_row(silicon_ttft_ms=own["a", "ttft"] * 1.25, silicon_tpot_ms=own["a", "tpot"] / 1.1)
    found = closed_loop.compare(write_csv(tmp_path / "b.csv", [slower]), OPTIONS)
    values = {m.name: m.value for m in closed_loop.summary(found.residuals)}
    assert values["closed_loop.ttft.mape"] == pytest.approx(20.0)
    assert values["closed_loop.ttft.bias"] == pytest.approx(-20.0)
    assert values["closed_loop.tpot.mape"] == pytest.approx(10.0)
    assert values["closed_loop.rows"] == 1


def test_saturated_rows_are_reported_apart(tmp_path: Path) -> None:
    own = predictions(closed_loop.compare(write_csv(tmp_path / "a.csv", [loop_row()]), OPTIONS))
    exact = {"silicon_ttft_ms": own["a", "ttft"], "silicon_tpot_ms": own["a", "tpot"]}
    rows = [loop_row(**exact), loop_row(id="b", sat="True", silicon_ttft_ms=1e6, silicon_tpot_ms=1e6)]
    found = closed_loop.compare(write_csv(tmp_path / "b.csv", rows), OPTIONS)
    values = {m.name: m.value for m in closed_loop.summary(found.residuals)}
    assert values["closed_loop.ttft.mape"] == pytest.approx(0.0, abs=1e-9)
    assert values["closed_loop.saturated.ttft.mape"] > 99
    assert values["closed_loop.saturated.rows"] == 1


def test_lengths_and_prompts_follow_the_protocol() -> None:
    lengths = uniform_lengths(1000, 0.8, 5000, 0, "prompt")
    assert (lengths.min(), lengths.max()) == (800, 1000)
    assert lengths.mean() == pytest.approx(900, rel=0.01)
    assert (lengths == uniform_lengths(1000, 0.8, 5000, 0, "prompt")).all()


def test_step_periods_come_from_the_records_own_clock(tmp_path: Path) -> None:
    flat = steps.compare(write_csv(tmp_path / "a.csv", step_rows([1000.0] * 6)), OPTIONS)
    price_us = flat.residuals[0].predicted * 1e3
    rows = step_rows([price_us * 1.25] * 6)
    rows[2]["cycle_time_us"] = price_us / 2  # two tokens reached the client together
    rows[3]["cycle_time_us"] = price_us
    found = steps.compare(write_csv(tmp_path / "b.csv.gz", rows), OPTIONS)
    values = {m.name: m.value for m in steps.summary(found.residuals)}
    assert values["steps.period.median"] == pytest.approx(20.0, abs=0.01)
    assert values["steps.periods"] == 6
    assert values["steps.cycle_time.median"] == pytest.approx(50.0)
    assert values["steps.cycle_time.median.whole"] == pytest.approx(0.0, abs=1e-6)
    assert "50% of 2 rows" in found.notes[1]


def test_records_far_apart_time_no_step(tmp_path: Path) -> None:
    rows = step_rows([1000.0] * 2)
    rows[1]["step.id"], rows[2]["step.id"] = 100, 200
    with pytest.raises(MeasurementError, match="no two records"):
        steps.compare(write_csv(tmp_path / "a.csv", rows), OPTIONS)


def test_phases_of_single_requests(tmp_path: Path) -> None:
    first = phases.compare(write_csv(tmp_path / "a.csv", phase_rows([700], [50], 1.0, 1.0)), OPTIONS)
    own = {r.metric: r.predicted / 1e3 for r in first.residuals}
    rows = phase_rows([700], [50], own["prefill"] * 2, own["decode_per_token"] / 1.5)
    found = phases.compare(write_csv(tmp_path / "b.csv", rows), OPTIONS)
    values = {m.name: m.value for m in phases.summary(found.residuals)}
    assert values["phases.prefill.mape"] == pytest.approx(50.0)
    assert values["phases.decode_per_token.mape"] == pytest.approx(50.0)


def test_a_warm_cache_is_simulated_as_one(tmp_path: Path) -> None:
    own = predictions(rates.compare(write_csv(tmp_path / "a.csv", [rate_row()]), OPTIONS))
    exact = {f"{name}_mean_ms": own["x:5/s", name] for name in ("ttft", "tpot", "e2e")}
    rows = [rate_row(**exact), rate_row(**exact, stage=-1), rate_row(exp="y", usable="no: overloaded", rate_rps=6)]
    found = rates.compare(write_csv(tmp_path / "b.csv", rows), OPTIONS)
    values = {m.name: m.value for m in rates.summary(found.residuals)}
    assert values["rates.ttft.mape"] == pytest.approx(0.0, abs=1e-9)
    assert values["rates.rows"] == 1
    cold = predictions(
        rates.compare(write_csv(tmp_path / "c.csv", [rate_row(sys_prompt_len=591, prompt_len_mean=4000)]), OPTIONS)
    )
    assert cold["x:5/s", "ttft"] < 3 * own["x:5/s", "ttft"]  # 4,000 tokens would take far longer if they were computed


def test_request_logs_report_errors_of_means_and_percentiles(tmp_path: Path) -> None:
    queued = [5.0, 5.2, 9.0]
    first = requests.compare(request_folder(tmp_path / "a", request_rows([(q, q + 1, q + 2) for q in queued])), OPTIONS)
    own = predictions(first)
    times = []
    for i, q in enumerate(queued):
        ttft, tpot = own[f"a:q{i}", "ttft"] * 1.25, own[f"a:q{i}", "tpot"] * 1.25
        times.append((q, q + ttft, q + ttft + 19 * tpot))
    found = requests.compare(request_folder(tmp_path / "b", request_rows(times)), OPTIONS)
    values = {m.name: m.value for m in requests.summary(found.residuals)}
    for name in (
        "requests.ttft.mean.error",
        "requests.ttft.p99.error",
        "requests.tpot.mean.error",
        "requests.e2e.mean.error",
    ):
        assert values[name] == pytest.approx(-20.0, abs=1e-4), name
    assert values["requests.ttft.per_request_median"] == pytest.approx(20.0, abs=1e-4)


def test_prompt_blocks_make_prefix_hits(tmp_path: Path) -> None:
    rows = request_rows([(0.0, 1.0, 2.0), (50.0, 51.0, 52.0)], prompt=1600)
    same = {"q0": list(range(100)), "q1": list(range(100))}
    other = {"q0": list(range(100)), "q1": list(range(100, 200))}
    ttft = {}
    for name, blocks in (("same", same), ("other", other)):
        found = predictions(requests.compare(request_folder(tmp_path / name, rows, blocks), OPTIONS))
        ttft[name] = found[f"{name}:q1", "ttft"]
    assert ttft["same"] < 0.6 * ttft["other"]


def test_every_kind_is_found_from_its_content(tmp_path: Path) -> None:
    write_csv(tmp_path / "one.csv", [loop_row()])
    write_csv(tmp_path / "two.csv.gz", step_rows([1000.0]))
    write_csv(tmp_path / "three.csv", phase_rows([10], [2], 1.0, 1.0))
    write_csv(tmp_path / "four.csv", [rate_row()])
    request_folder(tmp_path / "deep" / "log", request_rows([(0.0, 1.0, 2.0)]))
    (tmp_path / "README.md").write_text("not a measurement")
    assert {m.kind for m in discover(tmp_path)} == set(KINDS) - {"kernels"}
    assert [m.kind for m in discover(tmp_path / "deep" / "log")] == ["requests"]


BROKEN: list[tuple[str, Callable[[Path], object], str]] = [
    ("missing", lambda p: None, "no such file or folder"),
    ("unknown.csv", lambda p: p.write_text("a,b\n1,2\n"), "no measurement of a known kind"),
    ("empty.csv", lambda p: p.write_text(""), "no measurement of a known kind"),
    ("binary.csv", lambda p: p.write_bytes(b"\xff\xfe\x00\x01"), "no measurement of a known kind"),
    ("headeronly.csv", lambda p: p.write_text(",".join(loop_row()) + "\n"), "holds no rows"),
    ("number.csv", lambda p: write_csv(p, [loop_row(), loop_row(silicon_ttft_ms="fast")]), "row 2, column silicon_ttft_ms"),
    ("negative.csv", lambda p: write_csv(p, [loop_row(conc=-4)]), "row 1, column conc"),
    ("protocol.csv", lambda p: write_csv(p, [loop_row(protocol="open loop")]), "row 1, column protocol"),
    ("model.csv", lambda p: write_csv(p, [loop_row(model_path="nobody/none")]), "unknown model"),
    ("gpu.csv", lambda p: write_csv(p, [loop_row(system="h1000")]), "unknown GPU"),
    ("phase.csv", lambda p: write_csv(p, [{**phase_rows([5], [2], 1.0, 1.0)[0], "phase_type": "idle"}]), "unknown phase"),
    ("back.csv", lambda p: write_csv(p, phase_rows([5], [2], -1.0, 1.0)), "before its start"),
    ("column.csv", lambda p: write_csv(p, [{"step.id": 1, "batch.num_decode_reqs": 1}]), "lacks the column"),
    ("truncated.csv.gz", lambda p: p.write_bytes(gzip.compress(b"step.id,batch.num_decode_reqs\n1,2\n" * 99)[:40]), "known kind"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "make", "message"), BROKEN, ids=[b[0] for b in BROKEN])
def test_bad_input_is_refused_with_its_place(
    tmp_path: Path, name: str, make: Callable[[Path], object], message: str
) -> None:
    path = tmp_path / name
    make(path)
    result = CliRunner().invoke(app, ["validate", str(path), "--calibration", "roofline"])
    assert result.exit_code == 2, result.output
    assert message in result.output
    assert name in result.output


def test_bad_request_logs_are_refused_with_their_line(tmp_path: Path) -> None:
    rows = request_rows([(0.0, 1.0, 2.0), (1.0, 2.0, 3.0)])
    del rows[1]["queued_ts"]
    with pytest.raises(MeasurementError, match=r"requests\.jsonl:2"):
        requests.compare(request_folder(tmp_path / "a", rows), OPTIONS)
    folder = request_folder(tmp_path / "b", request_rows([(0.0, 1.0, 2.0)]), {"other": [1]})
    with pytest.raises(MeasurementError, match="has no blocks of request 'q0'"):
        requests.compare(folder, OPTIONS)
    (folder / "prompt_blocks.jsonl").unlink()
    (folder / "meta.json").write_text("{}")
    with pytest.raises(MeasurementError, match="engine_kwargs"):
        requests.compare(folder, OPTIONS)


def test_rows_of_unknown_models_are_skipped_and_counted(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", [loop_row(model_path="nobody/none"), loop_row()])
    found = closed_loop.compare(path, OPTIONS)
    assert len(found.residuals) == 2
    assert found.notes[0].startswith("row 1 skipped: unknown model")


def test_the_command_prints_lines_and_writes_a_report(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", [loop_row(), loop_row(id="b", conc=8)])
    out = tmp_path / "report"
    result = CliRunner().invoke(app, ["validate", str(path), "--calibration", "roofline", "--out", str(out)])
    assert result.exit_code == 0, result.output
    lines = [line for line in result.stdout.splitlines() if "=" in line]
    assert any(line.startswith("closed_loop.ttft.mape=") and line.endswith(" %") for line in lines)
    names = {p.name for p in out.iterdir()}
    assert names == {"validation.html", "residuals.csv", "metrics.csv", "closed_loop.png", "predicted-measured.png"}
    assert (out / "closed_loop.png").read_bytes().startswith(b"\x89PNG")
    with (out / "residuals.csv").open() as rows:
        assert len(list(csv.DictReader(rows))) == 4
    page = (out / "validation.html").read_text()
    assert "closed_loop.tpot.mape" in page
    assert "http" not in page


def test_several_files_of_a_kind_are_pooled_and_told_apart(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_csv(tmp_path / f"{name}.csv", step_rows([1000.0] * 3))
    found = [m.name for m in metrics(validate([tmp_path], OPTIONS))]
    assert {"steps.period.median", "steps.period.median@a", "steps.period.median@b"} <= set(found)


def test_held_out_metrics_leave_the_training_rows_out() -> None:
    def one(error: float, part: str, metric: str = "ttft") -> Residual:
        return Residual("closed_loop", part, metric, "ms", 1.0 + error, 1.0, "m", "g", 1.0, part)

    found = {
        m.name: m.value
        for m in closed_loop.summary(
            [one(0.1, "train"), one(-0.3, "test"), one(9.0, "apart"), one(9.0, "apart", "tpot")]
        )
    }
    assert found["closed_loop.ttft.mape"] == pytest.approx(20.0)
    assert found["closed_loop.ttft.mape.held_out"] == pytest.approx(30.0)
    assert over([one(0.1, "train")], "nothing", mape) != over([one(0.1, "train")], "ttft", mape)


def test_training_rows_are_the_declared_ones_alone() -> None:
    row = {
        "model_path": "meta-llama/Llama-3.1-70B",
        "system": "h100_sxm",
        "tp_size": "4.0",
        "conc": "8.0",
        "measured_date": "2025-10-29",
    }
    assert training.is_training("closed_loop", row)
    for change in ({"conc": "16.0"}, {"tp_size": "8.0"}, {"system": "h200_sxm"}, {"measured_date": "2026-01-01"}):
        assert not training.is_training("closed_loop", {**row, **change})
    assert training.part("phases", {"file": "F_phases_dec11-train-qwen3b-1.csv"}) == "train"
    assert training.part("phases", {"file": "F_phases_dec15-testcontent-qwen1b-1.csv"}) == "test"
    assert training.part("requests", {"folder": "RTXPRO6000-Llama-3.1-8B"}) == "test"


def test_overhead_presets_are_physically_possible() -> None:
    presets = overhead_presets()
    assert {"vllm", "sglang", "torch-eager"} <= set(presets)
    for name in presets:
        found = engine_overhead(gpu("h100"), max_num_seqs=64, max_num_batched_tokens=8192, preset=name)
        assert 0 <= found.gpu_gap_s <= 1e-3, name
        assert 0 < found.cpu_step_s <= 6e-3, name
        assert 0 <= found.cpu_per_sequence_s <= 3e-5, name
        assert 1e-6 <= found.launch_s <= 6e-5, name
        assert 0 <= found.api_request_s <= 2e-2, name
        assert 0 <= found.api_token_s <= 5e-6, name
        assert found.source
    assert (
        engine_overhead(gpu("h100"), max_num_seqs=64, max_num_batched_tokens=8192, preset="torch-eager").graph_sizes
        == ()
    )


def test_a_release_runs_on_the_newest_preset_that_is_not_newer() -> None:
    assert overhead_of_version("0.10.2") == "vllm-0.10"
    assert overhead_of_version("0.9.1") == "vllm-0.10"
    assert overhead_of_version("0.18.0") == "vllm-0.15"
    assert overhead_of_version("0.12.3") == "vllm-0.11"


@pytest.fixture(scope="module")
def measured(shared_data: Path) -> Path:
    return shared_data / "measured"


def test_a_quick_part_of_the_published_measurements(measured: Path) -> None:
    """Within sight of the measurements: what docs/validation.md says in full, and would notice a lost term."""
    folder = measured / "vllm_steps" / "20260217-203421-llama-2-70b-hf-tp4-codegen.csv.gz"
    found = {m.name: m.value for m in metrics(validate([folder, measured / "vllm_phases"], Options()))}
    assert found["steps.period.median"] < 10
    assert found["phases.decode_per_token.mape"] < 25


def test_a_published_format_in_a_name_is_the_base_model_quantised(tmp_path: Path) -> None:
    rows = [loop_row(model_path="nvidia/Llama-3.1-8B-Instruct-FP8", prec="fp8"), loop_row(id="b", prec="bf16")]
    found = predictions(closed_loop.compare(write_csv(tmp_path / "a.csv", rows), OPTIONS))
    assert 0.5 < found["a", "tpot"] / found["b", "tpot"] < 0.8  # half the bytes, not of everything


def test_an_sglang_row_runs_sglangs_policy(tmp_path: Path) -> None:
    rows = [loop_row(backend="sglang", conc=16), loop_row(id="b", backend="vllm", conc=16)]
    found = predictions(closed_loop.compare(write_csv(tmp_path / "a.csv", rows), OPTIONS))
    assert found["a", "ttft"] != found["b", "ttft"]


def test_data_parallel_attention_is_skipped_with_its_reason(tmp_path: Path) -> None:
    rows = [loop_row(attention_dp_size=8.0), loop_row(id="b", attention_dp_size=1.0)]
    found = closed_loop.compare(write_csv(tmp_path / "a.csv", rows), OPTIONS)
    assert {r.case for r in found.residuals} == {"b"}
    assert "data-parallel attention" in found.notes[0]


def test_a_cold_cache_is_simulated_as_one(tmp_path: Path) -> None:
    rows = [rate_row(prefix_caching="on"), rate_row(exp="y", prefix_caching="off")]
    found = predictions(rates.compare(write_csv(tmp_path / "a.csv", rows), OPTIONS))
    assert found["y:5/s", "ttft"] > 1.2 * found["x:5/s", "ttft"]
