"""YAML in, plain data out, with the place where each value was written.

A strict dialect: YAML 1.2's core scalars (``1e-3`` is a number, ``on`` is text, no dates, no octal), duplicate keys
refused, plain tags only, bounded depth and size.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from simulator.core.errors import ScenarioError

Value = None | bool | int | float | str | list["Value"] | dict[str, "Value"]
Path_ = tuple[str | int, ...]

MAX_FILE_BYTES = 4 << 20
MAX_DEPTH = 50
MAX_NODES = 200_000

# Where plain text (or a number) stands for a mapping with one field; ``--set`` writes it out before it adds another.
# The schema's ``Shorthand`` annotations, which stand a floor above this file, say the same.
SHORTHANDS: Mapping[Path_, str] = {
    ("model",): "name",
    ("hardware",): "gpu",
    ("slo",): "preset",
    ("cluster",): "replicas",
    ("cluster", "router"): "policy",
    ("workload", "trace"): "path",
    ("workload", "preset"): "name",
}


class Loader(yaml.SafeLoader):
    """SafeLoader's syntax with YAML 1.2's core scalars."""


Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9_]*)|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        (
            r"[-+]?(?:[0-9][0-9_]*\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
            r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
        ),
        list("-+.0123456789"),
    ),
):
    Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)


@dataclass(frozen=True)
class Source:
    """Plain data and where it came from.

    marks: path of a value -> ``file:line`` or ``--set path=value``. Values without one are where their parent is.
    """

    name: str  # what to call the file in messages
    folder: Path  # relative paths in the file start here
    data: dict[str, Value]
    marks: Mapping[Path_, str] = field(default_factory=dict)

    def where(self, path: Path_) -> str:
        """``quickstart.yaml:12: engine.max_num_seqs``; the nearest ancestor's line when the path is not there."""
        for length in range(len(path), -1, -1):
            if path[:length] in self.marks:
                mark = self.marks[path[:length]]
                break
        else:
            mark = self.name
        return f"{mark}: {dotted(path)}" if path else mark


def dotted(path: Path_) -> str:
    return ".".join(str(part) for part in path)


def read_source(path: str | Path) -> Source:
    """Read one YAML file. Raises ScenarioError, with file and line, for anything that is not a plain mapping."""
    path = Path(path)
    name = str(path)
    try:
        if path.is_dir():
            raise ScenarioError("is a directory, not a scenario file.", where=name)
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ScenarioError(f"is larger than {MAX_FILE_BYTES >> 20} MiB: not a scenario.", where=name)
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ScenarioError("no such file.", where=name, remedy=_neighbours(path)) from None
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a NUL in the path
        raise ScenarioError(f"cannot be read: {error}.", where=name) from error
    return parse_source(text, name=name, folder=path.parent)


def _neighbours(path: Path) -> str:
    try:
        found = sorted(p.name for p in path.parent.glob("*.yaml"))
    except (OSError, ValueError):
        found = []
    return f"Scenarios in {path.parent}: {', '.join(found[:20])}." if found else "Check the path."


def parse_source(text: str, *, name: str = "scenario", folder: Path = Path()) -> Source:
    """Parse the text of a scenario. Raises ScenarioError like ``read_source``."""
    node = _compose(text, name)
    if node is None:
        raise ScenarioError("is empty.", where=name, remedy="See scenarios/quickstart.yaml for a complete example.")
    builder = _Builder(name)
    data = builder.build(node, (), depth=0)
    if not isinstance(data, dict):
        raise ScenarioError(
            f"must be a mapping of fields, not {_kind(data)}.",
            where=f"{name}:1",
            remedy="Start with `name: ...`; see scenarios/quickstart.yaml.",
        )
    return Source(name, folder, data, builder.marks)


def _compose(text: str, name: str) -> yaml.Node | None:
    try:
        loader = Loader(text)
        try:
            return loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}" if mark else name
        what = ", ".join(part for part in (error.context, error.problem) if part)
        raise ScenarioError(f"not valid YAML: {what}.", where=where) from None
    except yaml.reader.ReaderError as error:
        raise ScenarioError(f"not valid YAML: {error.reason} at character {error.position}.", where=name) from None
    except RecursionError:
        raise ScenarioError("is nested too deeply.", where=name) from None
    except (ValueError, OverflowError) as error:  # an escape such as "\U00110000" is not a character
        raise ScenarioError(f"not valid YAML: {error}.", where=name) from None


class _Builder:
    """Turns a node tree into plain data and remembers the line of each path."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.marks: dict[Path_, str] = {}
        self._nodes = 0

    def build(self, node: yaml.Node, path: Path_, depth: int) -> Value:
        self._nodes += 1
        if depth > MAX_DEPTH or self._nodes > MAX_NODES:
            raise ScenarioError("is nested too deeply or too large (an alias of itself?).", where=self._at(node))
        self.marks.setdefault(path, self._at(node))
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path, depth)
        if isinstance(node, yaml.SequenceNode):
            self._plain(node, "seq")
            return [self.build(child, (*path, index), depth + 1) for index, child in enumerate(node.value)]
        return self._scalar(node)

    def _mapping(self, node: yaml.MappingNode, path: Path_, depth: int) -> Value:
        self._plain(node, "map")
        data: dict[str, Value] = {}
        for key_node, value_node in node.value:
            key = self._scalar(key_node) if isinstance(key_node, yaml.ScalarNode) else None
            if not isinstance(key, str):
                raise ScenarioError("field names must be plain text.", where=self._at(key_node))
            child = (*path, key)
            if key in data:
                first = self.marks[child].rpartition(":")[2]
                raise ScenarioError(
                    f"{dotted(child)} is given twice (first on line {first}).",
                    where=self._at(key_node),
                    remedy="Remove one of the two.",
                )
            self.marks[child] = self._at(key_node)
            data[key] = self.build(value_node, child, depth + 1)
        return data

    def _scalar(self, node: yaml.Node) -> Value:
        kind, text = node.tag.removeprefix("tag:yaml.org,2002:"), str(node.value)
        try:
            match kind:
                case "str":
                    return text
                case "null":
                    return None
                case "bool":
                    return text.lower() == "true"
                case "int":
                    return int(text, 16) if text.startswith("0x") else int(text.replace("_", ""))
                case "float":
                    return float(text.replace("_", "").replace(".inf", "inf").replace(".nan", "nan"))
        except ValueError as error:
            raise ScenarioError(f"{text[:60]!r} is not a number: {error}.", where=self._at(node)) from None
        raise ScenarioError(f"the YAML tag {node.tag!r} is not allowed here.", where=self._at(node))

    def _plain(self, node: yaml.Node, kind: str) -> None:
        if node.tag != f"tag:yaml.org,2002:{kind}":
            raise ScenarioError(f"the YAML tag {node.tag!r} is not allowed here.", where=self._at(node))

    def _at(self, node: yaml.Node) -> str:
        return f"{self.name}:{node.start_mark.line + 1}"


def _kind(value: Value) -> str:
    match value:
        case None:
            return "nothing"
        case list():
            return "a list"
        case dict():
            return "a mapping"
        case _:
            return f"the {'text' if isinstance(value, str) else 'value'} {value!r}"


def override(source: Source, settings: list[str] | tuple[str, ...]) -> Source:
    """Apply ``a.b=value`` settings in order; values are parsed as YAML. Raises ScenarioError naming the path."""
    for setting in settings:
        source = _override_one(source, setting)
    return source


def _override_one(source: Source, setting: str) -> Source:
    where = f"--set {setting}"
    target, equals, text = setting.partition("=")
    keys = target.strip().split(".")
    if not equals or not all(keys):
        remedy = "Example: --set engine.max_num_seqs=64"
        raise ScenarioError("is not of the form path=value.", where=where, remedy=remedy)
    node = _compose(text, f"{where}: value")
    builder = _Builder(where)
    value = builder.build(node, (), depth=0) if node is not None else None
    data = _copy(source.data)
    path = tuple(_descend_and_set(data, keys, value, where))
    marks = {known: mark for known, mark in source.marks.items() if known[: len(path)] != path}
    marks[path] = where
    assert isinstance(data, dict)
    return Source(source.name, source.folder, data, marks)


def _copy(value: Value) -> Value:
    if isinstance(value, dict):
        return {key: _copy(child) for key, child in value.items()}
    return [_copy(child) for child in value] if isinstance(value, list) else value


def _container(value: Value, path: Path_, below: str) -> Value:
    """What stands at ``path`` and is to take the key ``below``."""
    if value is None:
        return [] if below == "0" else {}
    plain = isinstance(value, str) or type(value) is int
    return {SHORTHANDS[path]: value} if plain and path in SHORTHANDS else value


def _descend_and_set(data: Value, keys: list[str], value: Value, where: str) -> Iterator[str | int]:
    """Yield the path as it is walked. What is missing (or null) on the way is made, shorthands are written out."""
    for position, key in enumerate(keys):
        last = position == len(keys) - 1
        if isinstance(data, dict):
            if last:
                data[key] = value
            else:
                data[key] = _container(data.get(key), tuple(keys[: position + 1]), keys[position + 1])
            yield key
            data = data[key]
        elif isinstance(data, list):
            if key.isdecimal() and int(key) == len(data):
                data.append({})
            if not key.isdecimal() or int(key) >= len(data):
                raise ScenarioError(
                    f"{'.'.join(keys[:position])} is a list of {len(data)}; {key!r} is not one of its positions.",
                    where=where,
                    remedy="Positions count from 0.",
                )
            if last:
                data[int(key)] = value
            yield int(key)
            data = data[int(key)]
        else:
            parent = ".".join(keys[:position])
            raise ScenarioError(
                f"{parent} is {_kind(data)}, so it has no {key!r}.",
                where=where,
                remedy=f"Set {parent} as a whole, or write it as a mapping in the scenario.",
            )
