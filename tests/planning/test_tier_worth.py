"""What a tier is worth: the scenario without it against the scenario with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from simulator.cli.main import main
from simulator.core.errors import ScenarioError
from simulator.planning.tier_worth import tier_worth
from simulator.scenario import load, run

RAG = """
model: meta-llama/Llama-3.1-8B
hardware: A100-SXM-80GB
engine:
  max_model_len: 4096
  num_gpu_blocks_override: 301
  kv_tier_match: chunks
  kv_tiers:
    - {name: dram, capacity_bytes: 2GB, write: through}
    - {name: ssd, capacity_bytes: 100GB, bandwidth: 6GB, write: through}
workload:
  synthetic:
    num_requests: 150
    arrivals: {process: poisson, rate: 2}
    lengths: {prompt: 50, output: 20}
    documents: {count: 60, tokens: 500, per_request: 4, zipf: 0.5}
"""


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    path = tmp_path / "rag.yaml"
    path.write_text(RAG)
    return path


def test_a_tier_is_worth_what_it_saves_against_the_run_without_it(scenario: Path) -> None:
    told: list[str] = []
    none, dram, ssd = tier_worth(load(scenario), told.append)
    assert told == ["none", "dram", "ssd"]
    assert (none.tier_hit_share, none.read_gb, none.ttft_saved_s) == (0.0, 0.0, 0.0)
    assert none.ttft_saved_s_per_gb is None
    assert 0 < dram.tier_hit_share < ssd.tier_hit_share
    assert ssd.mean_ttft_s < dram.mean_ttft_s < none.mean_ttft_s
    assert (dram.capacity_gb, ssd.capacity_gb) == (2.0, 100.0)
    assert dram.ttft_saved_s_per_gb == pytest.approx((none.mean_ttft_s - dram.mean_ttft_s) / 2)
    assert ssd.ttft_saved_s_per_gb == pytest.approx((dram.mean_ttft_s - ssd.mean_ttft_s) / 100)
    whole = run(load(scenario)).summary
    assert ssd.mean_ttft_s == whole["latency"]["ttft_s"]["mean"]
    assert ssd.tier_hit_share == pytest.approx(sum(t["share"] for t in whole["kv_tiers"]["tiers"].values()))


def test_the_command_prints_the_table(scenario: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["tiers", str(scenario), "--json"])
    assert stop.value.code == 0
    assert [row["tiers"] for row in json.loads(capsys.readouterr().out)] == ["none", "dram", "ssd"]
    with pytest.raises(SystemExit) as stop:
        main(["tiers", str(scenario)])
    assert stop.value.code == 0
    assert "Each tier added to those before it" in capsys.readouterr().out


def test_a_router_that_weighs_tiers_does_without_where_there_are_none(tmp_path: Path) -> None:
    text = RAG.replace("  kv_tier_match: chunks\n", "").replace("100GB", "100GB, shared: true")
    router = "{policy: prefix-aware, metrics_interval_s: 0%s}"
    weighs = tmp_path / "weighs.yaml"
    weighs.write_text(f"{text}cluster: {{replicas: 2, router: {router % ', options: {tier_weight: 0.8}'}}}\n")
    plain = tmp_path / "plain.yaml"
    plain.write_text(f"{text}cluster: {{replicas: 2, router: {router % ''}}}\n")
    with_weight, without = tier_worth(load(weighs)), tier_worth(load(plain))
    assert with_weight[0] == without[0] and len(with_weight) == 3


def test_tiers_of_one_name_are_refused(scenario: Path) -> None:
    scenario.write_text(RAG.replace("name: ssd", "name: dram"))
    with pytest.raises(ScenarioError, match="two tiers are called 'dram'"):
        run(load(scenario))


def test_the_page_says_what_was_saved(scenario: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["tiers", str(scenario), "--out", str(tmp_path / "out"), "--json"])
    assert stop.value.code == 0
    page = (tmp_path / "out" / "tiers.html").read_text(encoding="utf-8")
    none, dram, ssd = tier_worth(load(scenario))
    assert sum(dram.hit_shares.values()) == pytest.approx(dram.tier_hit_share)
    assert page.count("<svg") == 4
    for name, row in (("dram", dram), ("ssd", ssd)):
        assert f"GB of {name} takes" in page
        assert f"<td>{row.tier_hit_share:.1%}</td>" in page
    saved = dram.busy_gpu_s_saved_per_gb
    assert saved is not None and dram.usd_saved_per_gb_month is not None
    assert (dram.usd_saved_per_gb_month > 0) == (saved > 0)
    assert none.usd_saved_per_gb_month is None


def test_loads_aside_are_valued_too(scenario: Path) -> None:
    scenario.write_text(RAG.replace("kv_tier_match: chunks", "kv_tier_load: async\n  kv_tier_prefetch: 2"))
    none, dram, ssd = tier_worth(load(scenario))
    assert none.tier_hit_share == 0 < dram.tier_hit_share <= ssd.tier_hit_share


def test_there_must_be_tiers(scenario: Path) -> None:
    scenario.write_text(
        RAG.replace("  kv_tier_match: chunks\n", "").split("  kv_tiers")[0] + "workload:" + RAG.split("workload:")[1]
    )
    with pytest.raises(ScenarioError, match="no tiers to value"):
        tier_worth(load(scenario))
