from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from simulator import __version__, native
from simulator.cli.console import cell
from simulator.cli.main import COMMANDS, GROUPS, app

ROOT = Path(__file__).resolve().parents[2]
TEXT = """\
name: demo
model: meta-llama/Llama-3.1-8B
hardware: H100-SXM
workload:
  synthetic:
    num_requests: 50
    arrivals: {process: poisson, rate: 8}
    lengths: {prompt: 100, output: 20}
slo: {ttft_s: 1, tpot_s: 50 ms}
"""


@pytest.fixture
def scenario(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "demo.yaml"
    path.write_text(TEXT)
    return path


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def good(*arguments: object) -> str:
    found = call(*arguments)
    assert found.exit_code == 0, found.output
    return found.stdout


def refused(*arguments: object) -> str:
    """A user's error: exit code 2, the message on standard error alone, no traceback."""
    found = call(*arguments)
    assert found.exit_code == 2, found.output
    assert found.stdout == ""
    assert found.exception is None or isinstance(found.exception, SystemExit)
    assert "Traceback" not in found.stderr
    return found.stderr


class TestRun:
    def test_a_summary_and_a_report(self, scenario: Path) -> None:
        text = good("run", scenario)
        assert "stable" in text
        assert "50 finished" in text
        assert "TTFT" in text
        assert "Report: runs/demo/report.html" in text
        assert Path("runs/demo/report.html").stat().st_size > 1000

    def test_overrides_seed_and_folder(self, scenario: Path) -> None:
        good("run", scenario, "--set", "workload.synthetic.num_requests=7", "--seed", 5, "--out", "here", "--no-report")
        assert not Path("here/report.html").exists()
        assert json.loads(Path("here/provenance.json").read_text())["seed"] == 5
        assert json.loads(Path("here/summary.json").read_text())["requests"]["finished"] == 7

    def test_an_overloaded_run_has_a_verdict_first_and_no_percentile(self, scenario: Path) -> None:
        text = good("run", scenario, "--set", "workload.synthetic.num_requests=400",
                    "--set", "workload.synthetic.arrivals.rate=300", "--set", "engine.max_num_seqs=4")  # fmt: skip
        assert text.splitlines()[1].startswith("overloaded: ")
        assert "not steady: grows with the run, so percentiles mean nothing. TTFT is " in text
        assert "p99" not in text
        assert "less the longer the run" in text
        latency = json.loads(Path("runs/demo/summary.json").read_text())["stability"]
        assert latency["latency_is_steady"] is False
        assert latency["mean_ttft_of_last_tenth_s"] > 5 * latency["mean_ttft_of_first_tenth_s"]

    def test_a_backlogged_run_says_what_its_percentiles_are(self, scenario: Path) -> None:
        text = good("run", scenario, "--set", "workload.synthetic.arrivals={process: at_once}",
                    "--set", "engine.max_num_seqs=4")  # fmt: skip
        assert text.splitlines()[1].startswith("backlogged: ")
        assert "not settled: the history of this run, not a property of the design" in text
        assert "p99" in text

    def test_the_summary_says_whose_ttft_it_is(self, scenario: Path) -> None:
        found = re.search(r"TTFT: the engine's own; a client over HTTP sees about (\S+) ms more", good("run", scenario))
        assert found is not None
        long = ("--set", "workload.synthetic.lengths.prompt=20000", "--set", "workload.synthetic.arrivals.rate=0.2")
        longer = re.search(r"sees about (\S+) ms more", good("run", scenario, *long))
        assert longer is not None
        assert 1 < float(found[1]) < float(longer[1])  # tokenisation grows with the prompt
        assert "not modelled by this preset" in good("run", scenario, "--set", "engine.overhead=vllm-0.10")

    def test_a_closed_loop_is_not_told_of_bursts(self, scenario: Path) -> None:
        text = good("run", scenario, "--set", "workload.closed_loop.users=30", "--set", "engine.max_num_seqs=8",
                    "--set", "workload.synthetic.num_requests=300")  # fmt: skip
        assert "stable: 30 users each send the next request when the last one has ended (a closed loop)" in text
        page = Path("runs/demo/report.html").read_text()
        assert "With 30 concurrent users this design serves" in page
        assert "max_num_seqs (running slots)" in page
        assert "30 users share 8 slots, so 22 of them wait at any time." in page
        export = json.loads(Path("runs/demo/vllm_bench.json").read_text())
        assert (export["request_rate"], export["max_concurrency"]) == ("inf", 30)
        assert "burst" not in page.split('id="glossary"')[0]
        assert "keeps up" not in page

    def test_users_of_several_replicas_share_the_slots_of_all(self, scenario: Path) -> None:
        text = good("run", scenario, "--set", "workload.closed_loop.users=30", "--set", "engine.max_num_seqs=8",
                    "--set", "workload.synthetic.num_requests=300", "--set", "cluster.replicas=2")  # fmt: skip
        assert "requests per replica on average" in text
        page = Path("runs/demo/report.html").read_text()
        assert "30 users share 16 slots, so 14 of them wait at any time." in page

    def test_steps_and_timeline_on_request(self, scenario: Path) -> None:
        good("run", scenario, "--steps", "--perfetto", "--no-report")
        assert {"steps.parquet", "trace.json"} <= {path.name for path in Path("runs/demo").iterdir()}

    def test_json_is_the_summary_and_nothing_else(self, scenario: Path) -> None:
        assert json.loads(good("run", scenario, "--json")) == json.loads(Path("runs/demo/summary.json").read_text())

    def test_a_folder_of_something_else_is_left_alone(self, scenario: Path) -> None:
        assert "would be replaced" in refused("run", scenario, "--out", scenario.parent)

    def test_no_progress_bar_into_a_pipe(self, scenario: Path) -> None:
        assert call("run", scenario).stderr == ""


class TestErrors:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["run", "nowhere.yaml"], "nowhere.yaml: no such file"),
            (["run", "demo.yaml", "--set", "engine.max_num_seq=3"], "Did you mean 'max_num_seqs'?"),
            (["run", "demo.yaml", "--set", "hardware=H1000"], "unknown GPU 'H1000'"),
            (["check", "demo.yaml", "--set", "x"], "not of the form path=value"),
            (["check", "."], "is a directory"),
            (["check", "demo.yaml", "--set", "workload.synthetic.lengths.output=0"], "every output drawn has 0 tokens"),
            (["models", "llama-9"], "unknown model"),
            (["gpus", "H1000"], "unknown GPU"),
            (["fit", "llama-9"], "unknown model"),
            (["explain"], "Give a scenario, or both --model and --gpu."),
            (["explain", "--model", "llama-3.1-8b", "--gpu", "H100", "--chunk", "x@y"], "'x@y' is not a chunk"),
            (["explain", "--model", "llama-3.1-8b", "--gpu", "H100", "--decodes", "0"], "the step is empty"),
            (["trace", "describe", "nowhere.csv"], "nowhere.csv"),
            (["trace", "describe", "preset:azure-chat"], "azure-chat"),
            (["trace", "convert", "preset:azure-conv", "out.xlsx"], "End it in .csv or .parquet."),
            (["trace", "convert", "preset:azure-conv", "no/such/folder.csv"], "cannot be written"),
        ],
    )
    def test_located_message_and_exit_code_2(self, scenario: Path, arguments: list[str], message: str) -> None:
        assert message in refused(*arguments)

    def test_the_line_of_the_file_is_named(self, scenario: Path) -> None:
        scenario.write_text(TEXT.replace("H100-SXM", "H1000"))
        assert "demo.yaml:3: hardware.gpu: unknown GPU" in refused("check", scenario)

    def test_check_refuses_what_a_run_refuses_before_it_begins(self, scenario: Path) -> None:
        two = ["--set", "cluster={replicas: 2, router: {policy: power-of-two, options: {choice: 3}}}"]
        assert "cluster.router.options: router 'power-of-two': unknown option 'choice'" in refused("check", scenario, *two)
        lost = ["--set", "workload={trace: no-such.jsonl}"]
        assert "workload.trace: no-such.jsonl: no such trace file" in refused("check", scenario, *lost)

    def test_markup_in_a_message_is_text(self, scenario: Path) -> None:
        assert "'[bold]'" in refused("check", scenario, "--set", "hardware='[bold]'")
        assert "'mine:B: x'" in refused("check", scenario, "--set", "hardware='mine:B: x'")  # no emoji

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.data())
    def test_a_garbled_scenario_never_ends_in_a_traceback(self, scenario: Path, data: st.DataObject) -> None:
        text = list(TEXT)
        for _ in range(data.draw(st.integers(1, 5))):
            at = data.draw(st.integers(0, len(text) - 1))
            text[at : at + data.draw(st.integers(0, 3))] = data.draw(st.text(st.characters(codec="utf-8"), max_size=3))
        scenario.write_text("".join(text), encoding="utf-8")
        found = call("check", scenario)
        assert found.exit_code in (0, 2)
        assert found.exit_code == 0 or "demo.yaml" in found.stderr


class TestLooking:
    def test_check_says_whether_it_fits(self, scenario: Path) -> None:
        assert "tokens of KV cache" in good("check", scenario)

    def test_check_shows_a_scenario_that_checks(self, scenario: Path) -> None:
        scenario.write_text(good("check", scenario, "--show"))
        good("check", scenario)

    def test_schema_is_json(self) -> None:
        assert json.loads(good("schema"))["properties"]["engine"]

    def test_catalogues(self) -> None:
        assert "Llama-3.1-8B" in good("models")
        assert "huggingface" in good("models", "llama-3.1-8b")
        assert "H100-SXM" in good("gpus")
        assert json.loads(good("gpus", "h100", "--json"))["gpu"] == "H100-SXM"
        assert {row["model"] for row in json.loads(good("models", "--json"))} >= {"meta-llama/Llama-3.1-8B"}
        assert "vllm" in good("policies")
        assert json.loads(good("policies", "--json"))[0]["description"]

    def test_fit_says_what_fits_and_what_would(self) -> None:
        text = good("fit", "llama-3.1-70b", "H100")
        assert "does not fit" in text
        assert "fp8" in text
        rows = json.loads(good("fit", "llama-3.1-70b", "H100", "--tp", 4, "--json"))
        assert [row["fits"] for row in rows] == ["yes"]

    def test_explain_adds_up(self, scenario: Path) -> None:
        step = ["--decodes", 16, "--context", 2000, "--chunk", "512@100"]
        by_names = json.loads(good("explain", "--model", "llama-3.1-8b", "--gpu", "H100", *step, "--json"))
        by_file = json.loads(good("explain", scenario, *step, "--json"))
        assert 1e-3 < sum(row["seconds"] for row in by_names) < 0.1
        assert by_file[0] == by_names[0]
        assert "attention prefill" in good("explain", scenario, *step)

    def test_cells(self) -> None:
        values = [cell(v) for v in (None, True, 12345, 0.123456, 98765.4, float("nan"), "[x]")]
        assert values == ["-", "yes", "12,345", "0.1235", "98,765", "-", r"\[x]"]


class TestTraces:
    def test_describe_a_preset_and_draw_it(self, scenario: Path) -> None:
        text = good("trace", "describe", "preset:azure-conv", "--num-requests", 500, "--plot", "x.png")
        assert "requests/s" in text
        assert Path("x.png").read_bytes().startswith(b"\x89PNG")
        assert (
            json.loads(good("trace", "describe", "preset:azure-conv", "--num-requests", 500, "--json"))["requests"]
            == 500
        )

    @pytest.mark.parametrize("name", ["x.csv", "x.csv.gz", "x.parquet"])
    def test_convert_and_read_back(self, scenario: Path, name: str) -> None:
        assert "100 requests" in good("trace", "convert", "preset:azure-conv", name, "--num-requests", 100)
        described = json.loads(good("trace", "describe", name, "--json"))
        assert described["requests"] == 100

    def test_lists(self) -> None:
        assert "mooncake" in good("trace", "formats")
        assert "azure-conv" in good("trace", "presets")
        assert {row["preset"] for row in json.loads(good("trace", "presets", "--json"))} >= {"azure-conv"}


class TestProcess:
    """As a user starts it."""

    def start(self, *arguments: str, folder: Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "simulator.cli", *arguments],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def test_help_is_quick_because_nothing_heavy_is_imported(self) -> None:
        code = (
            "import sys; from simulator.cli.main import app; "
            "print(*{'numpy', 'pandas', 'pydantic', 'matplotlib', 'simpy', 'yaml', 'scipy'} & set(sys.modules))"
        )
        found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
        assert found.stdout.strip() == ""

    def test_ctrl_c_exits_130_and_leaves_nothing(self, scenario: Path) -> None:
        big = ["--set", "workload.synthetic.num_requests=1M", "--set", "run.mode=step"]
        process = self.start("run", str(scenario), *big, folder=scenario.parent)
        time.sleep(3)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=30)
        assert process.returncode == 130
        assert "interrupted" in stderr
        assert "Traceback" not in stderr
        assert sorted(path.name for path in scenario.parent.iterdir()) == ["demo.yaml"]

    def test_a_bug_keeps_its_traceback(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken() -> None:
            raise ZeroDivisionError

        monkeypatch.setattr("simulator.scenario.validate.json_schema", broken)
        assert isinstance(call("schema").exception, ZeroDivisionError)


class TestDocs:
    def generator(self) -> Any:
        spec = importlib.util.spec_from_file_location("generate_docs", ROOT / "docs" / "generate.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    def test_generated_pages_are_up_to_date(self) -> None:
        for path, text in self.generator().generated().items():
            assert path.read_text(encoding="utf-8") == text, f"{path.name} is out of date: run `make docs`"

    def test_the_sample_in_the_readme_has_the_lines_the_command_prints(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        readme = (ROOT / "README.md").read_text(encoding="utf-8")
        sample = readme.split("sample: begin (make sample) -->\n```\n", 1)[1].split("```", 1)[0]
        now = good("run", ROOT / "scenarios" / "quickstart.yaml")

        def beginnings(text: str) -> list[str]:
            return [re.split(r"  |\d|: ", line, maxsplit=1)[0] for line in text.splitlines()]

        assert beginnings(sample) == beginnings(now), "run `make sample`"

    def test_every_command_and_option_is_documented(self) -> None:
        generator = self.generator()
        page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
        seen = []
        for name, command in generator.walk(generator.typer.main.get_command(app), "windtunnel"):
            seen.append(name.split()[1])
            assert f"## `{name}`" in page
            assert (command.help or "").strip(), f"{name} has no help"
            for parameter in command.params:
                assert parameter.name == "help" or parameter.help, f"{name}: {parameter.name} has no help"
        assert set(seen) == {*COMMANDS, *GROUPS}

    def test_version(self) -> None:
        assert good("--version").strip() == f"windtunnel {__version__} (core: {native.CORE})"
