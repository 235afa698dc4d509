"""Chunks of prompts, and the documents that a retriever finds."""

from __future__ import annotations

import numpy as np
import pytest

from simulator.core.errors import TraceError
from traces import transforms
from traces.describe import describe
from traces.generate import Documents, Generators, Lengths, synthesize
from traces.generate import arrivals as arrive
from traces.generate.distributions import Fixed, Uniform
from traces.prefix import is_chained
from traces.tenants import salted
from traces.trace import Chunks, Labels, Trace

THREE = Chunks(np.array([0, 2, 3, 5]), np.array([7, 8, 7, 8, 7]), np.array([16, 20, 16, 20, 16]))
PLAIN = Trace(np.arange(3.0), np.array([40, 30, 50]), np.ones(3, dtype=np.int64), chunks=THREE)


def rag(n: int = 400, **given: object) -> Trace:
    options = {"count": 50, "tokens": Uniform(20, 60), "per_request": 3, "zipf": 1.0} | given
    return synthesize(
        arrivals=arrive.Poisson(1.0),
        lengths=Lengths(Fixed(10), Fixed(5)),
        documents=Documents(**options),  # type: ignore[arg-type]
        num_requests=n,
        generators=Generators.of(1),
    )


def test_chunks_hold_no_more_than_the_prompt() -> None:
    with pytest.raises(TraceError, match="row 2: chunks = 2 chunks hold more tokens than the prompt"):
        Trace(np.arange(3.0), np.array([40, 30, 35]), np.ones(3, dtype=np.int64), chunks=THREE)


def test_chunks_go_with_their_rows() -> None:
    picked = PLAIN.select(np.array([0, 2])).chunks
    assert picked is not None
    assert (picked.ids.tolist(), picked.offsets.tolist()) == ([7, 8, 8, 7], [0, 2, 4])
    assert describe(PLAIN).chunk_hit_ratio == pytest.approx((16 + 20 + 16) / 120)


def test_clipping_drops_what_no_longer_fits() -> None:
    cut = transforms.clip_lengths(PLAIN, max_prompt_tokens=35).chunks
    assert cut is not None
    assert (cut.ids.tolist(), cut.totals().tolist()) == ([7, 7, 8], [16, 16, 20])


def test_merged_traces_share_chunks_only_if_told() -> None:
    apart, together = (transforms.merge([PLAIN, PLAIN], share_prefixes=share).chunks for share in (False, True))
    assert apart is not None
    assert together is not None
    assert (len(np.unique(apart.ids)), len(np.unique(together.ids))) == (4, 2)


def test_a_salt_keeps_chunks_apart_too() -> None:
    tenants = Labels(np.array([0, 1, 0], dtype=np.int32), ("a", "b"))
    chunks = salted(
        Trace(np.arange(3.0), PLAIN.prompt_tokens, np.ones(3, dtype=np.int64), chunks=THREE, tenant=tenants), "tenant"
    ).chunks
    assert chunks is not None
    assert len(np.unique(chunks.ids)) == 3
    assert chunks.ids[0] == chunks.ids[4] != chunks.ids[2]


def test_documents_differ_within_a_prompt_and_popular_ones_come_often() -> None:
    trace = rag(4000)
    assert trace.chunks is not None
    found = trace.chunks.ids.reshape(-1, 3)
    assert all(len(set(row)) == 3 for row in found.tolist())
    first = np.bincount(found[:, 0], minlength=51)[1:] / 4000
    harmonic = (1 / np.arange(1, 51)).sum()
    np.testing.assert_allclose(first[:3], np.array([1, 1 / 2, 1 / 3]) / harmonic, rtol=0.1)
    assert (trace.prompt_tokens == 10 + trace.chunks.totals()).all()


def test_the_order_of_documents_makes_a_prefix_and_not_a_chunk() -> None:
    trace = rag(shared_prefix_tokens=32)
    assert trace.prefix is not None
    assert trace.chunks is not None
    assert is_chained(trace.prefix)
    assert (trace.prefix.counts() == trace.chunks.totals() // 16).all()
    d = describe(trace)
    assert d.chunk_hit_ratio is not None
    assert d.prefix_hit_ratio is not None
    assert d.chunk_hit_ratio > 1.8 * d.prefix_hit_ratio


def test_a_collection_must_be_large_enough() -> None:
    with pytest.raises(TraceError, match="per_request"):
        rag(count=2)
