"""The compiled core: the modules that every request passes through, in machine code where ``make fast`` has made it.

mypyc turns the very same sources into C, and the results are the same bytes. What it makes is kept apart from the
sources, in ``build/core``, beside a digest of them. With a source edited since, another Python or
``WINDTUNNEL_CORE=python``, the sources run as they are; ``WINDTUNNEL_CORE`` may also name another folder.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from hashlib import sha256
from importlib.abc import MetaPathFinder
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "core"
MANIFEST = "core.json"
GROUP = "windtunnel_core"
LIBRARY = f"{GROUP}__mypyc"  # holds the code of all modules; a module's own file only opens it
SUFFIX = EXTENSION_SUFFIXES[0]  # names the Python and the platform that an extension is for
MODULES = (
    "simulator.cluster.arrivals",
    "simulator.cluster.cache_events",
    "simulator.cluster.dispatcher",
    "simulator.cluster.ledger",
    "simulator.cluster.replica",
    "simulator.cost.step",
    "simulator.kv.pool",
    "simulator.kv.prefix",
    "simulator.replica.engine",
    "simulator.replica.pipeline",
    "simulator.replica.recorder",
    "simulator.replica.steps",
    "simulator.replica.wave",
    "simulator.routing.prefix_index",
    "simulator.scheduling.paging",
    "simulator.scheduling.policy",
    "simulator.scheduling.queues",
    "simulator.scheduling.request",
    "simulator.scheduling.state",
    "simulator.scheduling.step",
    "simulator.scheduling.vllm",
)


def source(module: str) -> Path:
    """The file a module is made from."""
    return Path(__file__) if module == __name__ else ROOT / (module.replace(".", "/") + ".py")


def digest() -> str:
    """Of the sources of ``MODULES``, and of how they are made and found."""
    found = sha256()
    for module in (__name__, f"{__name__}.build", *MODULES):
        found.update(module.encode())
        found.update(source(module).read_bytes())
    return found.hexdigest()


class Loader(ExtensionFileLoader):
    """Loads a compiled module and gives its classes their docstrings, which mypyc leaves out."""

    def __init__(self, name: str, file: Path, docs: Mapping[str, str]) -> None:
        super().__init__(name, str(file))
        self._docs = docs

    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        for name, text in self._docs.items():
            getattr(module, name).__doc__ = text


class Finder(MetaPathFinder):
    """Finds compiled modules, and the library that holds the code of all of them."""

    def __init__(self, folder: Path, docs: Mapping[str, Mapping[str, str]]) -> None:
        """docs: module -> class -> docstring."""
        self._files = {name: folder / (name.replace(".", "/") + SUFFIX) for name in (LIBRARY, *MODULES)}
        self._docs = docs

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        file = self._files.get(fullname)
        if file is None:
            return None
        return spec_from_file_location(fullname, file, loader=Loader(fullname, file, self._docs.get(fullname, {})))


def fault(folder: Path) -> str:
    """Why what is in ``folder`` cannot be used; empty when it can."""
    try:
        made = json.loads((folder / MANIFEST).read_text("utf-8"))
    except OSError:
        return "`make fast` compiles it"
    if made["suffix"] != SUFFIX:
        return f"the compiled one is for {made['suffix']}; `make fast` compiles it again"
    if made["digest"] != digest():
        return "the sources have changed since they were compiled; `make fast` compiles them again"
    return ""


def install() -> str:
    """Let compiled modules be found before their sources, if they were made from them. Says which core runs."""
    chosen = os.environ.get("WINDTUNNEL_CORE", "")
    if chosen == "python":
        return "pure Python: WINDTUNNEL_CORE says so"
    folder = Path(chosen) if chosen else FOLDER
    if why := fault(folder):
        return f"pure Python: {why}"
    made = json.loads((folder / MANIFEST).read_text("utf-8"))
    sys.meta_path.insert(0, Finder(folder, made["docs"]))
    return "compiled"


CORE = install()
