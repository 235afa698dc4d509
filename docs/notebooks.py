"""Execute the notebooks: ``python docs/notebooks.py [--write] [NAME...]``. No kernel and no extra packages are needed.

Each runs from top to bottom in a fresh namespace, as Jupyter's "Restart and run all" would; what cells print and their
last expressions become their outputs, which ``--write`` stores in the file.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import io
import json
import os
import time
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent.parent / "notebooks"
MAX_CHARACTERS = 6000  # of a cell's output: a notebook is for reading


def execute(path: Path) -> dict[str, Any]:
    """The notebook with its outputs, run in its own folder. Raises what a cell raises, with the cell's number."""
    book: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    space: dict[str, Any] = {"__name__": "__main__"}
    before = Path.cwd()
    os.chdir(path.parent)
    try:
        count = 0
        for number, cell in enumerate(book["cells"]):
            if cell["cell_type"] != "code":
                continue
            count += 1
            try:
                cell["outputs"] = _run("".join(cell["source"]), f"{path.name} cell {number}", space, count)
            except Exception as error:
                error.add_note(f"in {path.name}, cell {number}")
                raise
            cell["execution_count"] = count
    finally:
        os.chdir(before)
    return book


def _run(source: str, name: str, space: dict[str, Any], count: int) -> list[dict[str, Any]]:
    tree = ast.parse(source, name)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    printed = io.StringIO()
    value = None
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, name, "exec"), space)  # noqa: S102  the project's own notebooks
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), name, "eval"), space)  # noqa: S307
    outputs: list[dict[str, Any]] = []
    if printed.getvalue():
        outputs.append({"output_type": "stream", "name": "stdout", "text": _lines(printed.getvalue())})
    if value is not None:
        data = {"text/plain": _lines(repr(value))}
        outputs.append({"output_type": "execute_result", "execution_count": count, "metadata": {}, "data": data})
    return outputs


def _lines(text: str) -> list[str]:
    cut = text if len(text) <= MAX_CHARACTERS else text[:MAX_CHARACTERS] + "\n..."
    return cut.splitlines(keepends=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--write", action="store_true", help="store the outputs")
    chosen = parser.parse_args()
    for path in sorted(FOLDER.glob("*.ipynb")):
        if chosen.names and path.stem not in chosen.names:
            continue
        begin = time.perf_counter()
        book = execute(path)
        if chosen.write:
            path.write_text(json.dumps(book, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"{path.name}: {time.perf_counter() - begin:.1f} s")


if __name__ == "__main__":
    main()
