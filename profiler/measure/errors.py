"""What a user can get wrong. Own class, because the simulator's is not there on a bare GPU machine."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CampaignError(Exception):
    """A campaign that cannot be run. ``where``: file, line and field; ``remedy``: how to put it right."""

    def __init__(self, message: str, *, where: str | None = None, remedy: str | None = None) -> None:
        super().__init__(message)
        self.message, self.where, self.remedy = message, where, remedy

    def __str__(self) -> str:
        located = f"{self.where}: {self.message}" if self.where else self.message
        return f"{located}\n  {self.remedy}" if self.remedy else located


class Unmeasurable(Exception):  # noqa: N818 - a finding about one point, recorded and passed over
    """This device cannot run this point (no such kernel, unsupported dtype, wrong result); the text says why."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A remedy: the closest known name, or all of them."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"Did you mean {close[0]!r}?" if close else "Known: " + ", ".join(known) + "."
