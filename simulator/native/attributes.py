"""What mypyc is told of a class that it compiles; nothing where its source runs as it is.

``allow_interpreted_subclasses``: ordinary classes may derive from it, as policies of other packages do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

__all__ = ["mypyc_attr"]

if TYPE_CHECKING:
    from mypy_extensions import mypyc_attr
else:
    T = TypeVar("T")

    def mypyc_attr(**_: object) -> Callable[[T], T]:
        return lambda compiled: compiled
