"""``model.kv_compression`` in scenarios."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from simulator.core.errors import UserError
from simulator.scenario import load, run

TEXT = """
model: {name: meta-llama/Llama-2-7b-hf, kv_compression: kivi-2bit}
hardware: A100-SXM-80GB
engine: {max_model_len: 4096, max_num_seqs: 64, num_gpu_blocks_override: 2600}
workload: {preset: {name: azure-conv, num_requests: 80, rate: 20}}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "s.yaml"
    found.write_text(TEXT)
    return found


@pytest.mark.parametrize(
    "compression", ["kivi-2bit", "h2o", "{preset: streaming-llm, keep_tokens: 300}", "{keep: 0.5, residual_tokens: 20}"]
)
def test_spans_are_steps(path: Path, compression: str) -> None:
    settings = [f"model.kv_compression={compression}"]
    spans, steps = (run(load(path, [*settings, f"run.mode={mode}"])) for mode in ("span", "step"))
    np.testing.assert_array_equal(spans.records.requests.finish, steps.records.requests.finish)
    assert spans.summary["requests"]["finished"] == 74  # six are longer than max_model_len


def test_fields_beside_a_preset_replace_its_own(path: Path) -> None:
    one = run(load(path, ["model.kv_compression={preset: kivi-2bit, residual_tokens: 0}"])).groups[0]
    other = run(load(path, ["model.kv_compression={bits: 2, group_size: 32}"])).groups[0]
    assert one.holding is None
    assert one.memory.kv_bytes_per_token == other.memory.kv_bytes_per_token


@pytest.mark.parametrize(
    ("settings", "where", "words"),
    [
        (["model.kv_compression=kivi"], "kv_compression", "unknown KV compression 'kivi'"),
        (["engine.enable_prefix_caching=true"], "engine.enable_prefix_caching", "cannot share blocks"),
        (["engine.policy=sarathi"], "model.kv_compression", "'sarathi'.* counts by itself"),
        (["model.kv_compression={keep: 0}"], "keep", "more than 0"),
        (["cluster={replicas: 2, migration: {}}"], "model.kv_compression", "that bounds requests and"),
        (
            ["cluster={replicas: 2, faults: [{policy: failures}], kv_replication: {}}"],
            "model.kv_compression",
            "that bounds requests and",
        ),
        (
            ["engine.policy=infercept", "engine.options={interception: preserve}"],
            "model.kv_compression",
            "'infercept'.* counts by itself",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_remedy(path: Path, settings: list[str], where: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        run(load(path, settings))
    assert where in (error.value.where or "")
    assert error.value.remedy or "keep" in where or "kv" in where
