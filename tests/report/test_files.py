"""Whole or not at all."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from simulator.core.errors import UserError
from simulator.report.files import atomic_dir, atomic_json, atomic_path, atomic_write


def test_a_file_appears_whole_and_its_folder_with_it(tmp_path: Path) -> None:
    target = atomic_write(tmp_path / "deep" / "down" / "a.txt", "grüß dich")
    assert target.read_text(encoding="utf-8") == "grüß dich"
    assert [p.name for p in target.parent.iterdir()] == ["a.txt"]
    assert stat.S_IMODE(target.stat().st_mode) & 0o400


def test_an_interrupted_write_leaves_the_old_file_and_no_debris(tmp_path: Path) -> None:
    target = atomic_write(tmp_path / "a.json", "old")

    def interrupted() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_json_refuses_nan_and_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        atomic_json(tmp_path / "a.json", {"x": float("nan")})
    assert not list(tmp_path.iterdir())


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "run"

    def interrupted() -> None:
        with atomic_dir(target) as temporary:
            (temporary / "half").write_text("x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not list(tmp_path.iterdir())
    with atomic_dir(target) as temporary:
        (temporary / "one").write_text("1")
    assert [p.name for p in target.iterdir()] == ["one"]
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_with_something_in_it_is_only_replaced_on_request(tmp_path: Path) -> None:
    target = tmp_path / "run"
    target.mkdir()
    (target / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="not empty"), atomic_dir(target):
        pass
    assert (target / "thesis.tex").exists()
    with atomic_dir(target, replace=True) as temporary:
        (temporary / "new").write_text("1")
    assert [p.name for p in target.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [target]


ROOT = Path(__file__).resolve().parents[2]
WRITER = """
import os, sys, time
from simulator.report import files
with files.atomic_{kind}(sys.argv[1]) as temporary:
    ({inside}).write_text("half")
    {middle}
    print("ready", flush=True)
    time.sleep(60)
"""
SWAPPING = "os.replace(sys.argv[1], temporary.parent / 'was')"  # where _swap is between its two renames
posix = pytest.mark.skipif(sys.platform == "win32", reason="no locks tell dead writers from living ones there")


def writer(target: Path, kind: str, middle: str = "") -> subprocess.Popen[str]:
    """Another process in the middle of writing the target."""
    inside = "temporary" if kind == "path" else "temporary / 'a.txt'"
    program = WRITER.format(kind=kind, inside=inside, middle=middle)
    if middle:
        program = program.replace("(sys.argv[1])", "(sys.argv[1], replace=True)")
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(target)],
        stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=10)


@posix
@pytest.mark.parametrize("kind", ["path", "dir"])
def test_what_a_killed_writer_left_goes_with_the_next_write_and_a_living_one_is_not_disturbed(
    tmp_path: Path, kind: str
) -> None:
    target = tmp_path / "result[1].html"
    dead, living, other = writer(target, kind), writer(target, kind), writer(tmp_path / "result2.html", kind)
    kill(dead)
    assert len(list(tmp_path.iterdir())) == 3
    if kind == "path":
        atomic_write(target, "whole")
    else:
        with atomic_dir(target) as temporary:
            (temporary / "a.txt").write_text("whole")
    hidden = [p.name for p in tmp_path.iterdir() if p != target]
    assert len([name for name in hidden if name.startswith(".result[1].html-")]) == 1  # the living writer's
    assert len(hidden) == 2
    kill(living)
    kill(other)


@posix
def test_a_folder_whose_writer_died_between_two_renames_is_put_back(tmp_path: Path) -> None:
    target = tmp_path / "run"
    with atomic_dir(target) as temporary:
        (temporary / "one").write_text("1")
    kill(writer(target, "dir", SWAPPING))
    assert not target.exists()
    with pytest.raises(UserError, match="not empty"), atomic_dir(target):
        pass
    assert (target / "one").read_text() == "1"
    assert list(tmp_path.iterdir()) == [target]


def test_ctrl_c_between_two_renames_keeps_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "run"
    with atomic_dir(target) as temporary:
        (temporary / "one").write_text("1")

    def interrupted() -> None:
        with atomic_dir(target, replace=True) as temporary:
            (temporary / "two").write_text("2")
            monkeypatch.setattr(Path, "rename", _interrupt_once(monkeypatch))

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [p.name for p in target.iterdir()] == ["one"]
    assert list(tmp_path.iterdir()) == [target]


def _interrupt_once(monkeypatch: pytest.MonkeyPatch) -> object:
    def rename(self: Path, target: Path) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    return rename
