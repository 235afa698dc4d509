"""The compiled core: used only when it was made from these sources, and then it gives the same bytes."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from simulator import native

CASE = """
import ast
import hashlib
from dataclasses import fields
from simulator import native
from simulator.scenario.load import load
from simulator.scenario.run import run
found = hashlib.sha256()
for name in ("quickstart",):
    records = run(load("scenarios/" + name + ".yaml"), 0).records
    for part in (records.requests, records.steps):
        for field in fields(part):
            found.update(getattr(part, field.name).tobytes())
print(native.CORE)
print(found.hexdigest())
"""


def made(folder: Path, **changes: object) -> None:
    """A manifest as ``make fast`` leaves it, without the modules."""
    content = {"digest": native.digest(), "suffix": native.SUFFIX, "docs": {}}
    (folder / native.MANIFEST).write_text(json.dumps({**content, **changes}))


def install(core: Path | str, monkeypatch: pytest.MonkeyPatch) -> tuple[str, int]:
    """What ``install`` says, and how many finders it has put before the others."""
    monkeypatch.setenv("WINDTUNNEL_CORE", str(core))
    path = list(sys.meta_path)
    monkeypatch.setattr(sys, "meta_path", path)
    before = len(path)
    return native.install(), len(path) - before


def test_it_is_used_when_it_was_made_from_these_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(tmp_path)
    assert install(tmp_path, monkeypatch) == ("compiled", 1)
    spec = sys.meta_path[0].find_spec("simulator.kv.pool", None)
    assert spec is not None
    assert spec.origin == str(tmp_path / f"simulator/kv/pool{native.SUFFIX}")
    assert sys.meta_path[0].find_spec("simulator.kv", None) is None


def test_an_edited_source_runs_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(tmp_path)
    read = Path.read_bytes
    edited = native.source("simulator.kv.pool")
    monkeypatch.setattr(Path, "read_bytes", lambda path: read(path) + b"\n" if path == edited else read(path))
    core, finders = install(tmp_path, monkeypatch)
    assert (core.split(":")[0], finders) == ("pure Python", 0)
    assert "changed since" in core


@pytest.mark.parametrize("change", [{"suffix": ".other-python.so"}, {"digest": hashlib.sha256().hexdigest()}])
def test_nor_is_one_of_another_python_used(
    change: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(tmp_path, **change)
    core, finders = install(tmp_path, monkeypatch)
    assert "make fast" in core
    assert finders == 0


def test_python_can_be_asked_for_and_is_what_there_is_without_make_fast(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert install("python", monkeypatch) == ("pure Python: WINDTUNNEL_CORE says so", 0)
    assert install(tmp_path, monkeypatch) == ("pure Python: `make fast` compiles it", 0)


def test_every_compiled_module_has_a_source() -> None:
    assert [module for module in native.MODULES if not native.source(module).is_file()] == []
    assert list(native.MODULES) == sorted(native.MODULES)


@pytest.mark.skipif(native.CORE != "compiled", reason="the core is not compiled (make fast)")
def test_both_cores_give_the_same_bytes() -> None:
    said = [
        subprocess.run(
            [sys.executable, "-c", CASE], cwd=native.ROOT, env={**os.environ, **env}, capture_output=True, text=True, check=True
        ).stdout.splitlines()
        for env in ({}, {"WINDTUNNEL_CORE": "python"})
    ]
    assert [core for core, _ in said] == ["compiled", "pure Python: WINDTUNNEL_CORE says so"]
    assert said[0][1] == said[1][1]


@pytest.mark.skipif(native.CORE != "compiled", reason="the core is not compiled (make fast)")
def test_the_modules_in_use_are_the_compiled_ones() -> None:
    import simulator.replica.engine as engine

    assert engine.__file__ is not None
    assert engine.__file__.endswith(native.SUFFIX)
    assert (engine.Engine.__doc__ or "").startswith("A replica's engine.")


def test_whoever_derives_from_a_compiled_class_is_compiled_too() -> None:
    """mypyc's classes are bases of ordinary ones only where ``mypyc_attr`` says so (``native/attributes.py``)."""
    bases = {module: _bases(module) for module in _modules()}
    compiled = {f"{module}.{name}" for module in native.MODULES for name in bases[module]} - _open()
    astray = [
        f"{module}.{name}({base})"
        for module, classes in bases.items()
        if module not in native.MODULES
        for name, found in classes.items()
        for base in found
        if base in compiled
    ]
    assert astray == []


def _modules() -> list[str]:
    files = [*(native.ROOT / "simulator").rglob("*.py"), *(native.ROOT / "profiler").rglob("*.py")]
    return [".".join(file.relative_to(native.ROOT).with_suffix("").parts) for file in files]


def _open() -> set[str]:
    """Compiled classes that ordinary ones may derive from."""
    return {
        f"{module}.{node.name}"
        for module in native.MODULES
        for node in ast.parse(native.source(module).read_text("utf-8")).body
        if isinstance(node, ast.ClassDef) and "allow_interpreted_subclasses" in "".join(map(ast.unparse, node.decorator_list))
    }


def _bases(module: str) -> dict[str, list[str]]:
    """Classes of a module, and the full names of what each derives from."""
    tree = ast.parse(native.source(module).read_text("utf-8"))
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return {
        node.name: [names.get(base.id, f"{module}.{base.id}") for base in node.bases if isinstance(base, ast.Name)]
        for node in tree.body
        if isinstance(node, ast.ClassDef)
    }
