"""Served against simulated: a run the simulator made itself must be predicted exactly, a slower one must show by how much."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from profiler.measure.errors import CampaignError
from profiler.measure.models import from_config
from profiler.serve import record
from profiler.serve.calibrated import NOTHING, calibrated_cost
from profiler.serve.compare import compare
from profiler.serve.predict import Overhead, TableCost, predict, probe_overhead
from profiler.serve.record import Load, Run, Served, Step
from profiler.serve.spec import load
from profiler.serve.tables import Grid2, Line1, Tables
from profiler.serve.workload import closed_batch, requests
from simulator.core.errors import CalibrationError
from simulator.cost.calibrated import cost_model
from simulator.cost.calibration import choose
from simulator.cost.placement import Deployment
from simulator.hardware.gpu import gpu
from simulator.model.config import from_config as from_model_config

ROOT = Path(__file__).resolve().parents[3]
MODEL = {
    "name": "tiny", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 16, "intermediate_size": 96, "vocab_size": 128,
}  # fmt: skip
SHAPE = from_config(MODEL, "tiny", "here")
ENGINE = {"name": "decoder", "attention": "loop over sequences",
          "settings": {"max_num_seqs": 4, "max_num_batched_tokens": 64, "block_size": 16, "num_blocks": 64}}  # fmt: skip
TRUTH = Overhead(step_s=2e-3, sequence_s=3e-4)


def kernels_file(folder: Path, *, times: float = 1.0) -> Path:
    """Measurements that obey simple laws: 1 µs a token and matrix, attention by pairs."""
    rows: list[dict[str, object]] = [{"kind": "header", "schema": 1, "device": {"type": "cpu", "name": "made up"}}]

    def point(op: str, seconds: float, **fields: object) -> None:
        rows.append(
            {"kind": "point", "id": str(len(rows)), "op": op, "dtype": "fp32", "median_s": seconds * times, **fields}
        )

    heads = {"heads": 4, "kv_heads": 2, "head_dim": 16}
    for tokens in (1, 2, 4, 8, 16, 32, 64):
        for n, k in SHAPE.linears.values():
            point("gemm", 1e-5 + 1e-6 * tokens, m=tokens, n=n, k=k)
        for name, width in (
            ("add_rms_norm", 64),
            ("rms_norm", 64),
            ("rope_and_cache", SHAPE.qkv),
            ("silu_mul", 96),
            ("embedding", 64),
            ("sample_greedy", 128),
        ):
            point("elementwise", 1e-6 * tokens, kernel=name, width=width, tokens=tokens)
        for old in (0, 16, 64):
            point(
                "prefill_attention",
                1e-5 + 1e-8 * tokens * (tokens + old),
                batch=1,
                new_tokens=tokens,
                computed_tokens=old,
                window=None,
                backend="sdpa",
                **heads,
            )
    for batch in (1, 2, 4):
        for context in (1, 16, 64, 256):
            point(
                "decode_attention",
                1e-7 * batch * context,
                batch=batch,
                context_sum=batch * context,
                spread="equal",
                window=None,
                backend="loop",
                **heads,
            )
    path = folder / f"kernels-{times}.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path


def served_run(kernels: Path, *, slower: float = 1.0) -> Run:
    """What an engine with exactly these kernels and this overhead would leave behind."""
    cost = TableCost(Tables(kernels, "fp32"), SHAPE, ENGINE, TRUTH)
    probe = []
    for n in (1, 2, 4):
        moment = 0.0
        for j in range(6):
            chunks = [(10, 0)] * n if j == 0 else []
            decodes, context = (0, 0) if j == 0 else (n, n * (10 + j))
            end = moment + slower * cost.seconds(decodes, context, chunks, n)
            probe.append(Step(moment, end, decodes, context, chunks))
            moment = end
    rng = np.random.default_rng(1)
    due = [Served(float(a), int(p), int(o)) for a, p, o in zip(
        np.cumsum(rng.exponential(0.05, 30)), rng.integers(4, 60, 30), rng.integers(2, 12, 30), strict=True)]  # fmt: skip
    run = Run(
        {"type": "cpu"},
        {},
        ENGINE,
        MODEL,
        "fp32",
        0,
        "cpu",
        "2026-01-01",
        probe,
        [Load("low", 20.0, due, probe, [1.0, 1.0])],
    )
    found = predict(run, run.loads[0], cost).requests
    for i, r in enumerate(due):
        r.first_token_s = float(found.first_token[i])
        r.last_token_s = float(found.finish[i])
    return run


def test_a_run_made_by_the_simulator_is_predicted_exactly(tmp_path: Path):
    kernels = kernels_file(tmp_path)
    record.write(served_run(kernels), tmp_path / "served-tiny-decoder.json")
    table = compare([tmp_path / "served-tiny-decoder.json"], kernels, tmp_path / "out", "roofline")
    (one,) = json.loads((tmp_path / "out" / "comparison.json").read_text())
    (found,) = one["loads"]
    for metric in ("ttft_s", "tpot_s", "e2e_s"):
        assert abs(found[metric]["mean_error"]) < 2e-3
        assert found[metric]["request_mape"] < 5e-3
    assert abs(found["throughput"]["error"]) < 1e-3
    assert found["steps"]["median_ape"] < 1e-3
    assert one["overhead"]["step_s"] == pytest.approx(TRUTH.step_s, rel=0.02)
    assert one["overhead"]["sequence_s"] == pytest.approx(TRUTH.sequence_s, rel=0.02)
    assert "| tiny | decoder | 2026-01-01 | interpolated | low (20) |" in table
    assert (tmp_path / "out" / "comparison.png").stat().st_size > 10_000


def test_the_median_of_rounds_counts_and_their_spread_is_said(tmp_path: Path):
    """One of three rounds ran on a machine that something held up for a second: it must not count."""
    kernels = kernels_file(tmp_path)
    run = served_run(kernels)
    first = run.loads[0]
    late = [replace(r, first_token_s=r.first_token_s + 1, last_token_s=r.last_token_s + 1) for r in first.requests]
    run.loads += [replace(first, round=1, requests=late), replace(first, round=2)]
    record.write(run, tmp_path / "served.json")
    compare([tmp_path / "served.json"], kernels, tmp_path / "out", "roofline")
    (found,) = json.loads((tmp_path / "out" / "comparison.json").read_text())[0]["loads"]
    assert found["rounds"] == 3
    assert abs(found["e2e_s"]["mean_error"]) < 2e-3
    assert found["e2e_s"]["round_mean_low"] == pytest.approx(found["e2e_s"]["measured_mean"])
    assert found["e2e_s"]["round_mean_high"] == pytest.approx(found["e2e_s"]["measured_mean"] + 1, rel=1e-3)


def test_kernels_that_are_too_fast_show_as_an_error(tmp_path: Path):
    """The probe's overhead absorbs what is per step and per sequence; attention over long contexts it cannot."""
    honest, fast = kernels_file(tmp_path), kernels_file(tmp_path, times=0.5)
    run = served_run(honest)
    bare = TableCost(Tables(fast, "fp32"), SHAPE, ENGINE)
    step = Step(0.0, 0.0, 4, 4 * 200, [])
    true = TableCost(Tables(honest, "fp32"), SHAPE, ENGINE, TRUTH).seconds(4, 800, (), 4)
    guessed = TableCost(Tables(fast, "fp32"), SHAPE, ENGINE, probe_overhead(bare, run.probe, launches=False))
    assert guessed.seconds(step.num_decodes, step.context_sum, (), 4) < 0.99 * true


def test_on_a_gpu_a_launch_floor_is_found(tmp_path: Path):
    """Steps that all last 10 ms whatever their kernels: the CPU launches them, the kernels hide behind it."""
    bare = TableCost(Tables(kernels_file(tmp_path), "fp32"), SHAPE, ENGINE)
    floor = Overhead(step_s=1e-3, launch_s=1e-2)
    probe, moment = [], 0.0
    for n in (1, 2, 3, 4):
        for j in range(5):
            kernels = bare.kernels(n, n * (10 + j), (), n)
            end = moment + floor.seconds(kernels, n)
            probe.append(Step(moment, end, n, n * (10 + j), []))
            moment = end
    found = probe_overhead(bare, probe, launches=True)
    assert found.seconds(1e-4, 2) == pytest.approx(1.1e-2, rel=1e-3)


def test_a_missing_kernel_is_named(tmp_path: Path):
    kernels = kernels_file(tmp_path)
    run = served_run(kernels)
    other = replace(SHAPE, hidden=128)
    with pytest.raises(CalibrationError, match="was not measured in fp32"):
        TableCost(Tables(kernels, "fp32"), other, ENGINE).seconds(1, 10, (), 1)
    run.dtype = "bf16"
    record.write(run, tmp_path / "served.json")
    with pytest.raises(CalibrationError, match="bf16"):
        compare([tmp_path / "served.json"], kernels, tmp_path / "out", "roofline")


def test_a_served_run_is_read_as_it_was_written(tmp_path: Path):
    run = served_run(kernels_file(tmp_path))
    record.write(run, tmp_path / "served.json")
    again = record.read(tmp_path / "served.json")
    assert again.engine == run.engine
    assert again.probe[0].chunks == [(10, 0)]
    assert [r.prompt_tokens for r in again.loads[0].requests] == [r.prompt_tokens for r in run.loads[0].requests]
    (tmp_path / "served.json.gz").write_bytes(gzip.compress((tmp_path / "served.json").read_bytes()))
    assert record.read(tmp_path / "served.json.gz") == again
    (tmp_path / "not.json").write_text('{"schema": 7}', encoding="utf-8")
    with pytest.raises(ValueError, match="no served requests"):
        record.read(tmp_path / "not.json")


def test_interpolation_meets_its_points_is_a_power_between_and_grows_beyond():
    line = Line1([(1, 1.0), (4, 2.0), (8, 6.0)])
    assert [line.at(x) for x in (0.5, 1, 2, 4, 8)] == pytest.approx([1.0, 1.0, 2**0.5, 2.0, 6.0])
    assert line.at(16) == pytest.approx(14.0)
    grid = Grid2([(1, 1, 1.0), (1, 2, 2.0), (4, 1, 4.0), (4, 2, 8.0)])
    assert [grid.at(1, 2), grid.at(2, 1), grid.at(4, 2), grid.at(8, 2)] == pytest.approx([2.0, 2.0, 8.0, 16.0])


@pytest.mark.parametrize("name", ["serve-cpu", "serve-h200"])
def test_shipped_experiments_are_whole_and_repeatable(name: str):
    experiment = load(ROOT / "profiler" / "campaigns" / f"{name}.yaml")
    for model in experiment.models:
        for load_name, rate in experiment.rates[model.name].items():
            due = requests(experiment, rate, load_name, model.vocab)
            again = requests(experiment, rate, load_name, model.vocab)
            assert [d.arrival_s for d in due] == [d.arrival_s for d in again]
            assert max(int(d.prompt.max()) for d in due) < model.vocab
            assert len(due) == experiment.requests
    assert {len(d.prompt) for d in closed_batch(3, 5, 2, 100)} == {5}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("rates: {low: 0.8", "rates: {low: -1"), "workload.rates.tiny-llama.low: must be a positive number"),
        (("num_blocks: 1024", "num_blocks: 100"), "settings.num_blocks: 100 blocks do not hold"),
        (("engines: [transformers", "engines: [vllm"), "engines: entry 0: 'vllm' is unknown"),
        (("  requests: 60", "  request: 60"), "Did you mean 'requests'"),
    ],
)
def test_a_mistake_in_an_experiment_is_located(tmp_path: Path, change: tuple[str, str], words: str):
    text = (ROOT / "profiler" / "campaigns" / "serve-cpu.yaml").read_text(encoding="utf-8")
    assert change[0] in text
    path = tmp_path / "serve.yaml"
    path.write_text(text.replace(*change), encoding="utf-8")
    with pytest.raises(CampaignError) as caught:
        load(path)
    assert words in str(caught.value)


def test_the_committed_measurements_still_compare_as_documented(tmp_path: Path):
    """Real engines on a real CPU: scheduler, spans and prices together must keep predicting them (docs/measured-cpu.md)."""
    folder = ROOT / "docs" / "measured" / "cpu"
    kernels = sorted(folder.glob("measurements*.jsonl.gz"))
    table = compare(sorted(folder.glob("served-*.json.gz")), kernels, tmp_path)
    said = (ROOT / "docs" / "measured-cpu.md").read_text(encoding="utf-8")
    plain = [line for line in table.splitlines() if "| interpolated |" in line]
    assert len(plain) == 12
    assert all(line in said for line in plain)  # no fit in between: the same on every machine
    found = json.loads((tmp_path / "comparison.json").read_text())
    assert {one["prices"].split(" ")[0] for one in found} == {"calibration", "interpolated"}
    for one in found:
        bar = 0.12 if one["engine"] == "decoder" else 0.18
        for one_load in one["loads"]:
            assert abs(one_load["e2e_s"]["mean_error"]) < bar, (one["engine"], one["prices"], one_load["load"])
            assert abs(one_load["throughput"]["error"]) < 0.13, (one["engine"], one["prices"], one_load["load"])


def on_an_h100(tmp_path: Path, engine: str = "decoder") -> tuple[Run, Tables]:
    """A made-up run whose device has a shipped calibration."""
    kernels = kernels_file(tmp_path)
    run = served_run(kernels)
    run.device, run.dtype = {"type": "cuda", "name": "NVIDIA H100"}, "bf16"
    run.engine = {**ENGINE, "name": engine}
    return run, Tables(kernels, "fp32")


def test_with_a_calibration_the_simulators_own_cost_model_prices_the_kernels(tmp_path: Path):
    run, tables = on_an_h100(tmp_path)
    cost = calibrated_cost(run, "auto", tables)
    assert cost is not None
    assert cost.name.startswith("H100-SXM")
    card = gpu("h100")
    plain = cost_model(
        from_model_config(MODEL | {"model_type": "llama"}, "tiny"),
        card,
        choose("auto", card),
        Deployment(dtype="bfloat16"),
        NOTHING,
    )
    assert cost.kernels(4, 400, (), 4) == plain.decode(4, 400, 0, 0).first
    assert cost.kernels(4, 400, [(30, 10)], 5) == plain.mixed(4, 400, 0, [(30, 10)], 5)
    slower = cost.with_overhead(TRUTH)
    assert slower.seconds(4, 400, (), 4) == pytest.approx(cost.kernels(4, 400, (), 4) + TRUTH.seconds(0.0, 4))
    line = slower.decode(4, 400, 0, 0)
    assert line.first + line.increment == pytest.approx(slower.seconds(4, 404, (), 4), rel=1e-3)


def test_an_engine_that_packs_its_steps_has_its_attention_from_the_tables(tmp_path: Path):
    run, tables = on_an_h100(tmp_path, "transformers")
    cost = calibrated_cost(run, "auto", tables)
    assert cost is not None
    with pytest.raises(CalibrationError, match="packed_attention was not measured"):
        cost.kernels(4, 400, (), 4)
    tables.packed = lambda heads, queries, keys: 1e-6 * queries * keys  # type: ignore[method-assign]
    few, many = cost.kernels(4, 400, (), 4), cost.kernels(4, 800, (), 4)
    assert many - few == pytest.approx(SHAPE.layers * 1e-6 * 4 * 400)


def test_without_a_calibration_of_the_device_interpolation_stands_alone(tmp_path: Path):
    run, tables = on_an_h100(tmp_path)
    assert calibrated_cost(run, "roofline", tables) is None
    run.device = {"type": "cuda", "name": "A GPU nobody knows"}
    assert calibrated_cost(run, "auto", tables) is None
    run.device = {"type": "cuda", "name": "NVIDIA H100"}
    with pytest.raises(CalibrationError, match="no calibration 'H100-SXN'"):
        calibrated_cost(run, "H100-SXN", tables)
