"""Policy infercept in a cluster: turns must come back to where their KV is."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulator.core.errors import ScenarioError
from simulator.scenario import load, run

TEXT = """
model: meta-llama/Llama-3.1-8B
hardware: A100-SXM-80GB
engine: {policy: infercept, max_model_len: 4096, options: {interception: preserve}}
cluster: {replicas: %d, router: %s}
workload:
  synthetic:
    num_requests: 60
    arrivals: {process: poisson, rate: 4}
    lengths: {prompt: 300, output: 40}
    sessions: {turns: 4, think_time_s: 1, new_tokens: 20}
"""

ALWAYS = "{policy: session-affinity, options: {load_factor: 0.0}}"


@pytest.mark.parametrize(("replicas", "router"), [(1, "round-robin"), (3, ALWAYS)])
def test_later_turns_find_what_was_kept(tmp_path: Path, replicas: int, router: str) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(TEXT % (replicas, router))
    result = run(load(path))
    assert result.trace.turn is not None
    cached = result.records.requests.cached_tokens
    assert (cached[result.trace.turn > 0] > 300).all()
    assert (cached[result.trace.turn == 0] == 0).all()


@pytest.mark.parametrize("router", ["round-robin", "session-affinity"])  # which moves sessions off busy replicas
def test_routers_that_part_turns_are_refused(tmp_path: Path, router: str) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(TEXT % (2, router))
    with pytest.raises(ScenarioError, match="served its last turn"):
        run(load(path))
