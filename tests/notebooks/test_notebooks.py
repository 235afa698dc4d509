"""The notebooks run from top to bottom and are committed as they run: small, and with the outputs of their cells."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).parent.parent.parent
BOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def executor() -> ModuleType:
    spec = importlib.util.spec_from_file_location("notebooks_runner", ROOT / "docs" / "notebooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_are_five() -> None:
    assert [path.stem[0] for path in BOOKS] == ["1", "2", "3", "4", "5"]


SLOW = {"5-capacity-for-a-week"}
CASES = [pytest.param(path, marks=[pytest.mark.slow] if path.stem in SLOW else [], id=path.stem) for path in BOOKS]


def kinds(book: nbformat.NotebookNode) -> list[list[str]]:
    return [sorted({o.output_type for o in cell.outputs}) for cell in book.cells if cell.cell_type == "code"]


@pytest.mark.parametrize("path", CASES)
def test_a_notebook_runs_and_shows_what_it_found(path: Path) -> None:
    kept = nbformat.read(path, as_version=4)
    assert path.stat().st_size < 150_000
    found = kinds(executor().execute(path))
    assert any(found)
    assert found == kinds(kept)


def test_an_error_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "wrong.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0")]), path)
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        executor().execute(path)
