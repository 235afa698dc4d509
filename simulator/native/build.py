"""Compiles the core with mypyc: ``python -m simulator.native.build [FOLDER]`` (``make fast``).

Needs mypyc, setuptools and a C compiler: ``pip install -e '.[fast]'``.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import shutil
from pathlib import Path

from simulator.native import FOLDER, GROUP, LIBRARY, MANIFEST, MODULES, ROOT, SUFFIX, digest, fault, source


def docstrings(module: str) -> dict[str, str]:
    """Of the classes of a module."""
    tree = ast.parse(source(module).read_text("utf-8"))
    found = {node.name: ast.get_docstring(node, clean=False) for node in tree.body if isinstance(node, ast.ClassDef)}
    return {name: text for name, text in found.items() if text is not None}


def build(folder: Path, optimize: str) -> None:
    """Compile ``MODULES`` into ``folder``; what was there is gone. optimize: the compiler's -O level."""
    from mypyc.build import mypycify
    from setuptools import Distribution

    made_from = digest()
    work = folder.with_name(folder.name + ".work")
    shutil.rmtree(work, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    os.chdir(ROOT)  # modules are named by where their files are
    mypy = ["--config-file=", "--strict", "--follow-imports=silent", "--ignore-missing-imports"]
    mypy.append(f"--cache-dir={folder.with_name('mypy')}")
    files = [str(source(module).relative_to(ROOT)) for module in MODULES]
    extensions = mypycify([*mypy, *files], opt_level=optimize, group_name=GROUP, target_dir=str(work / "c"))
    for opener in extensions:
        if opener.name != LIBRARY:
            opener.extra_compile_args = ["-O0", "-g0"]
    command = Distribution({"name": GROUP, "ext_modules": extensions}).get_command_obj("build_ext")
    command.build_lib, command.build_temp = str(folder), str(work)
    command.ensure_finalized()
    command.run()
    shutil.rmtree(work)
    assert {extension.name for extension in extensions} == {LIBRARY, *MODULES}
    manifest = {"digest": made_from, "suffix": SUFFIX, "docs": {module: docstrings(module) for module in MODULES}}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", "utf-8")  # last: without it nothing is used


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER, help="where compiled modules go")
    parser.add_argument("--optimize", choices="0123", default="1", help="the C compiler's -O level")
    asked = parser.parse_args()
    if fault(asked.folder):
        build(asked.folder.resolve(), asked.optimize)
