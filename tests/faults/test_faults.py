"""Sources of faults: rates as asked for, streams of their own, recordings read line by line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from simulator.core.errors import PolicyError
from simulator.core.random import streams
from simulator.faults import FAULTS, Surroundings
from simulator.faults.spot_trace import read_events

AROUND = Surroundings(("a", "b"), streams(5).stream)
SHARED = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "traces" / "spot"
RECORDING = "0,add,n1\n0,add,n2\n60000,add,n3\n90000,remove,n1\n# a comment\n120000,remove,n3\n150000,add,n1\n"


def test_failures_have_the_mean_times_asked_for() -> None:
    one = FAULTS.get("failures")(AROUND, {"mtbf_s": 1000, "mttr_s": 50})
    found = [loss for _ in range(4000) if (loss := one.loss(0, 3)) is not None]
    assert np.mean([loss.after_s for loss in found]) == pytest.approx(1000, rel=0.06)
    assert np.mean([loss.down_s for loss in found]) == pytest.approx(50, rel=0.06)
    assert {loss.warning_s for loss in found} == {0.0}


def test_places_have_streams_of_their_own() -> None:
    """What happens in one place does not depend on how often others start."""
    one, other = (FAULTS.get("spot")(AROUND, {}) for _ in range(2))
    for _ in range(7):
        other.loss(0, 1)
    assert one.loss(0, 0) == other.loss(0, 0)
    assert one.loss(0, 0) != one.loss(0, 0)


def test_a_source_of_one_group_leaves_the_others_alone() -> None:
    one = FAULTS.get("spot")(AROUND, {"group": "b", "warning_s": 30})
    assert one.loss(0, 0) is None
    loss = one.loss(1, 1)
    assert loss is not None
    assert (loss.kind, loss.warning_s) == ("reclaim", 30)
    with pytest.raises(PolicyError, match="no group 'c'") as caught:
        FAULTS.get("failures")(AROUND, {"group": "c"})
    assert "a, b" in str(caught.value.remedy)


def test_a_recording_plays_from_an_offset(tmp_path: Path) -> None:
    path = tmp_path / "events.csv"
    path.write_text(RECORDING)
    options = {"path": str(path), "warning_s": 40, "offset_s": 80, "group": "b"}
    changes = FAULTS.get("spot-trace")(AROUND, options).changes()
    assert [(c.time, c.node, c.up) for c in changes] == [
        (0, "n2", True) if i == 1 else row
        for i, row in enumerate(
            [(0, "n1", True), None, (0, "n3", True), (10, "n1", False), (40, "n3", False), (70, "n1", True)]
        )
    ]
    assert [c.warning_s for c in changes if not c.up] == [10, 40]  # the first warning would be before the start
    assert {c.group for c in changes} == {1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0,add\n", "events.csv:1"),
        ("0,add,n1\n0,drop,n1\n", "events.csv:2"),
        ("x,add,n1\n", "milliseconds"),
        ("0,add,n1\n0,add,n1\n", "already there"),
        ("0,remove,n1\n", "not there"),
        ("9,add,n1\n8,add,n2\n", "before that of the line above"),
        ("\n", "no events"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "events.csv"
    path.write_text(text)
    with pytest.raises(PolicyError) as caught:
        FAULTS.get("spot-trace")(AROUND, {"path": str(path)})
    assert message in f"{caught.value.where}: {caught.value}"
    assert caught.value.remedy


def test_missing_files_and_options_are_errors_of_the_user() -> None:
    with pytest.raises(PolicyError, match="cannot be read"):
        FAULTS.get("spot-trace")(AROUND, {"path": "/nowhere/events.csv"})
    with pytest.raises(PolicyError, match="'path' is missing"):
        FAULTS.get("spot-trace")(AROUND, {})
    with pytest.raises(PolicyError, match="unknown option"):
        FAULTS.get("spot-trace")(AROUND, {"path": "x", "warn_s": 3})
    with pytest.raises(PolicyError, match="warning_s"):
        FAULTS.get("spot-trace")(AROUND, {"path": "x", "warning_s": -3})


@pytest.mark.parametrize("name", ["bamboo_p3.csv", "bamboo_g4dn.csv", "parcae_p3_events.csv"])
def test_published_recordings_read_whole(name: str) -> None:
    path = SHARED / name
    if not path.exists():
        pytest.skip("reference data is not here")
    events = read_events(path)
    live = sum(1 if up else -1 for _, up, _ in events)
    assert len(events) > 100
    assert live >= 0
    assert events[-1][0] > 3600


@pytest.mark.parametrize("name", FAULTS.names())
def test_every_source_says_what_it_decides_and_where_it_comes_from(name: str) -> None:
    text = FAULTS.get(name).__doc__ or ""
    assert all(word in text for word in ("Decides:", "Why it helps:", "Limits:", "Reference:"))
