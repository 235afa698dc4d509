"""Policies by registered name, or by ``package.module:Class``."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar, cast

from simulator.core.errors import PolicyError
from simulator.core.names import suggestion

T = TypeVar("T")


class Registry(Generic[T]):
    """Named factories of one kind: classes or functions.

    >>> routers: Registry[type] = Registry("router")
    >>> @routers.register("round_robin")
    ... class RoundRobin: ...
    >>> routers.get("round_robin") is RoundRobin
    True
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that files its class or function under ``name``; a taken name is an error."""

        def enter(entry: T) -> T:
            if name in self._entries:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._entries[name] = entry
            return entry

        return enter

    def get(self, name: str) -> T:
        """The entry of that name, or the object that ``package.module:Class`` names.

        Raises PolicyError with the nearest name when there is none.
        """
        if ":" in name:
            return cast("T", _load(self.kind, name))
        if name not in self._entries:
            noun = f"registered {self.kind} names"
            raise PolicyError(f"unknown {self.kind} {name!r}.", remedy=suggestion(name, self._entries, noun=noun))
        return self._entries[name]

    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self._entries))

    def items(self) -> Iterator[tuple[str, T]]:
        for name in self.names():
            yield name, self._entries[name]

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def __len__(self) -> int:
        return len(self._entries)


def first_line(entry: object) -> str:
    """First line of the entry's own docstring ('' when it has none)."""
    doc = getattr(entry, "__doc__", None)
    return doc.strip().splitlines()[0] if isinstance(doc, str) and doc.strip() else ""


_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)


def _load(kind: str, name: str) -> object:
    module_name, _, attribute = name.partition(":")
    if not (_DOTTED.fullmatch(module_name) and _DOTTED.fullmatch(attribute)):
        raise PolicyError(f"{kind} {name!r} is not of the form package.module:Class.")
    try:
        found: object = importlib.import_module(module_name)
    except ImportError as error:
        raise PolicyError(
            f"{kind} {name!r}: cannot import {module_name!r} ({error}).",
            remedy="Give an importable module: installed, or in a folder on PYTHONPATH.",
        ) from error
    except SyntaxError as error:
        message = f"{kind} {name!r}: {error.filename}, line {error.lineno}: {error.msg}."
        raise PolicyError(message, remedy="Correct that file.") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            public = [entry for entry in dir(found) if not entry.startswith("_")]
            raise PolicyError(
                f"{kind} {name!r}: {module_name!r} has no {attribute!r}.",
                remedy=suggestion(part, public, noun="names there"),
            )
        found = getattr(found, part)
    return found
