"""``windtunnel check-schedule``: the vllm policy against schedules of the real scheduler and against two made by hand."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from simulator.cli.main import app
from simulator.cluster.schedule_log import check_schedule, read_schedule_log
from simulator.core.errors import TraceError

BY_HAND = Path(__file__).parent / "data"
SYNC, ASYNC = BY_HAND / "three_requests.jsonl", BY_HAND / "three_requests_async.jsonl"
Line = dict[str, dict[str, Any]]

REAL = [
    f"{mode}{name}"
    for name in (
        "bursts", "chunked_long", "decode_heavy", "long_threshold", "preemption", "prefix", "prefix_evict", "priority",
        "seq_limit",
    )
    for mode in ("", "async_")
]  # fmt: skip


@pytest.mark.parametrize("step_mode", [True, False], ids=["step", "span"])
@pytest.mark.parametrize("name", REAL)
def test_every_step_of_the_real_scheduler(name: str, step_mode: bool, shared_data: Path) -> None:
    path = shared_data / "vllm_scheduler" / f"{name}.jsonl.gz"
    if not path.is_file():
        pytest.skip(f"{path.name} is not on this machine")
    found = check_schedule(read_schedule_log(path), step_mode=step_mode)
    assert found.ok, found.difference
    assert found.matched == found.total > 100


@pytest.mark.parametrize("step_mode", [True, False], ids=["step", "span"])
@pytest.mark.parametrize("path", [SYNC, ASYNC], ids=["sync", "async"])
def test_three_requests_by_hand(path: Path, step_mode: bool) -> None:
    """Nobody's output but pencil and paper, from vLLM's rules. A step lasts 1/2 s and 1/8 s per token; blocks hold 4
    tokens, 8 of them are usable; a step computes at most 8 tokens. Request a: 10 prompt tokens in blocks 1, 2 and a
    tail of 2, 3 to generate; b, from 0.25 s: 9 in 1, 3 and a tail of 1, 2 to generate; c, from 1 s: the 4 of block 1, 3
    to generate.

    Synchronous, free blocks read after the step:

    ========  =======  ====================================================================================  ====
    from      to       scheduled                                                                             free
    ========  =======  ====================================================================================  ====
    0         1.5      a: 8 of its 10 (the budget), blocks 1 and 2                                              6
    1.5       3        a: 2, a third block; b: hits block 1, 5 to compute, 2 new blocks; c: its prompt is           2
                       all of block 1, but the last token is always computed, so no hit: 1 (the budget), 1 block
    3         4.125    a: 2nd token; b: 2nd and last token; c: 3, the rest. b goes and gives 2 blocks back          4
                       (block 1 is still a's)
    4.125     4.875    a: 3rd and last token; c: 2nd, its 5th position takes a block. a goes: 3 blocks              6
    4.875     5.5      c: 3rd and last token, in the same block. c goes                                             8
    ========  =======  ====================================================================================  ====

    Asynchronous: a step is scheduled when the one before it begins; free blocks read after scheduling:

    ==========  ======  =======  ==========================================================================  ====
    scheduled   from    to       what                                                                        free
    ==========  ======  =======  ==========================================================================  ====
    0           0       1.5      a: 8                                                                           6
    0           1.5     2.25     a: 2, a third block (b and c are not there yet)                                5
    1.5         2.25    3.75     a: 2nd token; b: hit, 5, 2 blocks; c: 2 (the budget), a block                  2
    2.25        3.75    4.75     a: 3rd and last; b: 2nd and last; c: 2, the rest                               2
    3.75        4.75    5.375    c: 2nd, a block; a and b have nothing left, but are not known to be done       1
    4.75        5.375   6        a (3 blocks) and b (2 of its own) are gone; c: 3rd and last                    6
    ==========  ======  =======  ==========================================================================  ====
    """
    found = check_schedule(read_schedule_log(path), step_mode=step_mode)
    assert found.ok, found.difference
    assert found.matched == found.total == (5 if path is SYNC else 6)


def altered(source: Path, target: Path, change: Callable[[list[Line]], object]) -> Path:
    lines = [json.loads(line) for line in source.read_text().splitlines()]
    change(lines)
    target.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return target


def steps(lines: list[Line]) -> list[dict[str, Any]]:
    return [line["step"] for line in lines if "step" in line]


def results(lines: list[Line]) -> list[dict[str, Any]]:
    return [line["result"] for line in lines if "result" in line]


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["check-schedule", *map(str, arguments)])


ALTERATIONS: dict[str, tuple[Callable[[list[Line]], object], list[str]]] = {
    "one token more": (
        lambda lines: steps(lines)[1]["batch"].__setitem__(1, ["b", 6]),
        ["step 1 (ends 3.000000 s) differs in batch", "log:", "('b', 6)", "simulator:", "('b', 5)"],
    ),
    "order": (lambda lines: steps(lines)[2]["batch"].reverse(), ["step 2", "differs in batch", "('c', 3)"]),
    "no hit": (
        lambda lines: steps(lines)[1].update(hits={}),
        ["differs in hits", "log:       {}", "simulator: {'b': 4}"],
    ),
    "a block": (lambda lines: steps(lines)[3].update(free=7), ["step 3", "differs in free", "log:       7", "simulator: 6"]),
    "no time": (lambda lines: steps(lines)[4].update(t=float("nan")), ["step 4", "differs in end", "nan"]),
    "a time": (lambda lines: steps(lines)[4].update(t=5.6), ["step 4", "differs in end", "5.6", "5.5"]),
    "preempted": (lambda lines: steps(lines)[2].update(preempted=["c"]), ["differs in preempted", "['c']", "[]"]),
    "a step less": (lambda lines: lines.remove({"step": steps(lines)[-1]}), ["the log has 4 steps, the simulator 5"]),
    "a result": (lambda lines: results(lines)[1].update(end=4.25), ["request b differs", "4.25", "4.125"]),
}  # fmt: skip


@pytest.mark.parametrize("name", ALTERATIONS)
def test_a_log_that_differs_shows_both_sides_and_fails(name: str, tmp_path: Path) -> None:
    change, told = ALTERATIONS[name]
    found = call(altered(SYNC, tmp_path / "altered.jsonl", change))
    assert found.exit_code == 1, found.output
    for text in told:
        assert text in found.stdout


def test_a_slower_engine_is_noticed_at_once(tmp_path: Path) -> None:
    path = altered(SYNC, tmp_path / "slow.jsonl", lambda lines: lines[0]["header"]["step_seconds"].update(base=0.525))
    found = call(path)
    assert found.exit_code == 1
    assert "step 0 (ends 1.500000 s) differs in end" in found.stdout


GARBLED: dict[str, tuple[Callable[[str], str], str]] = {
    "not json": (lambda text: text.replace('{"step"', '{"step', 1), ":5"),
    "not an object": (lambda text: text + "[1, 2]\n", ":13"),
    "unknown line": (lambda text: text.replace('"step"', '"stop"', 1), ":5"),
    "no header": (lambda text: text.split("\n", 1)[1], "0 header lines, one is needed"),
    "two headers": (lambda text: text.split("\n", 1)[0] + "\n" + text, "2 header lines, one is needed"),
    "no batch": (lambda text: text.replace('"batch"', '"lot"', 1), "batch"),
    "text for a number": (lambda text: text.replace('"prompt_len": 10', '"prompt_len": "ten"', 1), "'ten'"),
    "empty": (lambda text: "", "0 header lines"),
}


@pytest.mark.parametrize("name", GARBLED)
def test_what_is_no_log_is_refused_where_it_breaks(name: str, tmp_path: Path) -> None:
    garble, told = GARBLED[name]
    path = tmp_path / "garbled.jsonl"
    path.write_text(garble(SYNC.read_text()))
    found = call(path)
    assert found.exit_code == 2, found.output
    assert "garbled.jsonl" in found.stderr
    assert told in found.stderr
    assert "Traceback" not in found.stderr


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(gzip.compress(SYNC.read_bytes())[:-20])
    for path in (cut, tmp_path / "nowhere.jsonl", tmp_path):
        found = call(path)
        assert found.exit_code == 2, found.output
        assert "cannot be read" in found.stderr


@settings(max_examples=150, deadline=None)
@given(
    where=st.integers(0, len(SYNC.read_text()) - 1),
    what=st.sampled_from(["", "0", "-", "]", '"', "null", "9", "\n", "é", "-1", "[]", "1e400"]),
)
def test_any_flaw_is_a_difference_or_a_located_error(
    where: int, what: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    text = SYNC.read_text()
    path = tmp_path_factory.getbasetemp() / "fuzzed.jsonl"
    path.write_text(text[:where] + what + text[where + 1 :])
    try:
        log = read_schedule_log(path)
    except TraceError as error:
        assert str(path) in str(error.where)
        return
    try:
        found = check_schedule(log, step_mode=False)
    except TraceError as error:
        assert error.where
        return
    assert found.ok or found.difference
