from __future__ import annotations

from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from simulator.core.errors import ScenarioError
from simulator.scenario.cluster import ClusterSpec
from simulator.scenario.config import Scenario
from simulator.scenario.source import SHORTHANDS, override, parse_source, read_source
from simulator.scenario.spec import Shorthand
from simulator.scenario.workload import Workload

TEXT = """\
name: demo
model:
  name: llama
engine: {max_num_seqs: 8}
workload:
  transforms:
    - scale_rate: 2
    - head: 10
"""


def test_every_value_knows_its_line() -> None:
    source = parse_source(TEXT, name="demo.yaml")
    assert source.where(("model", "name")) == "demo.yaml:3: model.name"
    assert source.where(("engine", "max_num_seqs")) == "demo.yaml:4: engine.max_num_seqs"
    assert source.where(("workload", "transforms", 1, "head")) == "demo.yaml:8: workload.transforms.1.head"


def test_what_is_absent_is_where_its_parent_is() -> None:
    source = parse_source(TEXT, name="demo.yaml")
    assert source.where(("model", "dtype")) == "demo.yaml:2: model.dtype"
    assert source.where(("slo",)) == "demo.yaml:1: slo"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1e6", 1e6),
        ("16_384", 16384),
        ("0x10", 16),
        ("on", "on"),
        ("yes", "yes"),
        ("true", True),
        ("null", None),
        ("", None),
        ("010", "010"),
        ("12:30:00", "12:30:00"),
        ("2024-01-01", "2024-01-01"),
        ("'8'", "8"),
        ("1.5", 1.5),
        ("-3", -3),
        ("v1.0", "v1.0"),
    ],
)
def test_scalars_are_what_they_look_like(text: str, value: object) -> None:
    found = parse_source(f"x: {text}").data["x"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", r"t:3: a is given twice \(first on line 1\)"),
        ("x:\n  a: 1\n  a: 1\n", r"t:3: x.a is given twice \(first on line 2\)"),
        ("", "t: is empty"),
        ("# only a comment\n", "t: is empty"),
        ("- a\n- b\n", "t:1: must be a mapping of fields, not a list"),
        ("hello", "must be a mapping of fields, not the text 'hello'"),
        ("a: [1, 2\nb: 3\n", r"t:2: not valid YAML"),
        ("a: b: c\n", r"t:1: not valid YAML"),
        ("a:\n\t- b\n", r"t:2: not valid YAML"),
        ("a: 1\n---\nb: 2\n", "not valid YAML: expected a single document"),
        ("a: !!python/object/apply:os.system [ls]\n", "t:1: the YAML tag .* is not allowed"),
        ("a: !secret x\n", "t:1: the YAML tag '!secret' is not allowed"),
        ("a: !!set {x}\n", "the YAML tag .* is not allowed"),
        ("a: !!int abc\n", "t:1: 'abc' is not a number"),
        ("a: " + "9" * 5000, "is not a number"),
        ("1: x\n", "t:1: field names must be plain text"),
        ("[a]: x\n", "t:1: field names must be plain text"),
        ("a: &x [*x]\n", "nested too deeply or too large"),
        ("a: \x07\n", "not valid YAML"),
        ("a: " + "[" * 5000, "nested too deeply|not valid YAML"),
        ('a: "\\UFFFFFFFF"\n', "not valid YAML"),
    ],
)
def test_what_is_not_a_plain_mapping_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(ScenarioError, match=message):
        parse_source(text, name="t")


def test_a_bomb_of_aliases_is_refused_quickly() -> None:
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    with pytest.raises(ScenarioError, match="too large"):
        parse_source("\n".join(levels))


class TestFiles:
    def test_a_missing_file_lists_its_neighbours(self, tmp_path: Path) -> None:
        (tmp_path / "quickstart.yaml").write_text("a: 1")
        with pytest.raises(ScenarioError, match="no such file") as caught:
            read_source(tmp_path / "quickstrt.yaml")
        assert "quickstart.yaml" in str(caught.value.remedy)

    def test_a_directory_and_bytes_that_are_not_text(self, tmp_path: Path) -> None:
        with pytest.raises(ScenarioError, match="is a directory"):
            read_source(tmp_path)
        (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x00garbage")
        with pytest.raises(ScenarioError, match="cannot be read"):
            read_source(tmp_path / "x.yaml")

    def test_a_huge_file_is_not_parsed(self, tmp_path: Path) -> None:
        (tmp_path / "x.yaml").write_bytes(b"a: 1\n" * 1_000_000)
        with pytest.raises(ScenarioError, match="not a scenario"):
            read_source(tmp_path / "x.yaml")


class TestOverrides:
    def test_values_are_yaml_and_the_last_one_wins(self) -> None:
        source = override(parse_source(TEXT), ["engine.max_num_seqs=64", "engine.max_num_seqs=1e2", "name='7'"])
        assert source.data["engine"] == {"max_num_seqs": 100.0}
        assert source.data["name"] == "7"

    def test_missing_mappings_are_made_and_the_original_stays(self) -> None:
        original = parse_source(TEXT)
        changed = override(original, ["run.warmup_s=30", "slo={ttft_s: 1}"])
        assert changed.data["run"] == {"warmup_s": 30}
        assert changed.data["slo"] == {"ttft_s": 1}
        assert "run" not in original.data

    def test_a_shorthand_is_written_out_before_it_is_added_to(self) -> None:
        source = override(
            parse_source("model: m\nworkload: {trace: t.csv}"), ["model.dtype=x", "workload.trace.strict=true"]
        )
        assert source.data["model"] == {"name": "m", "dtype": "x"}
        assert source.data["workload"] == {"trace": {"path": "t.csv", "strict": True}}

    def test_the_shorthands_are_those_of_the_schema(self) -> None:
        def walk(kind: type, path: tuple[str, ...]) -> dict[tuple[str | int, ...], str]:
            found: dict[tuple[str | int, ...], str] = {}
            for name, hint in get_type_hints(kind, include_extras=True).items():
                parts = [hint, *get_args(hint)]
                for inner in (*parts, *(a for p in parts for a in get_args(p))):
                    if isinstance(inner, Shorthand):
                        found[*path, name] = inner.field
            return found

        parts = walk(Scenario, ()) | walk(Workload, ("workload",)) | walk(ClusterSpec, ("cluster",))
        assert parts == SHORTHANDS

    def test_a_list_grows_by_the_position_after_its_last(self) -> None:
        source = override(parse_source("a: 1"), ["t.0.head=3", "t.1.head=4", "t.1.head=5"])
        assert source.data["t"] == [{"head": 3}, {"head": 5}]

    def test_list_items_are_numbered_from_zero(self) -> None:
        source = override(parse_source(TEXT), ["workload.transforms.1.head=5"])
        assert source.data["workload"] == {"transforms": [{"scale_rate": 2}, {"head": 5}]}

    def test_a_bad_value_is_blamed_on_the_override_and_not_on_the_file(self) -> None:
        source = override(parse_source(TEXT, name="demo.yaml"), ["engine.max_num_seqs=x"])
        assert source.where(("engine", "max_num_seqs")) == "--set engine.max_num_seqs=x: engine.max_num_seqs"
        assert source.where(("model", "name")) == "demo.yaml:3: model.name"

    def test_a_replaced_mapping_forgets_the_lines_of_the_old_one(self) -> None:
        source = override(parse_source(TEXT, name="demo.yaml"), ["engine={}", "model.name=x"])
        assert source.where(("engine", "max_num_seqs")).startswith("--set engine={}")

    @pytest.mark.parametrize(
        ("setting", "message"),
        [
            ("engine.max_num_seqs", "not of the form path=value"),
            ("=3", "not of the form"),
            ("a..b=3", "not of the form"),
            ("name.x=3", "name is the text 'demo', so it has no 'x'"),
            ("workload.transforms.7.head=3", "is a list of 2; '7' is not one of its positions"),
            ("workload.transforms.head=3", "'head' is not one of its positions"),
            ("name=[", "--set name=\\[: value:1: not valid YAML"),
            ("name={a: 1, a: 2}", "a is given twice"),
        ],
    )
    def test_a_bad_override_names_the_path(self, setting: str, message: str) -> None:
        with pytest.raises(ScenarioError, match=message):
            override(parse_source(TEXT), [setting])
