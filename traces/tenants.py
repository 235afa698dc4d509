"""Who shares a prefix cache: tenants drawn for traces that name none, and caches that tenants do not share."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from simulator.core.errors import TraceError
from traces.trace import Ints, Labels, Trace

Salt = Literal["tenant", "session"]


def with_tenants(trace: Trace, count: int, rng: np.random.Generator, *, zipf: float = 0.0) -> Trace:
    """Each conversation (request, where there are none) belongs to one of ``count`` tenants, drawn with probability
    proportional to ``rank ** -zipf``."""
    if count < 1:
        raise TraceError(f"with_tenants: count must be >= 1, not {count}", where=trace.source)
    if not 0 <= zipf < float("inf"):
        raise TraceError(f"with_tenants: zipf must be >= 0 and finite, not {zipf}", where=trace.source)
    weight = np.arange(1, count + 1, dtype=np.float64) ** -zipf
    codes = rng.choice(count, size=len(trace), p=weight / weight.sum()).astype(np.int32)
    if trace.session is not None and len(trace):
        known, first, which = np.unique(trace.session, return_index=True, return_inverse=True)
        together = (known >= 0)[which]
        codes = np.where(together, codes[first[which]], codes)
    width = len(str(count - 1))
    return replace(trace, tenant=Labels(codes, tuple(f"tenant-{i:0{width}d}" for i in range(count))))


def salted(trace: Trace, by: Salt) -> Trace:
    """The same trace for a prefix cache in which only one tenant's (or conversation's) own requests hit each other.

    What vLLM's ``cache_salt`` does: the salt is part of every block's hash, so equal text of two salts is two blocks.
    Requests without a tenant (a conversation) share one salt. Raises TraceError when the trace has no such column.
    """
    salt = trace.session if by == "session" else None if trace.tenant is None else trace.tenant.codes
    if salt is None:
        remedy = "Draw some with the transform `tenants`." if by == "tenant" else "Salt by tenant instead."
        raise TraceError(f"cache_salt: the trace has no {by} column", where=trace.source, remedy=remedy)
    prefix, chunks = trace.prefix, trace.chunks
    if prefix is not None:
        prefix = replace(prefix, ids=_with_salt(prefix.ids, np.repeat(salt, prefix.counts())))
    if chunks is not None:
        chunks = replace(chunks, ids=_with_salt(chunks.ids, np.repeat(salt, chunks.counts())))
    return replace(trace, prefix=prefix, chunks=chunks)


def _with_salt(ids: Ints, salt: NDArray[Any]) -> Ints:
    _, block = np.unique(ids, return_inverse=True)
    names, code = np.unique(salt, return_inverse=True)
    _, salted_ids = np.unique(block * len(names) + code, return_inverse=True)
    return np.asarray(salted_ids, dtype=np.int64)
