"""The notebooks run from top to bottom and are committed as they run: small, and with the outputs of their cells."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent.parent
BOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def executor() -> ModuleType:
    spec = importlib.util.spec_from_file_location("notebooks_runner", ROOT / "docs" / "notebooks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_are_five() -> None:
    assert [path.stem[0] for path in BOOKS] == ["1", "2", "3", "4", "5"]


SLOW = {"5-capacity-for-a-day"}
CASES = [pytest.param(path, marks=[pytest.mark.slow] if path.stem in SLOW else [], id=path.stem) for path in BOOKS]


@pytest.mark.parametrize("path", CASES)
def test_a_notebook_runs_and_shows_what_it_found(path: Path) -> None:
    kept = json.loads(path.read_text(encoding="utf-8"))
    assert path.stat().st_size < 40_000
    book = executor().execute(path)
    cells = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    assert any(cell["outputs"] for cell in cells)
    before = [cell for cell in kept["cells"] if cell["cell_type"] == "code"]
    assert [bool(cell["outputs"]) for cell in before] == [bool(cell["outputs"]) for cell in cells]


def test_an_error_names_its_cell(tmp_path: Path) -> None:
    cell = {"cell_type": "code", "metadata": {}, "source": ["1 / 0"], "outputs": [], "execution_count": None}
    path = tmp_path / "wrong.ipynb"
    path.write_text(json.dumps({"cells": [cell]}), encoding="utf-8")
    with pytest.raises(ZeroDivisionError) as error:
        executor().execute(path)
    assert error.value.__notes__ == ["in wrong.ipynb, cell 0"]
