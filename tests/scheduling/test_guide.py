"""The developer guide's policy works as it stands, from outside the package."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from simulator.core.errors import PolicyError, ScenarioError
from simulator.kv.eviction import EVICTIONS
from simulator.scenario.load import load
from simulator.scenario.run import run
from simulator.scheduling import POLICIES
from tests.scheduling.test_policies import serve
from traces.trace import Trace

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "adding-a-policy.md"


def write(module: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of the guide's policies, in a module outside the package."""
    module.write_text("\n\n".join(re.findall(r"```python\n(.*?)```", GUIDE.read_text("utf-8"), re.DOTALL)), "utf-8")
    monkeypatch.syspath_prepend(module.parent)


SCENARIO = """
model: Qwen/Qwen3-0.6B
hardware: A100-SXM-80GB
engine: {max_model_len: 8192, max_num_seqs: 4, kv_tiers: [{name: dram, capacity_bytes: 1e9}]}
cluster: {replicas: 3}
workload:
  synthetic:
    num_requests: 60
    arrivals: {process: poisson, rate: 40}
    lengths: {prompt: {distribution: lognormal, median: 1000, sigma: 1, low: 10, high: 6000}, output: 30}
"""


def test_the_other_policies_of_the_guide_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "guide_others.py", monkeypatch)
    path = tmp_path / "scenario.yaml"
    path.write_text(SCENARIO, "utf-8")
    routed = "cluster.router={policy: 'guide_others:LongApart', options: {long_tokens: 2000}}"
    apart = run(load(path, [routed, "engine.kv_tiers.0.eviction=guide_others:Newest"]))
    requests = apart.records.requests
    long = requests.prompt_tokens >= 2000
    assert set(requests.replica[long]) == {0} and set(requests.replica[~long]) == {1, 2}
    scaling = "cluster.scaling={policy: 'guide_others:OnePerTen', min_replicas: 1, max_replicas: 3, interval_s: 0.2}"
    scaled = run(load(path, ["cluster.replicas=1", scaling, "engine.kv_tiers=[]"]))
    assert {event.replica for event in scaled.records.events} - {0}  # others were started
    newest = EVICTIONS.get("guide_others:Newest")(2)
    assert [newest.access(block, 0, -1, 0) for block in (1, 2, 3, 1, 2, 3)] == [False, False, False, True, False, False]
    with pytest.raises(ScenarioError, match="Oldest"):
        load(path, ["engine.kv_tiers.0.eviction=guide_others:Oldest"])


def test_the_policy_of_the_guide_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "guide_policy.py", monkeypatch)
    trace = Trace(np.array([0.0, 0.1, 0.2]), np.array([100, 1000, 10]), np.array([200, 50, 50]))
    name = "guide_policy:ShortPromptsFirst"
    eager, patient = (
        serve(trace, name, max_num_seqs=1, options={"patience_s": s}).requests.scheduled for s in (2.0, 0.05)
    )
    assert eager[2] < eager[1] and patient[1] < patient[2]
    with pytest.raises(PolicyError, match="patience_s"):
        serve(trace, name, options={"patience": 2.0})


def test_every_policy_that_ships_is_in_its_table() -> None:
    listed = re.findall(
        r"^\| `([a-z0-9-]+)` \|",
        GUIDE.read_text("utf-8").split("## The policies that ship")[1].split("\n\n")[1],
        re.MULTILINE,
    )
    assert sorted(listed) == sorted(name for name in POLICIES.names() if not name.startswith("test-"))
