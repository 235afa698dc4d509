"""Nothing measured is lost or measured twice, whatever interrupts a campaign."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from profiler.measure.errors import CampaignError
from profiler.measure.journal import Journal, point_id, read


def test_rows_come_back_as_they_were(tmp_path: Path):
    path = tmp_path / "deep" / "m.jsonl"
    rows = [{"id": "a", "median_s": 1.5e-6, "shape": [1, 2], "text": "µs"}, {"id": "b", "reason": "out of memory"}]
    with Journal(path) as journal:
        journal.write("point", rows[0])
        journal.write("skipped", rows[1])
    assert list(read(path)) == [{"kind": "point", **rows[0]}, {"kind": "skipped", **rows[1]}]
    with Journal(path) as journal:
        assert journal.done == {"a", "b"}


@pytest.mark.parametrize("cut", range(1, 30, 4))
def test_a_torn_last_line_is_dropped_and_its_point_measured_again(tmp_path: Path, cut: int):
    path = tmp_path / "m.jsonl"
    with Journal(path) as journal:
        journal.write("point", {"id": "a", "median_s": 1.0})
        journal.write("point", {"id": "b", "median_s": 2.0})
    path.write_bytes(path.read_bytes()[:-cut])
    assert [r["id"] for r in read(path)] == ["a"]
    with Journal(path) as journal:
        assert journal.done == {"a"}
        journal.write("point", {"id": "b", "median_s": 3.0})
    assert [(r["id"], r["median_s"]) for r in read(path)] == [("a", 1.0), ("b", 3.0)]


def test_damage_elsewhere_is_refused_with_its_line(tmp_path: Path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"kind": "header"}\n{"kind": "po\n{"kind": "point", "id": "a"}\n', encoding="utf-8")
    with pytest.raises(CampaignError, match=r"m\.jsonl:2"):
        list(read(path))
    path.write_text("[1]\n", encoding="utf-8")
    with pytest.raises(CampaignError, match=r"m\.jsonl:1: no measurement"):
        list(read(path))


def test_no_value_that_json_lacks_gets_in(tmp_path: Path):
    with Journal(tmp_path / "m.jsonl") as journal, pytest.raises(ValueError, match="JSON"):
        journal.write("point", {"id": "a", "median_s": float("nan")})


def test_a_point_keeps_its_id_whatever_the_order_of_fields():
    point = {"suite": "gemm", "op": "gemm", "m": 1, "n": 2, "k": 3, "dtype": "bf16", "backend": "torch"}
    assert point_id(point) == point_id(dict(reversed(point.items()))) == point_id({**point, "id": "x"})
    assert point_id(point) != point_id({**point, "m": 2})
    assert json.dumps(point_id(point))  # plain text
