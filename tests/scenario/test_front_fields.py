"""The cluster's response cache and retrieval, from a scenario to the page."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulator.cli.summary import facts
from simulator.core.errors import ScenarioError
from simulator.scenario import load, run

TEXT = """
name: known
model: meta-llama/Llama-3.1-8B
hardware: H100-SXM
cluster: {response_cache: {hit_ratio: 0.5, lookup_s: 20 ms}, retrieval_s: %s}
workload:
  synthetic:
    num_requests: 200
    arrivals: {process: poisson, rate: 4}
    lengths: {prompt: 100, output: 20}
"""


def test_hits_are_on_the_screen_and_on_the_page(tmp_path: Path) -> None:
    path = tmp_path / "known.yaml"
    path.write_text(TEXT % "{distribution: exponential, mean: 0.1}")
    result = run(load(path))
    found = result.summary["response_cache"]
    assert found["hits"] + result.summary["requests"]["finished"] == 200
    assert result.summary["latency"]["queue_time_s"]["mean"] == pytest.approx(0.12, abs=0.03)
    assert dict(facts(result))["answers known"].startswith(f"{found['hits']} (")
    page = result.write(tmp_path / "out")["report.html"].read_text()
    assert "answered by the response cache" in page


def test_a_ratio_is_a_share(tmp_path: Path) -> None:
    path = tmp_path / "known.yaml"
    path.write_text((TEXT % "0.1").replace("hit_ratio: 0.5", "hit_ratio: 1.5"))
    with pytest.raises(ScenarioError, match="hit_ratio"):
        load(path)
