"""Which adapter (LoRA) a request asks for, drawn for traces that name none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from simulator.core.errors import TraceError
from traces.trace import Labels, Trace


def with_adapters(
    trace: Trace, count: int, rng: np.random.Generator, *, zipf: float = 0.0, in_turn: bool = False,
    merged: bool = False,
) -> Trace:  # fmt: skip
    """Each request asks for one of ``count`` adapters, drawn with probability proportional to ``rank ** -zipf``.

    in_turn: one after the other instead, so that ``count`` requests in a row are all different. merged: it is the name
    of the model they ask for, too: a copy with the adapter in its weights.
    """
    if count < 1:
        raise TraceError(f"with_adapters: count must be >= 1, not {count}", where=trace.source)
    if not 0 <= zipf < float("inf"):
        raise TraceError(f"with_adapters: zipf must be >= 0 and finite, not {zipf}", where=trace.source)
    weight = np.arange(1, count + 1, dtype=np.float64) ** -zipf
    codes = np.arange(len(trace)) % count if in_turn else rng.choice(count, size=len(trace), p=weight / weight.sum())
    width = len(str(count - 1))
    labels = Labels(codes.astype(np.int32), tuple(f"adapter-{i:0{width}d}" for i in range(count)))
    return replace(trace, adapter=labels, model=labels if merged else trace.model)
