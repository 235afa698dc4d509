"""Tenants, and prefix caches that they do not share."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.core.errors import TraceError
from traces.describe import prefix_hit_ratio
from traces.prefix import from_rows, infinite_cache_hits, is_chained
from traces.tenants import salted, with_tenants
from traces.trace import Labels, Trace


def trace(rows: list[list[int]], **columns: object) -> Trace:
    n = len(rows)
    prompt = np.array([16 * len(row) + 1 for row in rows])
    return Trace(np.arange(float(n)), prompt, np.ones(n), prefix=from_rows(rows, 16), **columns)  # type: ignore[arg-type]


def test_conversations_have_one_tenant_and_popular_tenants_have_more() -> None:
    n = 3000
    plain = trace([[0]] * n, session=np.repeat(np.arange(n // 3), 3))
    drawn = with_tenants(plain, 4, np.random.default_rng(1), zipf=1.0)
    assert drawn.tenant is not None
    assert (drawn.tenant.codes.reshape(-1, 3) == drawn.tenant.codes[::3, None]).all()
    share = np.bincount(drawn.tenant.codes) / n
    np.testing.assert_allclose(share, np.array([12, 6, 4, 3]) / 25, atol=0.05)
    alone = with_tenants(trace([[0]] * 50, session=np.full(50, -1)), 4, np.random.default_rng(1)).tenant
    assert alone is not None
    assert len(np.unique(alone.codes)) == 4


def test_one_system_prompt_of_four_tenants_is_computed_four_times() -> None:
    shared = trace([[0, 1, 2]] * 100, tenant=Labels((np.arange(100) % 4).astype(np.int32), ("a", "b", "c", "d")))
    assert prefix_hit_ratio(shared) == pytest.approx(99 * 48 / 4900)
    assert prefix_hit_ratio(salted(shared, "tenant")) == pytest.approx(96 * 48 / 4900)


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=30),
)
def test_a_request_hits_what_its_own_tenant_had(drawn: list[tuple[int, int, int]]) -> None:
    rows = [[family * 10 + i if i < common else 1000 + k * 10 + i for i in range(6)]
            for k, (_, family, common) in enumerate(drawn)]  # fmt: skip
    codes = np.array([tenant for tenant, _, _ in drawn], dtype=np.int32)
    all_together = trace(rows, tenant=Labels(codes, ("a", "b", "c")))
    apart = salted(all_together, "tenant").prefix
    assert apart is not None
    assert is_chained(apart)
    hits = infinite_cache_hits(apart)
    for code in range(3):
        mine = np.flatnonzero(codes == code)
        own = from_rows([rows[i] for i in mine], 16)
        assert hits[mine].tolist() == infinite_cache_hits(own).tolist()


def test_a_salt_needs_its_column() -> None:
    with pytest.raises(TraceError, match="no tenant column"):
        salted(trace([[0]]), "tenant")
    with pytest.raises(TraceError, match="no session column"):
        salted(trace([[0]]), "session")
