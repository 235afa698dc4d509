"""Whole or not at all."""

from __future__ import annotations

import stat
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
