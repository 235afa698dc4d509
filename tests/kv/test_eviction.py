"""Eviction policies against what their papers say, and hit-ratio curves against brute force."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.core.errors import PolicyError
from simulator.kv.accesses import Accesses, accesses, block_by_block
from simulator.kv.curves import capacities, hit_curve, hits_by_blocks, hits_by_runs
from simulator.kv.eviction import EVICTIONS, Eviction, evictions
from simulator.kv.stack_distance import lru_hits, weight_below

PROMPTS = st.lists(st.tuples(st.integers(0, 6), st.integers(1, 6)), min_size=1, max_size=60)


def prompts(rows: list[list[int]]) -> Accesses:
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    return accesses(offsets, np.array([block for row in rows for block in row], dtype=np.int64))


def chains(rows: list[tuple[int, int]]) -> Accesses:
    """(tree, length) -> the first blocks of that tree's trunk: ids chained as in a real trace."""
    return prompts([[100 * tree + k for k in range(length)] for tree, length in rows])


def hits(policy: str, capacity: int, ids: list[int]) -> list[bool]:
    """Single blocks, each its own prompt."""
    found = prompts([[block] for block in ids])
    cache = EVICTIONS.get(policy)(capacity)
    return [cache.access(*row) for row in each(found)]


def each(found: Accesses) -> list[tuple[int, int, int, int]]:
    """What a policy is shown, block by block."""
    blocks = block_by_block(found)
    columns = (blocks.block, blocks.position, blocks.parent, blocks.next_request)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def grown(rows: list[tuple[int, int, int]]) -> Accesses:
    """(which prompt before to build on, how much of it to keep, blocks to add) -> chained prompts that branch anywhere."""
    known: dict[tuple[int, ...], int] = {}
    texts: list[tuple[int, ...]] = [()]
    for number, (base, keep, add) in enumerate(rows):
        text = texts[base % len(texts)]
        texts.append(text[: len(text) * keep // 4] + tuple(range(100 * number, 100 * number + add)))
    return prompts([[known.setdefault(text[: k + 1], len(known)) for k in range(len(text))] for text in texts[1:]])


@pytest.mark.parametrize("policy", EVICTIONS.names())
@given(rows=PROMPTS, capacity=st.integers(1, 40))
def test_no_policy_holds_more_than_it_may_or_lies_about_it(
    policy: str, rows: list[tuple[int, int]], capacity: int
) -> None:
    found = chains(rows)
    cache: Eviction = EVICTIONS.get(policy)(capacity)
    for access in each(found):
        held = access[0] in cache
        assert cache.access(*access) == held
        assert len(cache) <= capacity
        if policy != "belady":
            assert access[0] in cache
    if capacity >= found.num_blocks and policy != "belady":
        assert len(cache) == found.num_blocks


@pytest.mark.parametrize("policy", [name for name in EVICTIONS.names() if name != "belady"])
@given(rows=PROMPTS, capacity=st.integers(1, 20))
def test_nobody_beats_the_optimum(policy: str, rows: list[tuple[int, int]], capacity: int) -> None:
    ids = [tree for tree, _ in rows]
    assert sum(hits(policy, capacity, ids)) <= sum(hits("belady", capacity, ids))


GROWN = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 4), st.integers(0, 12)), min_size=1, max_size=40)


@pytest.mark.parametrize("policy", EVICTIONS.names())
@settings(max_examples=30)
@given(rows=GROWN, capacity=st.integers(1, 120), waiting=st.integers(0, 8))
def test_runs_of_blocks_are_block_by_block(
    policy: str, rows: list[tuple[int, int, int]], capacity: int, waiting: int
) -> None:
    found, make = grown(rows), EVICTIONS.get(policy)
    assert make.runs is not None
    by_runs = hits_by_runs(found, make.runs(capacity, found.layout), waiting)
    assert by_runs == hits_by_blocks(block_by_block(found), make(capacity), waiting)


@settings(max_examples=30)
@given(rows=GROWN)
def test_lru_in_one_pass_is_lru_simulated(rows: list[tuple[int, int, int]]) -> None:
    found = grown(rows)
    sizes = range(1, found.num_blocks + 2)
    slow = [hits_by_blocks(block_by_block(found), EVICTIONS.get("lru")(size)) for size in sizes]
    assert [(hits, hits) for hits in lru_hits(found, np.array(sizes)).tolist()] == slow
    assert slow[-1][0] == pytest.approx(found.ideal * found.num_used)


@pytest.mark.parametrize("policy", [name for name in EVICTIONS.names() if name != "belady"])
@settings(max_examples=30)
@given(rows=GROWN, capacity=st.integers(1, 120))
def test_nobody_hits_longer_prefixes_than_the_optimum(
    policy: str, rows: list[tuple[int, int, int]], capacity: int
) -> None:
    found = grown(rows)
    best = hit_curve(found, "belady", np.array([capacity]))
    assert best.prefix[0] == best.blocks[0] >= hit_curve(found, policy, np.array([capacity])).blocks[0]


@settings(max_examples=30)
@given(rows=GROWN, capacity=st.integers(1, 60))
def test_to_look_ahead_at_nobody_is_lru(rows: list[tuple[int, int, int]], capacity: int) -> None:
    found, sizes = grown(rows), np.array([capacity])
    nobody = hit_curve(found, "look-ahead", sizes, waiting=0).prefix
    assert nobody == hit_curve(found, "lru", sizes).prefix


@settings(max_examples=30)
@given(rows=GROWN)
def test_runs_hold_every_block_once(rows: list[tuple[int, int, int]]) -> None:
    found = grown(rows)
    blocks = block_by_block(found)
    assert len(blocks.block) == found.num_used
    assert len(set(blocks.block.tolist())) == found.num_blocks
    place = dict(
        zip(blocks.block.tolist(), zip(blocks.position.tolist(), blocks.parent.tolist(), strict=True), strict=True)
    )
    for block, position, parent, _ in each(found):
        assert place[block] == (position, parent)
        assert (parent < 0) == (position == 0)
        assert parent < 0 or place[parent][0] == position - 1


@given(values=st.lists(st.tuples(st.integers(0, 300), st.integers(0, 9)), max_size=80), data=st.data())
def test_summing_over_ranks(values: list[tuple[int, int]], data: st.DataObject) -> None:
    queries = data.draw(st.lists(st.tuples(st.integers(0, len(values)), st.integers(0, 301)), max_size=30))
    end, bound = (np.array([q[i] for q in queries], dtype=np.int64) for i in (0, 1))
    expected = [sum(weight for value, weight in values[:e] if value < b) for e, b in queries]
    value, weight = (np.array([v[i] for v in values], dtype=np.int64) for i in (0, 1))
    assert weight_below(value, weight, end, bound).tolist() == expected


def test_what_each_policy_forgets() -> None:
    assert hits("fifo", 2, [1, 2, 1, 3, 1]) == [False, False, True, False, False]  # 1 came first
    assert hits("lru", 2, [1, 2, 1, 3, 1]) == [False, False, True, False, True]  # 2 is older
    assert hits("lfu", 2, [1, 1, 1, 2, 3, 2, 1]) == [False, True, True, False, False, False, True]
    assert hits("belady", 2, [1, 2, 3, 1, 2]) == [False, False, False, True, True]  # 3 is never kept


def test_a_sweep_of_new_prompts_does_not_push_out_what_is_used_again() -> None:
    """Two favourites, then a hundred blocks used once: LRU forgets the favourites, the others keep them."""
    favourites, sweep = [1, 2] * 4, list(range(10, 110))
    ids = favourites + sweep + [1, 2]
    assert hits("lru", 10, ids)[-2:] == [False, False]
    for policy in ("arc", "lru-k", "s3-fifo", "lfu"):
        assert hits(policy, 10, ids)[-2:] == [True, True], policy


def test_pgdsf_forgets_leaves_first_and_keeps_what_is_dear() -> None:
    """A trunk is never forgotten before the blocks that build on it, however often they are used."""
    found = prompts([[0, 1, 2], [0, 1, 2], [0, 5], [0, 6], [0, 7], [0, 8]])
    cache = EVICTIONS.get("pgdsf")(4)
    place = {block: (position, parent) for block, position, parent, _ in each(found)}
    for access in each(found):
        cache.access(*access)
        held = {block for block in place if block in cache}
        roots = {block for block, (position, _) in place.items() if not position}
        assert access[2] >= 0 or not held - roots or held & roots


def test_a_curve_by_hand() -> None:
    found = chains([(0, 3), (1, 2), (0, 3), (0, 2)])
    one = hit_curve(found, "lru", np.array([1, 3, 5, 100]))
    assert one.blocks.tolist() == one.prefix.tolist()
    assert (one.blocks * 10).round().tolist() == [1, 3, 5, 5]
    assert capacities(found).tolist() == [3, 4, 5]  # from the longest prompt to all that LRU can hit
    assert capacities(chains([(0, 3), (1, 4)])).tolist() == [7]  # nothing is ever hit


def test_a_policy_without_a_form_on_runs_is_simulated_block_by_block() -> None:
    class Stubborn(EVICTIONS.get("fifo")):  # type: ignore[misc]
        def access(self, block: int, position: int, parent: int, next_use: int) -> bool:
            return block in self if len(self) == self.capacity else super().access(block, position, parent, next_use)

    found, sizes = chains([(0, 3), (1, 2), (0, 3)]), np.array([3])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EVICTIONS, "_entries", {"stubborn": Stubborn})
        assert hit_curve(found, "stubborn", sizes).blocks.tolist() == [3 / 8]
    assert hit_curve(found, "fifo", sizes).blocks.tolist() == [1 / 8]


def test_unknown_policies() -> None:
    with pytest.raises(PolicyError, match="lru"):
        evictions(["lruu"])
    assert len(evictions([])) == len(OrderedDict.fromkeys(evictions([]))) == len(EVICTIONS)
