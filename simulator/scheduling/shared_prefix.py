"""Who of a decoding batch shares a prefix: what a kernel that reads shared KV once per batch can leave out.

Requests share where they hold the same blocks of the prefix cache. Those whose first block is the same are a group;
what all of a group hold in common, to the block, is read once. (One level: what some of a group share beyond that is
read by each.) A request that computed a prefix beside another one, at the same time, holds blocks of its own and shares
nothing.

Reference: Parrot (OSDI 2024, arXiv:2405.19888), section 5.3; Hydragen (arXiv:2402.05099); vLLM's cascade attention
(``v1/attention/backends/flash_attn.py``, ``use_cascade_attention``), which wants one prefix of all running requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from simulator.kv.pool import BlockPool
from simulator.kv.prefix import PrefixCache
from simulator.scheduling.args import EngineArgs
from simulator.scheduling.request import Request
from simulator.scheduling.state import EngineState
from simulator.scheduling.step import Step

LEAST_REQUESTS, LEAST_TOKENS = 8, 256  # of vLLM's cascade attention

Groups = Sequence[tuple[int, int]]


class Group:
    """Requests that decode with the same first block. ids: of the first of them."""

    __slots__ = ("ids", "members")

    def __init__(self, ids: Sequence[int]) -> None:
        self.ids = ids
        self.members: dict[Request, int] = {}  # and the blocks of ``ids`` that each holds


class SharingState(EngineState):
    """An ``EngineState`` that keeps the groups of its decoding batch. Needs a prefix cache."""

    __slots__ = ("_apart", "_groups", "_of", "_together", "_told")

    def __init__(self, args: EngineArgs, pool: BlockPool, *, window: int | None = None, grows: bool = True) -> None:
        """``args.shared_prefix_attention``: groups, or batch: one group of all running requests or none."""
        super().__init__(args, pool, window=window, grows=grows)
        self._together = args.shared_prefix_attention == "batch"
        self._groups: dict[int, Group] = {}  # by first block
        self._of: dict[Request, Group] = {}
        self._apart: set[Request] = set()  # whose blocks were taken anew: they came back from host memory
        self._told: Groups | None = None  # what ``shared`` says of the decoding batch; None: it has changed

    def _another(self) -> Self:
        raise AssertionError("a pipeline does not share prefixes")

    def shared(self) -> Groups:
        """(requests, tokens) of every prefix that two decoding requests or more hold in common."""
        if self._told is None:
            found = [(len(g.members), min(g.members.values())) for g in self._groups.values() if len(g.members) > 1]
            self._told = [(count, blocks * self.block_size) for count, blocks in found]
            if self._together:
                self._told = [
                    (count, tokens) for count, tokens in self._told
                    if count == self.num_decodes and count >= LEAST_REQUESTS and tokens >= LEAST_TOKENS
                ]  # fmt: skip
        if self._together and self.prefilling and self._told and not self._all_share():
            return ()
        return self._told

    def _all_share(self) -> bool:
        """Whether the requests in prefill begin with the one group's first block."""
        tables = [request.table for request in self.prefilling]
        return all(table is not None and len(table.ids) and table.ids[0] in self._groups for table in tables)

    def join(self, request: Request, left: int) -> None:
        super().join(request, left)
        self._told = None
        table = request.table
        if table is None or not len(table.ids) or request in self._apart:
            return
        assert isinstance(self.pool, PrefixCache)
        ids, unit = table.ids, self.pool.unit
        group = self._groups.get(ids[0])
        if group is None:
            self._groups[ids[0]] = group = Group(ids)
            held = len(ids) * unit
        else:
            held = min(_common(ids, group.ids) * unit, request.cached_tokens // self.block_size)
        held = min(held, request.prompt_tokens // self.block_size)
        if held:
            group.members[request] = held
            self._of[request] = group
        elif not group.members:
            del self._groups[ids[0]]

    def leave(self, request: Request) -> None:
        super().leave(request)
        self._told = None
        group = self._of.pop(request, None)
        if group is not None:
            del group.members[request]
            if not group.members:
                del self._groups[group.ids[0]]

    def swap_out(self, request: Request, step: Step) -> None:
        super().swap_out(request, step)
        self._apart.add(request)

    def release(self, request: Request) -> None:
        super().release(request)
        self._apart.discard(request)


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Leading ids that two prompts share. An id names all before it, too, so bisection finds the end."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[middle - 1] == other[middle - 1]:
            low = middle
        else:
            high = middle - 1
    return low
