"""Campaign files: what is accepted, and where a mistake is found."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from profiler.measure.__main__ import campaign_file
from profiler.measure.campaign import load
from profiler.measure.errors import CampaignError
from profiler.measure.points import context_lengths, points

ROOT = Path(__file__).resolve().parents[3]
SHIPPED = sorted(p for p in (ROOT / "profiler" / "campaigns").glob("*.yaml") if not p.name.startswith("serve"))
TINY = "{name: tiny, hidden_size: 64, num_hidden_layers: 2, num_attention_heads: 4, intermediate_size: 96, vocab_size: 128}"


def written(folder: Path, text: str, name: str = "campaign.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_campaigns_are_whole(path: Path):
    campaign = load(path)
    found = points(campaign)
    assert len({p["id"] for p in found}) == len(found) > 50
    assert {p["suite"] for p in found} == set(campaign.suites)


def test_a_campaign_without_a_file_fits_the_device():
    assert campaign_file(None, "cpu", quick=True).stem == "quick-cpu"
    assert campaign_file(None, "cuda", quick=True).stem == "quick-cuda"
    assert campaign_file(None, None, quick=False).stem == "cuda"
    assert campaign_file(Path("h200"), None, quick=False).is_file()


def test_yaml_and_json_say_the_same(tmp_path: Path):
    yaml = written(
        tmp_path, f"name: a\ndevice: cpu\nmodels: [{TINY}]\nsuites: {{gemm: {{dtypes: [fp32], tokens: [1, 7]}}}}\n"
    )
    fields = {
        "name": "tiny",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "vocab_size": 128,
    }
    same = {
        "name": "a",
        "device": "cpu",
        "models": [fields],
        "suites": {"gemm": {"dtypes": ["fp32"], "tokens": [1, 7]}},
    }
    assert points(load(yaml)) == points(load(written(tmp_path, json.dumps(same), "campaign.json")))


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("name: a\nsuites:\n  gemm: {tokenz: [1]}\n", ":3: suites.gemm.tokenz", "Did you mean 'tokens'"),
        ("name: a\nsuites:\n  gem: {}\n", ":3: suites.gem", "Did you mean 'gemm'"),
        ("name: a\nsuites:\n  gemm:\n    tokens: [4, 0]\n", ":4: suites.gemm.tokens", "entry 1: must be a whole number >= 1, not 0"),
        ("name: a\nsuites:\n  gemm: {dtypes: [bf17]}\n", ":3: suites.gemm.dtypes", "Did you mean 'bf16'"),
        ("name: a\nsuites:\n  gemm: {shapes: [[1, 2, 3]]}\n", ":3: suites.gemm.shapes", "must be a list of 2"),
        ("name: a\ndevice: tpu\nsuites:\n  gemm: {}\n", ":2: device", "'tpu' is unknown"),
        ("suites:\n  gemm: {}\n", "", "field 'name' is missing"),
        ("name: a\nsuites: {}\n", ":2: suites", "at least one suite"),
        ("name: a\ntiming: {target: 1}\nsuites:\n  gemm: {}\n", ":2: timing.target", "Did you mean 'target_s'"),
        ("name: a\nmodels:\n  - {hidden_size: 64}\nsuites:\n  gemm: {}\n", ":3: models.0", "num_attention_heads is missing"),
        ("name: a\nmodels: [no-such-model]\nsuites:\n  gemm: {}\n", ":2: models.0", "no-such-model"),
        ("name: [a\n", ":2", "not YAML"),
        ("- 1\n", "", "must be a mapping"),
    ],
)  # fmt: skip
def test_a_mistake_is_located(tmp_path: Path, text: str, place: str, words: str):
    path = written(tmp_path, text)
    with pytest.raises(CampaignError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}{place}")
    assert words in str(caught.value)


def test_the_command_leaves_with_two_on_a_bad_campaign(tmp_path: Path):
    path = written(tmp_path, "name: a\nsuites:\n  gemm: {tokenz: [1]}\n")
    for command in (["-m", "profiler.measure"], ["-m", "simulator.cli", "profile"]):
        done = subprocess.run(
            [sys.executable, *command, str(path)], capture_output=True, text=True, cwd=ROOT, check=False
        )
        assert done.returncode == 2
        assert f"{path}:3: suites.gemm.tokenz" in done.stderr.replace("\n", "")
        assert "Traceback" not in done.stderr


def test_a_model_of_the_catalogue_gives_its_matrices(tmp_path: Path):
    path = written(tmp_path, "name: a\nmodels: [llama-3.1-8b]\nsuites:\n  gemm: {dtypes: [bf16], tokens: [1]}\n")
    assert {(p["n"], p["k"]) for p in points(load(path))} == {
        (6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336), (128256, 4096)
    }  # fmt: skip


def test_skewed_contexts_keep_their_mean_and_are_skewed():
    lengths = context_lengths(32, 1000, "skewed")
    assert abs(sum(lengths) / 32 - 1000) < 10
    assert max(lengths) == 10 * min(lengths)
    assert context_lengths(3, 7, "equal") == [7, 7, 7]


CARRIED = """
import sys
sys.modules["yaml"] = None  # as on a machine without pyyaml
sys.modules["simulator"] = None
from pathlib import Path
from profiler.measure.campaign import load
from profiler.measure.points import points
print(len(points(load(Path(sys.argv[1])))))
"""


def test_the_folder_works_by_itself_with_json_and_no_pyyaml(tmp_path: Path):
    """As it is carried to a bare GPU machine; what it runs there beside needs torch and numpy alone."""
    shutil.copytree(ROOT / "profiler" / "measure", tmp_path / "profiler" / "measure")
    shutil.copy(ROOT / "profiler" / "__init__.py", tmp_path / "profiler")
    text = json.dumps({"name": "a", "models": [], "suites": {"gemm": {"shapes": [[8, 8]], "tokens": [1, 2]}}})
    command = [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{CARRIED}"]
    file = written(tmp_path, text, "campaign.json")
    done = subprocess.run([*command, str(file)], capture_output=True, text=True, check=False)
    assert done.stdout == "2\n", done.stderr
    file.write_text('{"name": "a", "models": ["llama-3.1-8b"], "suites": {"gemm": {}}}', encoding="utf-8")
    done = subprocess.run([*command, str(file)], capture_output=True, text=True, check=False)
    assert "Write the model's shapes into the campaign" in done.stderr


def test_the_measuring_code_imports_torch_numpy_and_the_standard_library_alone():
    allowed = {"torch", "numpy", "profiler", "yaml", "pynvml", "flashinfer", "simulator"}
    for path in (ROOT / "profiler" / "measure").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [str(node.module)]
            else:
                continue
            for name in names:
                top = name.partition(".")[0]
                assert top in sys.stdlib_module_names or top in allowed, f"{path}: {name}"
                if top == "profiler":
                    assert name.startswith("profiler.measure"), f"{path}: {name}"
                if top in (
                    "yaml",
                    "simulator",
                    "pynvml",
                    "flashinfer",
                ):  # optional ones are imported where they are used
                    assert node.col_offset > 0, f"{path}: {name}"
