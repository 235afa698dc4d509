"""Small formulas over results: arithmetic, comparisons, dotted names, a few functions. Never Python's ``eval``.

``baseline.latency.ttft_s.p99 / proposal.latency.ttft_s.p99`` reads two summaries; ``share(requests.ttft_s <= 2)`` a
column with one value per request. A sweep's result answers every name with one value per point.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from simulator.core.errors import ScenarioError
from simulator.core.names import suggestion

Scope = Mapping[str, Any]


class Points(tuple[Any, ...]):
    """One result per point of a sweep."""

    __slots__ = ()


def md1_wait(rate: Any, service_s: float) -> Any:
    """Mean wait in queue of M/D/1, s (Pollaczek-Khinchine): ``rho s / (2 (1 - rho))``; infinite from ``rho`` 1 on."""
    rho = np.asarray(rate, dtype=float) * service_s
    return np.where(rho < 1.0, rho * service_s / (2.0 * (1.0 - rho)), math.inf)


def mmk_wait(rate: float, service_s: float, servers: int) -> float:
    """Mean wait in queue of M/M/k, s (Erlang C; Kleinrock, Queueing Systems, 1975, section 3.5)."""
    load = rate * service_s
    if load >= servers:
        return math.inf
    full = load**servers / math.factorial(servers) * servers / (servers - load)
    waits = full / (sum(load**i / math.factorial(i) for i in range(servers)) + full)
    return waits * service_s / (servers - load)


def _share(mask: Any) -> float:
    values = np.asarray(mask, dtype=float)
    return float(values.mean()) if values.size else math.nan


def _over(reduce: Callable[[Any], Any]) -> Callable[..., float]:
    """Over one column (its NaNs apart: what never happened) or over the arguments."""

    def apply(*values: Any) -> float:
        column = np.asarray(values[0] if len(values) == 1 else values, dtype=float).ravel()
        column = column[~np.isnan(column)] if len(values) == 1 else column
        return float(reduce(column)) if column.size else math.nan

    return apply


def _percentile(column: Any, percent: float) -> float:
    values = np.asarray(column, dtype=float)
    values = values[~np.isnan(values)]
    return float(np.percentile(values, percent)) if values.size else math.nan


def _rising(values: Any) -> bool:
    return bool((np.diff(np.asarray(values, dtype=float)) > 0).all())


FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "abs": np.abs,
    "all": lambda values: bool(np.all(values)),
    "any": lambda values: bool(np.any(values)),
    "count": lambda mask: int(np.sum(mask)),
    "log": np.log,
    "max": _over(np.max),
    "mean": _over(np.mean),
    "md1_wait": md1_wait,
    "mmk_wait": mmk_wait,
    "min": _over(np.min),
    "percentile": _percentile,
    "rising": _rising,
    "share": _share,
    "sqrt": np.sqrt,
    "std": _over(np.std),
    "sum": _over(np.sum),
}
"""Functions of formulas. share: of true values; percentile(column, 99); rising: each value above the one before."""

_BINARY: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: lambda a, b: np.divide(a, b),  # a zero gives inf or NaN, which no band holds
    ast.Pow: operator.pow,
}
_COMPARE: Mapping[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}


class Formula:
    """A parsed formula. ``names``: the first parts of the dotted names in it."""

    def __init__(self, text: str) -> None:
        """Raises ScenarioError for anything that is not such a formula."""
        self.text = text
        try:
            self._node = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError) as error:
            raise ScenarioError(f"{text!r} is not a formula: {error}.") from None
        self.names: set[str] = set()
        self._check(self._node)

    def __call__(self, scope: Scope) -> Any:
        """Its value. Raises ScenarioError for a name that the scope does not hold."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self._value(self._node, scope)

    def number(self, scope: Scope) -> float:
        """Its value as a number: true is 1. What was not measured is NaN."""
        value = np.asarray(self(scope), dtype=float)
        if value.size != 1:
            raise ScenarioError(f"{self.text!r} has {value.size} values.", remedy="Reduce it: max(...), all(...).")
        return float(value.reshape(()))

    def _check(self, node: ast.expr) -> None:
        match node:
            case ast.Constant(value=bool() | int() | float() | str()):
                return
            case ast.Name(id=name):
                self.names.add(name)
            case ast.Attribute(value=inner):
                self._check(inner)
            case ast.Subscript(value=inner, slice=index):
                self._check(inner)
                self._check(index)
            case ast.UnaryOp(op=ast.USub() | ast.Not(), operand=inner):
                self._check(inner)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
                self._check(left)
                self._check(right)
            case ast.BoolOp(values=values):
                for value in values:
                    self._check(value)
            case ast.Compare(left=left, ops=ops, comparators=others) if all(type(op) in _COMPARE for op in ops):
                for value in (left, *others):
                    self._check(value)
            case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]):
                if name not in FUNCTIONS:
                    raise ScenarioError(
                        f"{self.text!r}: unknown function {name!r}.",
                        remedy=suggestion(name, FUNCTIONS, noun="functions"),
                    )
                for value in arguments:
                    self._check(value)
            case _:
                raise ScenarioError(
                    f"{self.text!r}: {ast.unparse(node)!r} is not allowed in a formula.",
                    remedy=f"Use + - * / **, comparisons, and, or, not, dotted names and {', '.join(FUNCTIONS)}.",
                )

    def _value(self, node: ast.expr, scope: Scope) -> Any:
        match node:
            case ast.Constant(value=value):
                return value
            case ast.Name(id=name):
                return self._look_up(scope, name, name)
            case ast.Attribute(value=inner, attr=name):
                return self._look_up(self._value(inner, scope), name, ast.unparse(node))
            case ast.Subscript(value=inner, slice=index):
                return self._item(self._value(inner, scope), self._value(index, scope), ast.unparse(node))
            case ast.UnaryOp(op=ast.USub(), operand=inner):
                return operator.neg(self._value(inner, scope))
            case ast.UnaryOp(operand=inner):
                return np.logical_not(self._value(inner, scope))
            case ast.BinOp(left=left, op=op, right=right):
                return _BINARY[type(op)](self._value(left, scope), self._value(right, scope))
            case ast.BoolOp(op=op, values=values):
                join = np.logical_and if isinstance(op, ast.And) else np.logical_or
                return join.reduce(np.broadcast_arrays(*(self._value(value, scope) for value in values)))
            case ast.Compare(left=left, ops=ops, comparators=others):
                sides = [self._value(value, scope) for value in (left, *others)]
                found = [_COMPARE[type(op)](a, b) for op, a, b in zip(ops, sides, sides[1:], strict=False)]
                return found[0] if len(found) == 1 else np.logical_and.reduce(np.broadcast_arrays(*found))
            case ast.Call(func=ast.Name(id=name), args=arguments):
                return FUNCTIONS[name](*(self._value(value, scope) for value in arguments))
        raise AssertionError(ast.dump(node))  # _check let nothing else in

    def _look_up(self, owner: Any, name: str, path: str) -> Any:
        if isinstance(owner, Points):
            found = [self._look_up(point, name, path) for point in owner]
            return Points(found) if any(isinstance(value, Mapping) for value in found) else np.asarray(found)
        if not isinstance(owner, Mapping):
            raise ScenarioError(f"{self.text!r}: there is nothing below {path.rpartition('.')[0]!r}.")
        if name not in owner:
            raise ScenarioError(
                f"{self.text!r}: there is no {path!r}.", remedy=suggestion(name, map(str, owner), noun="names there")
            )
        value = owner[name]
        return math.nan if value is None else value

    def _item(self, owner: Any, index: Any, path: str) -> Any:
        if isinstance(owner, Points) and isinstance(index, str):
            return self._look_up(owner, index, path)
        if isinstance(owner, Sequence | np.ndarray) and isinstance(index, int):
            if not -len(owner) <= index < len(owner):
                raise ScenarioError(f"{self.text!r}: {path!r} is beyond the {len(owner)} values.")
            return owner[index]
        return self._look_up(owner, str(index), path)
