"""Execute the notebooks as Jupyter's "Restart and run all" would: ``python docs/notebooks.py [--write] [NAME...]``."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent.parent / "notebooks"
TIMEOUT_S = 600  # of one cell


def execute(path: Path) -> nbformat.NotebookNode:
    """The notebook with its outputs, run in its own folder. Raises CellExecutionError with what its cell raised."""
    book = nbformat.read(path, as_version=4)
    here = {"metadata": {"path": str(path.parent)}}
    NotebookClient(book, timeout=TIMEOUT_S, resources=here).execute()
    for cell in book.cells:
        cell.metadata.pop("execution", None)  # when it ran: another time each time
    return book


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
            nbformat.write(book, path)
        print(f"{path.name}: {time.perf_counter() - begin:.1f} s")


if __name__ == "__main__":
    main()
