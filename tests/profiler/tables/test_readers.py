"""Tables of others, made by hand: units, per-GPU shapes, and what is left out."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from profiler.tables.columns import Tables
from profiler.tables.read import read_tables
from simulator.core.errors import CalibrationError

STAMP = {"framework": "VLLM", "version": "0.24.0", "device": "NVIDIA H200"}


def parquet(folder: Path, name: str, rows: list[dict[str, object]]) -> Path:
    path = folder / f"{name}.parquet"
    pd.DataFrame([{**STAMP, "op_name": name, "kernel_source": "k", **row} for row in rows]).to_parquet(path)
    return path


def only(tables: Tables, operator: str) -> pd.DataFrame:
    assert list(tables.frames) == [operator]
    return tables.frames[operator]


def test_milliseconds_become_seconds_and_repetitions_their_median(tmp_path: Path) -> None:
    shape = {"gemm_dtype": "bfloat16", "m": 4, "n": 1024, "k": 512}
    parquet(tmp_path, "gemm", [shape | {"latency": x} for x in (0.010, 0.050, 0.012)])
    frame = only(read_tables([tmp_path]), "gemm")
    assert len(frame) == 1
    assert frame["seconds"].iloc[0] == pytest.approx(12e-6)
    assert frame["dtype"].iloc[0] == "bf16"


def attention(**given: object) -> dict[str, object]:
    row: dict[str, object] = {
        "batch_size": 2, "isl": 1, "num_heads": 8, "num_key_value_heads": 2, "head_dim": 128, "attn_dtype": "bfloat16",
        "kv_cache_dtype": "fp8", "step": 1023, "window_size": 0, "latency": 0.02,
    }  # fmt: skip
    return row | given


def test_a_decode_sees_its_cached_context_and_its_own_token(tmp_path: Path) -> None:
    parquet(tmp_path, "generation_attention", [attention()])
    row = only(read_tables([tmp_path]), "decode_attention").iloc[0]
    assert (row["context"], row["heads"], row["kv_heads"], row["kv_dtype"]) == (1024, 8, 2, "fp8")


def test_a_prompt_may_start_after_a_cached_context(tmp_path: Path) -> None:
    parquet(tmp_path, "context_attention", [attention(isl=256, step=512)])
    row = only(read_tables([tmp_path]), "prefill_attention").iloc[0]
    assert (row["new"], row["computed"]) == (256, 512)


def test_experts_are_those_of_one_rank_and_unknown_loads_are_left_out(tmp_path: Path) -> None:
    shape = {
        "moe_dtype": "fp8", "num_tokens": 64, "hidden_size": 4096, "inter_size": 1536, "topk": 8, "num_experts": 128,
        "moe_tp_size": 2, "moe_ep_size": 4, "latency": 0.1,
    }  # fmt: skip
    parquet(tmp_path, "moe", [shape | {"distribution": d} for d in ("balanced", "power_law_1.2")])
    row = only(read_tables([tmp_path]), "experts")
    assert len(row) == 1
    assert (row["experts"].iloc[0], row["inter"].iloc[0], row["rows"].iloc[0]) == (32, 768, 64 * 8 / 4)


def test_message_sizes_are_elements_of_two_bytes_and_graphs_are_preferred(tmp_path: Path) -> None:
    row = {"allreduce_dtype": "bfloat16", "num_gpus": 4, "message_size": 4096}
    parquet(
        tmp_path,
        "custom_allreduce",
        [row | {"backend": "vllm_graph", "latency": 0.006}, row | {"backend": "vllm_eager", "latency": 0.02}],
    )
    frame = only(read_tables([tmp_path]), "all_reduce")
    assert frame[["ranks", "size_bytes", "seconds"]].to_numpy().tolist() == [[4, 8192.0, pytest.approx(6e-6)]]


def test_a_missing_column_is_named_with_its_file(tmp_path: Path) -> None:
    path = parquet(tmp_path, "gemm", [{"gemm_dtype": "bfloat16", "m": 1, "n": 2, "latency": 0.1}])
    with pytest.raises(CalibrationError) as error:
        read_tables([path])
    assert "k" in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("latency", [0.0, -1.0, float("nan")])
def test_a_time_that_is_none_is_refused(tmp_path: Path, latency: float) -> None:
    path = parquet(tmp_path, "gemm", [{"gemm_dtype": "bfloat16", "m": 1, "n": 2, "k": 3, "latency": latency}])
    with pytest.raises(CalibrationError, match="not positive"):
        read_tables([path])


def test_bytes_that_are_no_parquet_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "gemm.parquet"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(CalibrationError, match="parquet"):
        read_tables([path])


def test_no_such_table_and_no_table_at_all(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="no such file"):
        read_tables([tmp_path / "absent"])
    with pytest.raises(CalibrationError, match="no table"):
        read_tables([tmp_path])


def test_llmservingsim_takes_its_shapes_from_the_model_that_the_folder_names(tmp_path: Path) -> None:
    folder = tmp_path / "RTXPRO6000-Llama-3.1-8B-tp1"
    folder.mkdir()
    (folder / "dense.csv").write_text("layer,tokens,time_us\nqkv_proj,16,36\nact_fn,16,3\n")
    (folder / "attention.csv").write_text(
        "prefill_chunk,kv_prefill,n_decode,kv_decode,time_us\n256,1024,0,0,40\n0,0,8,512,20\n256,1024,8,512,70\n"
    )
    frames = read_tables([tmp_path]).frames
    assert frames["gemm"][["m", "n", "k"]].to_numpy().tolist() == [[16, 6144, 4096]]
    assert frames["gemm"]["seconds"].iloc[0] == pytest.approx(36e-6)
    assert frames["elementwise"]["bytes"].tolist() == [16 * 3 * 14336 * 2.0]
    assert frames["prefill_attention"][["new", "computed", "heads", "kv_heads"]].to_numpy().tolist() == [
        [256, 1024, 32, 8]
    ]
    assert frames["decode_attention"][["batch", "context"]].to_numpy().tolist() == [
        [8, 512]
    ]  # the mixed row is neither


def test_llmservingsim_in_a_folder_without_a_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "dense.csv").write_text("layer,tokens,time_us\nqkv_proj,16,36\n")
    with pytest.raises(CalibrationError, match="does not name"):
        read_tables([tmp_path])


def test_vidur_is_told_by_its_columns(tmp_path: Path) -> None:
    row = {
        "n_head": 32, "n_kv_head": 8, "n_embd": 4096, "n_expanded_embd": 14336, "use_gated_mlp": True, "num_tokens": 64,
        "num_tensor_parallel_workers": 2, "time_stats.attn_pre_proj.median": 0.05, "time_stats.mlp_up_proj.median": 0.2,
        "time_stats.input_layernorm.median": 0.003,
    }  # fmt: skip
    pd.DataFrame([row]).to_csv(tmp_path / "a100-mlp.csv", index=False)
    frames = read_tables([tmp_path]).frames
    assert frames["gemm"][["m", "n", "k", "seconds"]].to_numpy().tolist() == [
        [64, (16 + 2 * 4) * 128, 4096, pytest.approx(5e-5)],
        [64, 14336, 4096, pytest.approx(2e-4)],
    ]
    assert frames["elementwise"]["bytes"].tolist() == [64 * 2 * 4096 * 2.0]


HEADER = {
    "kind": "header",
    "schema": 1,
    "campaign": "c",
    "date": "2026-01-02",
    "device": {"name": "X", "multiprocessors": 10},
    "versions": {"torch": "2"},
}
POINT = {
    "kind": "point",
    "op": "gemm",
    "dtype": "bf16",
    "backend": "torch.mm",
    "median_s": 1e-5,
    "m": 1,
    "n": 64,
    "k": 64,
}


def test_our_own_measurements_and_the_line_that_an_interruption_cut(tmp_path: Path) -> None:
    path = tmp_path / "measurements.jsonl"
    lines = [HEADER, POINT, {"kind": "skipped", "op": "gemm", "reason": "no memory"}]
    path.write_text("\n".join(json.dumps(x) for x in lines) + "\n" + json.dumps(POINT)[:30])
    tables = read_tables([path])
    assert only(tables, "gemm")[["m", "n", "k", "seconds"]].to_numpy().tolist() == [[1, 64, 64, 1e-5]]
    assert tables.provenance[0]["device"] == "X"


def test_a_broken_line_in_the_middle_is_located(tmp_path: Path) -> None:
    path = tmp_path / "measurements.jsonl"
    path.write_text(json.dumps(HEADER) + "\n{oops\n")
    with pytest.raises(CalibrationError, match="line 2"):
        read_tables([path])
