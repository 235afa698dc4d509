"""``windtunnel cache``."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from simulator.cli.main import app


@pytest.fixture
def trace(tmp_path: Path) -> str:
    """Three prompts of two blocks in turn."""
    path = tmp_path / "three.jsonl"
    rows = [
        {"timestamp": i * 100, "input_length": 1024, "output_length": 5, "hash_ids": [i % 3, 10 + i % 3]}
        for i in range(30)
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


def cache(trace: str, *options: str) -> Result:
    command = ["cache", trace, "--format", "mooncake", "--jobs", "1", *options]
    return CliRunner().invoke(app, command)


def test_every_policy_and_its_distance_from_the_optimum(trace: str, tmp_path: Path) -> None:
    result = cache(trace, "--capacity-blocks", "2,6", "--out", str(tmp_path / "out"), "--json")
    assert result.exit_code == 0, result.output
    [found] = json.loads(result.stdout)
    assert found["capacity_blocks"] == [2, 6]
    assert found["capacity_bytes"] == [None, None]
    ratio = found["hit_ratio"]
    assert ratio["lru"]["prefix"] == [0.0, 0.9]
    assert ratio["belady"]["prefix"] == [pytest.approx(9 / 30), 0.9]  # one prompt of three is kept
    for policy, one in ratio.items():
        gap = [best - own for best, own in zip(ratio["belady"]["prefix"], one["prefix"], strict=True)]
        assert one["below_optimum"] == pytest.approx(gap), policy
        assert min(gap) >= 0
    assert (tmp_path / "out" / "cache.png").stat().st_size > 10_000


def test_capacities_in_gb_of_a_model(trace: str, tmp_path: Path) -> None:
    where = ("--capacity-blocks", "2,6", "--out", str(tmp_path), "--policy", "lru", "--model", "llama-3.1-8b")
    result = cache(trace, *where)
    assert result.exit_code == 0, result.output
    assert "0.134 GB" in result.stdout  # 2 x 512 tokens of 128 KiB
    assert "0.150" in result.stdout  # below the optimum: 0.3 at 2 blocks, nothing at 6
    with (tmp_path / "cache.csv").open() as file:
        rows = {(row["policy"], row["capacity_blocks"]): row for row in csv.DictReader(file)}
    assert set(rows) == {(policy, size) for policy in ("lru", "belady") for size in ("2", "6")}
    assert float(rows["lru", "6"]["capacity_gb"]) == pytest.approx(6 * 512 * 131072 / 1e9, rel=1e-5)
    assert float(rows["lru", "2"]["below_optimum"]) == pytest.approx(0.3)
    half = cache(trace, *where, "--kv-cache-dtype", "fp8", "--json")
    assert json.loads(half.stdout)[0]["capacity_bytes"] == [2 * 512 * 65536, 6 * 512 * 65536]


def test_who_sees_more_of_the_queue_hits_more(trace: str, tmp_path: Path) -> None:
    def ratio(waiting: int) -> float:
        options = ("--policy", "look-ahead", "--capacity-blocks", "4", "--out", str(tmp_path), "--json")
        [found] = json.loads(cache(trace, *options, "--waiting", str(waiting)).stdout)
        return float(found["hit_ratio"]["look-ahead"]["prefix"][0])

    assert ratio(0) == 0.0  # LRU
    assert ratio(2) > 0.3


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--capacity-blocks", "x", "no list of capacities"),
        ("--capacity-blocks", "0", "at least 1"),
        ("--policy", "lruu", "lru"),
        ("--model", "lama", "Llama-3.1-8B"),
        ("--kv-cache-dtype", "fp8", "needs a model"),
    ],
)
def test_wrong_options(trace: str, option: str, value: str, words: str) -> None:
    result = cache(trace, option, value)
    assert result.exit_code == 2
    assert words in result.stderr + result.output


def test_waiting_requests_are_for_look_ahead(trace: str) -> None:
    result = cache(trace, "--policy", "lru", "--waiting", "5")
    assert result.exit_code == 2
    assert "needs policy look-ahead" in result.stderr + result.output


def test_capacities_close_to_each_other_have_columns_of_their_own(trace: str, tmp_path: Path) -> None:
    options = ("--policy", "lru", "--capacity-blocks", "10001,10002", "--out", str(tmp_path))
    result = cache(trace, *options)
    assert "10,001" in result.stdout
    assert "10,002" in result.stdout


def test_a_picture_that_cannot_be_drawn_to_its_end_leaves_the_old_one(
    trace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: object, path: Path, **options: object) -> None:
        del self, options
        path.write_bytes(b"half")
        raise OSError("no space left")

    picture = tmp_path / "cache.png"
    picture.write_bytes(b"old")
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    result = cache(trace, "--capacity-blocks", "2", "--out", str(tmp_path))
    assert result.exit_code == 2
    assert picture.read_bytes() == b"old"
