"""Which replicas could serve a request: open ones, of its model, that hold a request of its length."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from simulator.cluster.plan import Group
from traces.trace import Trace

Ints = NDArray[np.int64]


class Candidates:
    """Per row of the trace, the groups that could serve it; per such set of groups, their open replicas."""

    def __init__(
        self,
        trace: Trace,
        groups: Sequence[Group],
        member: Sequence[int],
        *,
        roles: Sequence[str],
        handed_to: Candidates | None = None,
    ) -> None:
        """member: group of each replica. roles: groups of other roles are left out.
        handed_to: where requests go whose prompt has been computed. A prefill replica is no candidate for those that
        would have nowhere to go; what opens and closes here does there too.
        """
        self._member = member
        self._open = [True] * len(member)
        self._found: dict[int, NDArray[np.int64]] = {}
        self._handed_to = handed_to
        kinds = np.zeros(len(trace), dtype=np.int64)
        for g, group in enumerate(groups):
            if group.role in roles:
                fits = _serves(trace, group)
                if group.role == "prefill" and handed_to is not None:
                    fits &= ~handed_to.nobody | (trace.output_tokens == 1)
                kinds |= np.where(fits, 1 << g, 0)
        self.nobody: NDArray[np.bool_] = kinds == 0  # rows that no replica could ever serve
        several = np.unique(kinds[~self.nobody])
        self._kind = int(several[0]) if len(several) else 0
        self._kinds = kinds.tolist() if len(several) > 1 else None

    def of(self, row: int) -> Ints:
        """Replicas for a row, ascending; empty when all that could serve it are closed."""
        kind = self._kind if self._kinds is None else self._kinds[row]
        found = self._found.get(kind)  # the same array until something opens or closes
        if found is None:
            chosen = [i for i, g in enumerate(self._member) if kind >> g & 1 and self._open[i]]
            found = self._found[kind] = np.array(chosen, dtype=np.int64)
        return found

    def kind(self, row: int) -> int:
        """Equal for rows that the same groups could serve."""
        return self._kind if self._kinds is None else self._kinds[row]

    def set_open(self, replica: int, is_open: bool) -> None:
        """A replica begins or ceases to take requests."""
        self._open[replica] = is_open
        self._found.clear()
        if self._handed_to is not None:
            self._handed_to.set_open(replica, is_open)

    def is_open(self, replica: int) -> bool:
        return self._open[replica]


def _serves(trace: Trace, group: Group) -> NDArray[np.bool_]:
    """Rows short enough for a group's engine and meant for its model. vLLM answers longer ones with an error."""
    tokens = trace.prompt_tokens + (1 if group.role == "prefill" else trace.output_tokens)
    fits: NDArray[np.bool_] = tokens <= group.longest_request
    if group.model is not None and trace.model is not None:
        names = trace.model.names
        code = names.index(group.model) if group.model in names else len(names)
        fits &= (trace.model.codes == code) | (trace.model.codes < 0)
    return fits
