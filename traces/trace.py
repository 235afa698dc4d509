"""The ``Trace`` table: what arrives at the cluster, one row per request.

Columns (absent optional columns are ``None`` and cost nothing):

=================  ========  ==========================================================
column             unit      meaning
=================  ========  ==========================================================
``arrival``        s         time since the start of the trace, non-decreasing
``prompt_tokens``  tokens    length of the whole prompt, history included, >= 1
``output_tokens``  tokens    tokens to generate, >= 1
``session``        id        conversation the request belongs to (-1: none)
``turn``           index     position in the session, from 0
``think_time``     s         gap between the end of the previous turn and this arrival;
                             NaN: open loop, ``arrival`` is used as it stands
``prefix``         ids       full prompt blocks as chained ids: equal id = equal prefix
``tenant``         label     who pays
``priority``       int       smaller is served first (vLLM's convention), default 0
``adapter``        label     LoRA adapter
``model``          label     model asked for
``slo_class``      label     service class
=================  ========  ==========================================================
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Labels:
    """A categorical column: ``names[codes[i]]``; code -1 is "not given"."""

    codes: NDArray[np.int32]
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PrefixBlocks:
    """Ragged block ids in CSR form.

    Row ``i`` owns ``ids[offsets[i]:offsets[i + 1]]``. Id ``j`` of a row stands for prompt tokens
    ``[j * block_tokens, (j + 1) * block_tokens)`` *and everything before them*: two rows that hold
    the same id at a position have the same prompt up to its end. Only full blocks are listed.
    """

    offsets: Ints  # (n + 1,)
    ids: Ints  # (offsets[-1],)
    block_tokens: int


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests sorted by arrival. See the module's table for columns and units."""

    arrival: Floats
    prompt_tokens: Ints
    output_tokens: Ints
    session: Ints | None = None
    turn: Ints | None = None
    think_time: Floats | None = None
    prefix: PrefixBlocks | None = None
    tenant: Labels | None = None
    priority: Ints | None = None
    adapter: Labels | None = None
    model: Labels | None = None
    slo_class: Labels | None = None
    source: str = "unnamed"
    notes: tuple[str, ...] = field(default=())  # e.g. "3 rows skipped: output_tokens = 0"

    def __len__(self) -> int:
        return len(self.arrival)
