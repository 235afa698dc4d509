"""The prefix cache keeps runs of blocks; whatever happens, it must act as if it kept every block by itself."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.kv.pool import BlockPool
from simulator.kv.prefix import NO_HIT, BlockTable, PrefixCache
from tests.scheduling.invariants import check_cache, held_ids

_spec = importlib.util.spec_from_file_location("block_by_block", Path(__file__).with_name("block_by_block.py"))
assert _spec is not None
assert _spec.loader is not None
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
BlockByBlock = _module.BlockByBlock


@dataclass
class Sequence:
    """A request in both worlds. ``ids`` are chained: they name a whole prefix."""

    number: int
    ids: list[int]
    total: int  # blocks it will ever fill
    unit: int
    table: BlockTable = field(init=False)
    blocks: list[Any] = field(default_factory=list)  # of the reference
    held: int = 0
    full: int = 0

    def __post_init__(self) -> None:
        self.table = BlockTable(self.ids)

    @property
    def keys(self) -> list[Any]:
        keyed = [(i, offset) for i in self.ids for offset in range(self.unit)]
        return keyed + [("own", self.number, k) for k in range(self.total - len(keyed))]


actions = st.lists(
    st.tuples(
        st.sampled_from(["admit", "admit", "land", "grow", "grow", "finish", "preempt"]),
        st.integers(0, 9),
        st.integers(1, 6),
    ),
    min_size=1,
    max_size=80,
)


@pytest.mark.parametrize("listens", [False, True], ids=["nobody listens", "somebody listens"])
@pytest.mark.parametrize("unit", [1, 3])
@settings(max_examples=200, deadline=None)
@given(actions=actions, num_blocks=st.integers(4, 40))
def test_runs_act_like_single_blocks(
    unit: int, listens: bool, actions: list[tuple[str, int, int]], num_blocks: int
) -> None:
    cache = PrefixCache(num_blocks, 16, unit)
    reference = BlockByBlock(num_blocks)
    heard: set[int] = set()
    if listens:
        cache.publish(heard.update, heard.difference_update)
    running: list[Sequence] = []
    waiting: list[Sequence] = []
    # Prefixes share: documents are paths in a small tree of chained ids.
    for number, (action, pick, size) in enumerate(actions):
        if action in ("admit", "land"):
            if waiting and pick % 2:
                sequence = waiting.pop(0)
            else:
                depth = size % 6
                ids = [(pick // 3) * 100 + level * 10 + (pick % (level + 1)) for level in range(depth)]
                ids = [hash(tuple(ids[: level + 1])) for level in range(depth)]
                sequence = Sequence(number, ids, depth * unit + size, unit)
            limit = max(sequence.total - 1 - pick % 3, 0)
            hit = cache.lookup(sequence.table, limit)
            found = reference.lookup(sequence.keys, limit)
            assert hit.blocks == len(found)
            assert hit.free_blocks == sum(block.refs == 0 for block in found)
            if action == "land":  # its KV comes from elsewhere, whatever is here
                hit, found = NO_HIT, []
            take = min(size, sequence.total - hit.blocks)
            if take + hit.free_blocks > cache.free:
                waiting.append(sequence)
                continue
            cache.hold(sequence.table, hit)
            reference.hold(found)
            sequence.blocks, sequence.held = list(found), hit.blocks
            cache.take(take)
            sequence.blocks += reference.take(take)
            sequence.held += take
            running.append(sequence)
        elif not running:
            continue
        else:
            sequence = running[pick % len(running)]
            if action == "grow":
                take = min(size, sequence.total - sequence.held)
                if take > cache.free:
                    continue
                cache.take(take)
                sequence.blocks += reference.take(take)
                sequence.held += take
        if action in ("admit", "land", "grow"):  # all but the newest block are full
            sequence.full = max(sequence.held - pick % 2, len(sequence.blocks) - sequence.held, 0)
            cache.cache(sequence.table, sequence.full)
            keyed = min(sequence.full, len(sequence.ids) * unit)
            reference.cache(sequence.blocks, sequence.keys, keyed)
        else:
            running.remove(sequence)
            returns = action == "preempt"
            full = sequence.held - pick % 2
            full = max(full, sequence.table.runs[-1].hi if sequence.table.runs else 0)
            reference.cache(sequence.blocks, sequence.keys, full)
            cache.cache(sequence.table, full)
            cache.release(sequence.table, sequence.held, full, returns=returns)
            reference.release(sequence.blocks)
            sequence.blocks, sequence.held = [], 0
            if returns:
                waiting.append(sequence)
        assert (cache.free, cache.cached) == (reference.free, reference.cached)
        check_cache(cache)
        if listens:
            assert heard == {key[0] for key, blocks in reference.index.items() if blocks and key[0] != "own"}
    there = {key[0] for key, blocks in reference.index.items() if blocks and key[0] != "own"}
    assert held_ids(cache) == there


def test_instances_of_the_same_blocks_are_used_oldest_first_and_cut_together() -> None:
    cache = PrefixCache(100, 16)
    first, second, third = (BlockTable(tuple(range(n))) for n in (4, 8, 6))
    for table, blocks in ((first, 4), (second, 8), (third, 6)):  # three at once: none hits what another computes
        cache.take(blocks)
        cache.cache(table, blocks)
    cache.release(third, 6, 6, returns=False)
    hit = cache.lookup(BlockTable(tuple(range(7))), 7)
    assert [(run.ids, start, end) for run, start, end in hit.parts] == [(first.ids, 0, 4), (second.ids, 4, 7)]
    assert (hit.blocks, hit.free_blocks) == (7, 0)
    fourth = BlockTable(tuple(range(7)))
    cache.hold(fourth, hit)
    check_cache(cache)
    assert [(run.lo, run.hi, run.refs) for run in fourth.runs] == [(0, 4, 2), (4, 7, 2)]
    assert [run.lo for run in second.runs] == [0, 7]  # blocks 4 to 6 were cut off and are held all the same
    for table, blocks in ((first, 4), (second, 8), (fourth, 7)):
        cache.release(table, blocks, blocks, returns=False)
        check_cache(cache)
    assert (cache.free, cache.cached) == (100, 18)


def test_what_is_owed_is_forgotten_when_somebody_looks() -> None:
    cache = PrefixCache(10, 16)
    table = BlockTable((1, 2, 3, 4))
    cache.take(4)
    cache.cache(table, 4)
    cache.release(table, 4, 4, returns=False)
    cache.take(8)
    assert (cache.free, cache.cached) == (2, 2)
    assert cache.lookup(BlockTable((1, 2, 3, 4)), 4).blocks == 2


def test_a_pool_never_lends_more_than_it_has() -> None:
    pool = BlockPool(3, 16)
    pool.take(2)
    with pytest.raises(RuntimeError, match="2 blocks asked for, 1 free"):
        pool.take(2)
    assert pool.free == 1


def test_content_nobody_can_hit_is_a_number_in_the_eviction_order() -> None:
    cache = PrefixCache(100, 16)
    for _ in range(20):
        cache.take(5)
        cache.release(None, 5, 4, returns=False)
    assert cache._order.next is cache._order
    assert cache._order.before == 80
    assert (cache.free, cache.cached) == (100, 80)
