"""Options of one policy, as a scenario gives them, read into the policy's own frozen dataclass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import inf, isfinite
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from simulator.core.errors import PolicyError
from simulator.core.names import suggestion


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers from ``low`` to ``high``, both included: ``Annotated[float, Range(0, 1)]``."""

    low: float
    high: float = inf


@dataclass(frozen=True, slots=True)
class NoOptions:
    """For policies that have none."""


T = TypeVar("T")


def read_options(kind: type[T], policy: str, given: Mapping[str, object], what: str = "engine policy") -> T:
    """An instance of the dataclass ``kind``, whose fields are ``bool``, ``int``, ``float``, ``str`` or ``Literal`` of
    texts, numbers optionally with a ``Range``. what: the kind of policy, for messages.

    Raises PolicyError that names the option, its value and what would be right.
    """
    owner = f"{what} {policy!r}"
    hints = get_type_hints(kind, include_extras=True)
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    for name, value in given.items():
        if name not in names:
            noun = f"options of {owner}"
            remedy = suggestion(name, names, noun=noun) if names else f"{owner[0].upper()}{owner[1:]} has no options."
            raise PolicyError(f"{owner}: unknown option {name!r} (given {value!r}).", remedy=remedy)
    return kind(**{name: _checked(owner, name, value, hints[name]) for name, value in given.items()})


def numbers(owner: str, name: str, text: str) -> tuple[float, ...]:
    """The positive numbers of an option such as "1, 2.5". owner: whose option, such as "router 'random'".

    Raises PolicyError for anything else.
    """
    try:
        found = tuple(float(part) for part in text.split(",")) if text.strip() else ()
    except ValueError:
        found = (-1.0,)
    if not all(isfinite(value) and value > 0 for value in found):
        raise PolicyError(
            f"{owner}: option {name!r} is {text!r}.", remedy="Give positive numbers separated by commas."
        )
    return found


def _checked(owner: str, name: str, value: object, hint: Any) -> object:
    limits: list[Range] = []
    if get_origin(hint) is Annotated:
        hint, *limits = get_args(hint)
    message = f"{owner}: option {name!r} is {value!r}"
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise PolicyError(f"{message}.", remedy=suggestion(str(value), get_args(hint), noun=f"values of {name}"))
        return value
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is bool or hint is str:
        right = isinstance(value, hint)
    elif hint is int:
        right = isinstance(value, int) and number
    else:
        right = number
    if not right:
        wanted = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[hint]
        raise PolicyError(f"{message}.", remedy=f"Give {wanted}.")
    for limit in limits:
        assert isinstance(value, (int, float))
        if not (isfinite(value) and limit.low <= value <= limit.high):
            bound = f"from {limit.low:g} to {limit.high:g}" if limit.high < inf else f"of at least {limit.low:g}"
            raise PolicyError(f"{message}.", remedy=f"Give a number {bound}.")
    return value
