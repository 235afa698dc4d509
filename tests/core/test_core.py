from __future__ import annotations

import ast
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.core import errors
from simulator.core.errors import PolicyError, ScenarioError, UserError
from simulator.core.names import nearest, suggestion
from simulator.core.random import Streams, streams
from simulator.core.registry import Registry, first_line
from simulator.core.units import format_bytes, format_count, format_seconds, parse_bytes, parse_count, parse_seconds

ROOT = Path(__file__).resolve().parents[2]


def ends(node: ast.expr) -> tuple[str | None, str | None]:
    """First and last piece of a string written out in the code, as far as they are constant."""
    pieces = node.values if isinstance(node, ast.JoinedStr) else [node]
    texts = [p.value if isinstance(p, ast.Constant) and isinstance(p.value, str) else None for p in pieces]
    return texts[0], texts[-1]


class TestErrors:
    def test_message_and_remedy_are_sentences_however_they_were_given(self) -> None:
        assert str(UserError("x is 3", where="a.yaml:1", remedy="Give 4")) == "a.yaml:1: x is 3.\n  Give 4."
        assert str(UserError("what?", remedy="Did you mean 'y'?")) == "what?\n  Did you mean 'y'?"

    @pytest.mark.parametrize("room", ["simulator", "traces"])
    def test_every_remedy_written_in_the_code_is_a_sentence(self, room: str) -> None:
        """Begins with a capital (or is a command to type) and ends with a stop: they are read by people in a hurry."""
        written = [
            (f"{path.name}:{node.value.lineno}", *ends(node.value))
            for path in sorted((ROOT / room).rglob("*.py"))
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.keyword) and node.arg == "remedy"
        ]
        assert len(written) > 15
        for where, first, last in written:
            assert first is None or first[0].isupper() or first.startswith("pip "), (where, first)
            assert last is None or last.startswith("pip ") or last.endswith((".", "?")), (where, last)

    def test_the_text_says_where_what_and_what_to_do(self) -> None:
        error = ScenarioError("unknown field 'x'.", where="a.yaml:3: engine.x", remedy="Did you mean 'y'?")
        assert str(error) == "a.yaml:3: engine.x: unknown field 'x'.\n  Did you mean 'y'?"

    def test_every_user_error_survives_a_process_boundary(self) -> None:
        kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, UserError)]
        assert len(kinds) == 7
        for kind in kinds:
            error = kind("what", where="here", remedy="do this")
            copy = pickle.loads(pickle.dumps(error))
            assert type(copy) is kind
            assert (copy.message, copy.where, copy.remedy) == ("what", "here", "do this")

    def test_the_tree_at_the_top_of_the_file_lists_every_class(self) -> None:
        for name, kind in vars(errors).items():
            if isinstance(kind, type) and issubclass(kind, errors.WindtunnelError):
                assert name in (errors.__doc__ or "")


class TestStreams:
    def test_same_seed_and_name_give_the_same_draws(self) -> None:
        assert (streams(7).stream("arrivals").random(5) == streams(7).stream("arrivals").random(5)).all()

    def test_the_order_of_asking_does_not_matter(self) -> None:
        first, second = streams(1), streams(1)
        a = first.stream("arrivals").random(3)
        first.stream("router").random(100)
        second.stream("router").random(3)
        assert (second.stream("arrivals").random(3) == a).all()

    def test_names_seeds_and_children_differ(self) -> None:
        draws = [
            s.stream(name).random()
            for s in (streams(0), streams(1), streams(0).child("replica-0"), streams(0).child("replica-1"))
            for name in ("arrivals", "lengths")
        ]
        assert len(set(draws)) == 8

    def test_bits_are_the_same_on_every_machine_and_version(self) -> None:
        raw = streams(0).stream("arrivals").bit_generator.random_raw(2)
        assert raw.tolist() == [17945172424613092665, 15345818147529216007]

    def test_streams_of_neighbouring_names_are_uncorrelated(self) -> None:
        a, b = (streams(0).stream(name).standard_normal(20_000) for name in ("lengths-1", "lengths-2"))
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.03

    def test_a_negative_seed_is_refused(self) -> None:
        with pytest.raises(UserError, match="-1"):
            Streams(-1)


class TestRegistry:
    def registry(self) -> Registry[type]:
        found: Registry[type] = Registry("router")

        @found.register("round_robin")
        class RoundRobin:
            """Next replica in turn.

            More.
            """

        @found.register("least_loaded")
        class LeastLoaded: ...

        return found

    def test_by_name(self) -> None:
        assert self.registry().get("round_robin").__name__ == "RoundRobin"
        assert self.registry().names() == ("least_loaded", "round_robin")

    def test_a_near_miss_is_named(self) -> None:
        with pytest.raises(PolicyError, match="unknown router 'RoundRobin'") as caught:
            self.registry().get("RoundRobin")
        assert caught.value.remedy == "Did you mean 'round_robin'?"

    def test_a_far_miss_lists_what_there_is(self) -> None:
        with pytest.raises(PolicyError, match="least_loaded, round_robin"):
            self.registry().get("zzz")

    def test_by_module_and_class(self) -> None:
        assert self.registry().get("collections:OrderedDict").__name__ == "OrderedDict"

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("no_such_module_at_all:X", "cannot import"),
            ("collections:OrderedDct", "Did you mean 'OrderedDict'"),
            ("a b:c", "not of the form"),
            (":", "not of the form"),
            ("..x:y", "not of the form"),
        ],
    )
    def test_a_bad_path_is_explained(self, name: str, message: str) -> None:
        with pytest.raises(PolicyError, match=message):
            self.registry().get(name)

    def test_a_file_with_a_slip_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "slipped.py").write_text("x = 1\ny = = 2\n", encoding="utf-8")
        monkeypatch.syspath_prepend(tmp_path)
        with pytest.raises(PolicyError, match=r"slipped\.py, line 2: invalid syntax"):
            self.registry().get("slipped:X")

    def test_a_name_is_taken_once(self) -> None:
        found = self.registry()
        with pytest.raises(ValueError, match="twice"):
            found.register("round_robin")(int)

    def test_first_docstring_line(self) -> None:
        assert first_line(self.registry().get("round_robin")) == "Next replica in turn."
        assert first_line(self.registry().get("least_loaded")) == ""


class TestNames:
    def test_case_dashes_and_typos(self) -> None:
        valid = ["max_num_seqs", "max_num_batched_tokens", "block_size"]
        assert nearest("max-num-seqs", valid) == "max_num_seqs"
        assert nearest("max_num_seq", valid) == "max_num_seqs"
        assert nearest("BlockSize", valid) == "block_size"
        assert nearest("wholly_other", valid) is None

    def test_part_of_a_long_name(self) -> None:
        assert nearest("405b", ["meta-llama/Llama-3.1-405B", "meta-llama/Llama-3.1-8B"]) == "meta-llama/Llama-3.1-405B"

    def test_a_long_list_is_cut(self) -> None:
        assert suggestion("zzz", [f"name{i:03}" for i in range(100)]).endswith("name019, ....")


class TestUnits:
    @pytest.mark.parametrize(
        ("text", "seconds"), [("10 ms", 0.01), ("2.5s", 2.5), ("1 h", 3600), (3, 3), ("1e-3", 1e-3), ("7us", 7e-6)]
    )
    def test_seconds(self, text: str | float, seconds: float) -> None:
        assert parse_seconds(text) == pytest.approx(seconds, rel=1e-15)

    def test_sizes_and_counts(self) -> None:
        assert parse_bytes("80GiB") == 80 * 2**30
        assert parse_bytes("80 GB") == 80e9
        assert parse_count("2.5k") == 2500
        assert parse_count("1_000") == 1000

    @pytest.mark.parametrize("text", ["", "ms", "1 2", "10 parsecs", "1..2 s", "nan", "1e999", True])
    def test_nonsense_is_refused(self, text: str) -> None:
        with pytest.raises(UserError, match="is not a duration"):
            parse_seconds(text)

    def test_a_size_is_not_a_duration(self) -> None:
        with pytest.raises(UserError, match="unknown unit 'GiB'"):
            parse_seconds("80GiB")

    @given(st.floats(1e-6, 1e9))
    def test_printed_durations_read_back(self, seconds: float) -> None:
        assert parse_seconds(format_seconds(seconds)) == pytest.approx(seconds, rel=6e-3)

    @given(st.floats(100, 1e15))
    def test_printed_sizes_read_back(self, size: float) -> None:
        assert parse_bytes(format_bytes(size)) == pytest.approx(size, rel=0.06)

    def test_counts(self) -> None:
        assert (format_count(2500), format_count(0.12345), format_count(float("nan"))) == ("2,500", "0.123", "-")
