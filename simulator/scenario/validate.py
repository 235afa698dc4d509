"""Plain data -> frozen ``Scenario``; every complaint of pydantic becomes a located sentence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from simulator.core.errors import ScenarioError, UserError
from simulator.core.names import nearest, suggestion
from simulator.scenario.config import Scenario
from simulator.scenario.source import Path_, Source, Value, dotted

MAX_SHOWN = 10


@cache
def adapter() -> TypeAdapter[Scenario]:
    return TypeAdapter(Scenario)


@cache
def json_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of a scenario file."""
    schema = adapter().json_schema(mode="validation")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "Windtunnel scenario"}


def validate(source: Source) -> Scenario:
    """Raises ScenarioError that names file, line, path and value of each problem (the first ten), and the remedy."""
    try:
        return adapter().validate_python(source.data)
    except ValidationError as error:
        problems = [_problem(source, details) for details in error.errors(include_url=False)]
        problems.sort(key=_line)
    except UserError as error:
        raise ScenarioError(error.message, where=error.where or source.name, remedy=error.remedy) from None
    except RecursionError:
        raise ScenarioError("is nested too deeply.", where=source.name) from None
    if len(problems) == 1:
        raise problems[0]
    shown = "\n".join(str(problem) for problem in problems[:MAX_SHOWN])
    more = f"\nand {len(problems) - MAX_SHOWN} more." if len(problems) > MAX_SHOWN else ""
    raise ScenarioError(f"{len(problems)} problems in {source.name}:\n{shown}{more}")


def _line(problem: ScenarioError) -> tuple[bool, int]:
    parts = (problem.where or "").split(":")
    return parts[0].startswith("--set"), next((int(part) for part in parts[1:] if part.isdecimal()), 0)


def _problem(source: Source, details: ErrorDetails) -> ScenarioError:
    kind = details["type"]
    path = data_path(details["loc"], source.data, whole=kind in _ABOUT_A_NAME)
    if kind in ("unexpected_keyword_argument", "extra_forbidden"):
        return _unknown_field(source, path)
    if kind == "missing":
        parent, name = path[:-1], str(path[-1])
        remedy = _describe(path, source)
        return ScenarioError(f"the field {name!r} is missing.", where=source.where(parent), remedy=remedy)
    message, remedy = explain(details)
    return ScenarioError(message, where=source.where(path), remedy=remedy)


_ABOUT_A_NAME = ("unexpected_keyword_argument", "extra_forbidden", "missing")


def explain(details: ErrorDetails) -> tuple[str, str | None]:
    """What is wrong with a value, and what would put it right, in words of ours."""
    kind, value = details["type"], details["input"]
    ctx: Mapping[str, Any] = details.get("ctx", {})
    shown = _show(value)
    if kind in _WANTED:
        return f"{shown} is not {_WANTED[kind]}.", _unquote(kind, value)
    if kind == "literal_error":
        names = str(ctx["expected"]).replace(" or ", ", ").replace("'", "").split(", ")
        close = nearest(value, names) if isinstance(value, str) else None
        hint = f"Did you mean {close!r}? " if close else ""
        return f"{shown} is not one of the values.", f"{hint}Values: {', '.join(names)}."
    if kind == "union_tag_invalid":
        names = str(ctx["expected_tags"]).replace("'", "").split(", ")
        key = str(ctx["discriminator"]).strip("'")
        return f"unknown {key} {ctx['tag']!r}.", suggestion(str(ctx["tag"]), names, noun="values")
    if kind == "union_tag_not_found":
        return f"the field {ctx['discriminator']} is missing.", None
    if kind == "value_error":
        return str(ctx.get("error", details["msg"])), None
    if kind == "too_short":
        return "is empty.", f"Give at least {ctx['min_length']}."
    for limit, words in _LIMITS.items():
        if limit in ctx:
            return f"{shown} is out of range: it must be {words} {ctx[limit]}.", None
    return f"{shown}: {details['msg'][:1].lower()}{details['msg'][1:]}.", None


_WANTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "dataclass_type": "a mapping of fields",
    "model_attributes_type": "a mapping of fields",
    "dict_type": "a mapping",
    "list_type": "a list",
    "tuple_type": "a list",
    "string_too_short": "long enough to be a name",
    "string_pattern_mismatch": "made of letters, digits, dots, dashes and underscores",
}
_LIMITS = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}


def _unquote(kind: str, value: object) -> str | None:
    if kind in ("int_type", "float_type") and isinstance(value, str):
        try:
            float(value)
        except ValueError:
            return None
        return "Write it without quotes."
    if kind == "string_type" and isinstance(value, bool | int | float):
        return f'Write it in quotes: "{value}".'
    if kind in ("list_type", "tuple_type") and isinstance(value, str | int | float):
        return f"Write it as one: [{value}]."
    return None


def _show(value: object) -> str:
    if value is None:
        return "nothing (null)"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def data_path(loc: tuple[int | str, ...], data: Value, *, whole: bool) -> Path_:
    """Pydantic's location without the parts that name union members, which the file does not hold.

    whole: the last part is a field's name, present in the file or not.
    """
    path: list[str | int] = []
    node: Value = data
    for position, part in enumerate(loc):
        if isinstance(node, dict) and part in node:
            node = node[str(part)]
        elif isinstance(node, list) and isinstance(part, int) and part < len(node):
            node = node[part]
        elif not (whole and position == len(loc) - 1):
            continue
        path.append(part)
    return tuple(path)


def _unknown_field(source: Source, path: Path_) -> ScenarioError:
    name = str(path[-1])
    valid = _fields_at(path[:-1], source.data)
    remedy = suggestion(name, valid, noun="fields here")
    if nearest(name, valid) is None:
        key = name.replace("-", "_")
        elsewhere = [dotted(known) for known in _all_fields() if known[-1] == key]
        if elsewhere:
            remedy = f"Did you mean {elsewhere[0]!r}?"
    return ScenarioError(f"unknown field {name!r}.", where=source.where(path), remedy=remedy)


def _describe(path: Path_, source: Source) -> str | None:
    properties = {k: v for node in _nodes_at(path[:-1], source.data) for k, v in node.get("properties", {}).items()}
    description = properties.get(str(path[-1]), {}).get("description")
    return f"{path[-1]}: {' '.join(description.split())}" if description else None


def _fields_at(path: Path_, data: Value) -> list[str]:
    return sorted({name for node in _nodes_at(path, data) for name in node.get("properties", {})})


def _nodes_at(path: Path_, data: Value) -> list[dict[str, Any]]:
    """Object schemas that the value at ``path`` may follow; a union's tag in the data picks its member."""
    nodes, here = _objects(json_schema(), data), data
    for part in path:
        here = here[part] if isinstance(here, dict | list) else None  # type: ignore[index]
        children = [
            node["properties"][part] for node in nodes if isinstance(part, str) and part in node.get("properties", {})
        ] + [node["items"] for node in nodes if isinstance(part, int) and "items" in node]
        nodes = [found for child in children for found in _objects(child, here)]
    return nodes


def _objects(schema: dict[str, Any], data: Value) -> list[dict[str, Any]]:
    if "$ref" in schema:
        return _objects(json_schema()["$defs"][schema["$ref"].rpartition("/")[2]], data)
    if "discriminator" in schema and isinstance(data, dict):
        tag = data.get(schema["discriminator"]["propertyName"])
        chosen = schema["discriminator"]["mapping"].get(tag) if isinstance(tag, str) else None
        if chosen:
            return _objects({"$ref": chosen}, data)
    members = [*schema.get("anyOf", ()), *schema.get("oneOf", ()), *schema.get("allOf", ())]
    if members:
        return [found for member in members for found in _objects(member, data)]
    return [schema] if "properties" in schema or "items" in schema else []


@cache
def _all_fields() -> tuple[tuple[str, ...], ...]:
    def walk(schema: dict[str, Any], path: tuple[str, ...], depth: int) -> Iterator[tuple[str, ...]]:
        for node in _objects(schema, None):
            for name, child in node.get("properties", {}).items():
                yield (*path, name)
                if depth:
                    yield from walk(child, (*path, name), depth - 1)

    return tuple(sorted(set(walk(json_schema(), (), 4)), key=lambda found: (len(found), found)))
