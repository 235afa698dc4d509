"""Scaling, faults, power and carbon in scenarios: what they build, what they cost, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulator.core.errors import UserError
from simulator.cost.memory import MemoryPlan
from simulator.hardware.gpu import gpu
from simulator.scenario import load, run
from simulator.scenario.build import build_cluster, build_groups
from simulator.scenario.life import cold_start
from simulator.scenario.lifecycle import ColdStartSpec
from simulator.scenario.load import to_yaml
from simulator.scenario.source import parse_source
from simulator.scenario.validate import validate

EXAMPLES = Path(__file__).resolve().parents[2] / "scenarios" / "cluster"
TEXT = """
model: {name: meta-llama/Llama-3.1-8B, dtype: bfloat16}
hardware: {gpu: H100-SXM, price_per_gpu_hour: 3}
engine: {max_model_len: 8192}
cluster:
  replicas: 2
  router: least-requests
  scaling: {policy: queue, options: {target_requests: 4, average_s: 0}, max_replicas: 6, interval_s: 5}
  cold_start: {total_s: 8}
  faults: [{policy: failures, options: {mtbf_s: 40, mttr_s: 5}, detection_s: 1}]
workload: {preset: {name: azure-conv, num_requests: 600, rate: 12}}
energy: {pue: 1.2, carbon: {gco2_per_kwh: [400]}}
"""
FAULT = "cluster.faults.0"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "s.yaml"
    found.write_text(TEXT)
    return found


def test_cost_is_what_was_held_and_carbon_what_was_drawn(path: Path) -> None:
    result = run(load(path))
    summary = result.summary
    scaling, cost, energy, carbon = (summary[name] for name in ("scaling", "cost", "energy", "carbon"))
    assert scaling["cold_starts"] > 2
    assert scaling["failures"] > 0
    assert cost["usd"] == pytest.approx(3 * scaling["replica_hours"])
    assert carbon["gco2"] == pytest.approx(400 * energy["kwh"])
    assert energy["pue"] == 1.2
    assert summary["requests"]["finished"] + summary["requests"]["failed"] == 600
    without = run(load(path, ["energy.pue=1"])).summary["energy"]
    assert energy["kwh"] == pytest.approx(1.2 * without["kwh"])


def test_what_ran_loads_and_runs_again(path: Path, tmp_path: Path) -> None:
    first = run(load(path))
    again = tmp_path / "again.yaml"
    again.write_text(to_yaml(first.scenario))
    assert run(load(again)).summary == first.summary


def test_span_and_step_mode_agree(path: Path) -> None:
    spans, steps = (run(load(path, [f"run.mode={mode}"])) for mode in ("span", "step"))
    assert spans.records.replicas == steps.records.replicas
    assert spans.summary["latency"] == steps.summary["latency"]


def test_a_static_cluster_pays_for_all_of_the_time(path: Path) -> None:
    summary = run(load(path, ["cluster={replicas: 2}"])).summary
    assert summary["scaling"] is None
    assert summary["cost"]["usd_per_hour"] == 6
    assert summary["energy"]["kwh"] > 0


def test_cold_starts_by_tier() -> None:
    """Llama-2-70B takes 84 s through the plain loader (ServerlessLLM); streaming from SSD is as fast as the SSD."""
    text = "model: {name: meta-llama/Llama-3.1-70B, dtype: bfloat16}\nhardware: A100-SXM-80GB\n"
    text += "engine: {tensor_parallel_size: 4}\nworkload: {preset: {name: azure-conv, num_requests: 1}}\n"
    card = gpu("A100-SXM-80GB")
    memory = _memory(text)
    weights = memory.weight_bytes * memory.num_gpus
    assert weights == pytest.approx(141e9, rel=0.02)

    def seconds(**given: object) -> float:
        return cold_start(ColdStartSpec(**given), memory, card).weights_s  # type: ignore[arg-type]

    assert seconds(weights_from="ssd") == pytest.approx(84, rel=0.03)
    assert seconds(weights_from="ssd", loader="optimized") == pytest.approx(weights / 6e9)
    assert seconds(weights_from="dram", loader="optimized") == pytest.approx(weights / (4 * 32e9))
    assert seconds(loader="optimized") == pytest.approx(weights / 1.25e9)  # the network is the slowest tier
    assert seconds() == pytest.approx(weights / 1.25e9 + weights / 1.7e9)  # one after the other
    ratio = seconds(weights_from="ssd") / seconds(weights_from="ssd", loader="optimized")
    assert 3.5 < ratio < 8.3  # ServerlessLLM reports 3.6 to 8.2


def test_nodes_that_keep_weights_start_warm(path: Path) -> None:
    scenario = load(path, ["cluster.cold_start={nodes_keep: dram, loader: optimized}"])
    plan = build_cluster(scenario, build_groups(scenario))
    assert plan.life is not None
    (group,) = plan.life.groups
    assert group.warm_start_s is not None
    assert group.cold_start_s - group.warm_start_s == pytest.approx(16.06e9 / 1.25e9 - 16.06e9 / 64e9, rel=0.02)


def _memory(text: str) -> MemoryPlan:
    (setup,) = build_groups(validate(parse_source(text)))
    return setup.memory


def test_a_power_cap_saves_energy_and_costs_time(path: Path) -> None:
    settings = ["cluster={replicas: 2}", "workload.preset.rate=4"]
    free = run(load(path, settings)).summary
    capped = run(load(path, [*settings, "hardware.power_cap_w=350"])).summary
    assert capped["energy"]["kwh"] < free["energy"]["kwh"]
    assert capped["latency"]["ttft_s"]["mean"] > 1.05 * free["latency"]["ttft_s"]["mean"]
    assert capped["latency"]["itl_s"]["p50"] < 1.05 * free["latency"]["itl_s"]["p50"]


def test_carbon_from_a_file_starts_at_its_hour(path: Path) -> None:
    (path.parent / "grid.csv").write_text("utc,AA,BB\n0,100,1\n1,200,2\n2,300,3\n")
    text = path.read_text().replace("energy: {pue: 1.2, carbon: {gco2_per_kwh: [400]}}", "")
    path.write_text(text + "energy: {carbon: {path: grid.csv, zone: BB, start_hour: 2}}\n")
    carbon = run(load(path)).summary["carbon"]
    assert carbon["mean_gco2_per_kwh"] == pytest.approx(3)  # the run takes less than an hour


def test_a_recording_lies_beside_the_file_or_where_the_user_is(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = "0,add,n1\n0,add,n2\n20000,remove,n1\n"
    (path.parent / "beside.csv").write_text(events)
    here = path.parent / "here"
    here.mkdir()
    (here / "mine.csv").write_text(events)
    monkeypatch.chdir(here)
    fault = "{{policy: spot-trace, options: {{path: {}}}}}"
    path.write_text(path.read_text().replace("{policy: failures, options: {mtbf_s: 40, mttr_s: 5}, detection_s: 1}",
                                             fault.format("beside.csv")))  # fmt: skip
    for settings in ([], ["cluster.faults.0=" + fault.format("mine.csv")]):
        result = run(load(path, settings))
        assert result.summary["scaling"]["reclaims"] == 1
        again = path.parent / "again.yaml"
        again.write_text(result.scenario_yaml(path.parent))
        assert run(load(again)).summary == result.summary


@pytest.mark.parametrize(
    ("setting", "where", "words"),
    [
        ("cluster.scaling.policy=queu", "cluster.scaling.policy", "queue"),
        ("cluster.scaling.options={target: 3}", "cluster.scaling.options", "target_requests"),
        ("cluster.scaling.max_replicas=1", "cluster.scaling", "between 1 and 1"),
        ("cluster.scaling.drain=stop", "cluster.scaling.drain", "recompute, finish, migrate"),
        ("cluster.faults=[{policy: failure}]", f"{FAULT}.policy", "failures"),
        ("cluster.faults=[{policy: failures, options: {mtbf: 3}}]", f"{FAULT}.options", "mtbf_s"),
        ("cluster.faults=[{policy: spot, options: {group: b}}]", f"{FAULT}.options", "Groups: replicas"),
        ("cluster.faults=[{policy: spot-trace, options: {path: x.csv}}]", f"{FAULT}.options", "cannot be read"),
        ("cluster={replicas: 2, cold_start: {total_s: 3}}", "cluster", "needs 'scaling' or 'faults'"),
        ("cluster.cold_start={total_s: 3, nodes_keep: ssd}", "cluster.cold_start", "cannot be given beside it"),
        ("hardware.power_cap_w=50", "hardware.power_cap_w", "cannot keep to 50 W"),
        ("hardware.clock=0.01", "hardware.clock", "0.1 to 1"),
        ("energy.carbon={path: x.csv}", "energy.carbon", "go together"),
        ("energy.carbon={path: x.csv, zone: DE}", "energy.carbon", "cannot be read"),
        ("energy.pue=0.9", "energy.pue", "at least 1"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(path: Path, setting: str, where: str, words: str) -> None:
    def build() -> None:
        scenario = load(path, [setting])
        build_cluster(scenario, build_groups(scenario))
        run(scenario)

    with pytest.raises(UserError) as error:
        build()
    text = f"{error.value.where} {error.value} {error.value.remedy}"
    assert where in text
    assert words in text


@pytest.mark.parametrize("name", ["diurnal-autoscaled", "spot-day"])
def test_the_examples_run(name: str) -> None:
    scenario = load(EXAMPLES / f"{name}.yaml", ["workload.preset.num_requests=400"])
    summary = run(scenario).summary
    assert summary["requests"]["finished"] == 400
    assert summary["energy"]["joules_per_request"] > 0


def test_the_report_shows_replicas_and_power_over_time(path: Path, tmp_path: Path) -> None:
    result = run(load(path, ["workload.preset.num_requests=200"]))
    written = result.write(tmp_path / "out", report=True)
    page = written["report.html"].read_text()
    assert "kW of all GPUs" in page
    assert f"{result.summary['energy']['kwh']:.3g} kWh" in page
    assert "paid for" in page


def test_groups_may_scale_by_policies_of_their_own(path: Path) -> None:
    groups = "[{name: a, replicas: 1, scaling: {policy: scheduled, options: {hours: '0:3'}}}, {name: b, replicas: 1}]"
    cluster = "{groups: %s, router: least-requests, scaling: {policy: queue, max_replicas: 4, interval_s: 5}}"
    result = run(load(path, [f"cluster={cluster % groups}", "workload.preset.rate=1"]))
    names = [life.group for life in result.records.replicas]
    assert names.count("a") == 3
    assert names.count("b") < 3


def test_a_controller_of_clocks_saves_energy_within_the_slo(path: Path, tmp_path: Path) -> None:
    clocks = "clocks: {policy: slo-clock, options: {ttft_s: 1, tpot_s: 0.05}, interval_s: 5}"
    settings = ["workload.preset.rate=4", "slo={ttft_s: 1, tpot_s: 0.05}"]
    free = run(load(path, [*settings, "cluster={replicas: 2}"])).summary
    result = run(load(path, [*settings, f"cluster={{replicas: 2, {clocks}}}"]))
    controlled = result.summary
    assert "clocks" not in free
    assert controlled["energy"]["kwh"] < 0.9 * free["energy"]["kwh"]
    assert controlled["slo"]["attainment"] > 0.99
    assert controlled["clocks"]["mean_clock_by_group"]["replicas"] < 0.9
    assert controlled["clocks"]["orders"] > 0
    page = result.write(tmp_path / "out", report=True)["report.html"].read_text()
    assert "% of the maximum clock" in page


@pytest.mark.parametrize(
    ("setting", "where", "word"),
    [
        ("cluster.clocks={policy: polka}", "cluster.clocks.policy", "polca"),
        ("cluster.clocks={policy: slo-clock, options: {tpot: 1}}", "cluster.clocks.options", "tpot_s"),
        ("cluster.clocks={policy: polca, options: {low: replicas}}", "cluster.clocks.options", "limit_w"),
        ("cluster.scaling={policy: energy, max_replicas: 4}", "cluster.scaling.options", "cluster.clocks"),
    ],
)
def test_what_is_wrong_with_clocks_is_named(path: Path, setting: str, where: str, word: str) -> None:
    with pytest.raises(UserError) as error:
        run(load(path, [setting]))
    assert where in str(error.value)
    assert word in str(error.value)
