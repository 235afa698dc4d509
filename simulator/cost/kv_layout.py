"""How vLLM lays a model's KV cache out in blocks: groups of layers that share a block table.

Follows vLLM 0.33 (``v1/core/kv_cache_planning.py``): one group when all layers need the same slots; otherwise layers of
one kind are split into groups of equal size, pages are made equal by longer blocks or padding, and all groups draw
from one pool. Its packed layout for mixed page sizes (block-outermost backends) is not modelled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from simulator.cost.shapes import kv_bytes_per_token_layer, state_bytes_layer
from simulator.model.architecture import LinearAttention, Model


@dataclass(frozen=True, slots=True)
class KvGroup:
    """Layers under one block table. A block of the group holds ``block_size`` tokens in each of its layers."""

    kind: str  # full_attention | sliding_attention | linear_attention
    layers: tuple[int, ...]  # indices in the model
    block_size: int  # tokens; a linear-attention block holds one state instead
    window: int | None

    def blocks(self, num_tokens: int, in_flight_tokens: int) -> int:
        """Most blocks one request of ``num_tokens`` holds. A window keeps its tokens and those of the steps in flight,
        and one block more because it may start amid a block (``SlidingWindowSpec``).
        """
        if self.kind == "linear_attention":
            return 1
        if self.window is None:
            return -(-num_tokens // self.block_size)
        return -(-min(self.window - 1 + in_flight_tokens, num_tokens) // self.block_size) + 1


@dataclass(frozen=True, slots=True)
class KvLayout:
    groups: tuple[KvGroup, ...]
    page_bytes: tuple[int, ...]  # per layer of the model: bytes of one block in it, on one rank

    def block_bytes(self, layers: Sequence[int]) -> int:
        """Bytes of one block on a rank that holds ``layers``: that of its largest group."""
        held = set(layers)
        return max(sum(self.page_bytes[i] for i in group.layers if i in held) for group in self.groups)

    def blocks_per_request(self, num_tokens: int, in_flight_tokens: int) -> int:
        return sum(group.blocks(num_tokens, in_flight_tokens) for group in self.groups)


def kv_layout(model: Model, tp: int, kv_dtype: str, block_size: int, dtype_bytes: float) -> KvLayout:
    """Groups of the whole model; pipeline stages hold slices of them."""
    kinds: dict[tuple[str, int | None, int], list[int]] = {}
    states = [state_bytes_layer(x.attention, tp, dtype_bytes) for x in model.layers]
    per_token = [kv_bytes_per_token_layer(x.attention, tp, kv_dtype) for x in model.layers]
    if any(states):  # attention blocks grow until one holds a state
        smallest = min(b for b in per_token if b)
        block_size = max(block_size, -(-round(max(states)) // round(smallest * 16)) * 16)
    pages = [round(max(b * block_size, s)) for b, s in zip(per_token, states, strict=True)]
    for i, layer in enumerate(model.layers):
        a = layer.attention
        kind = "linear_attention" if isinstance(a, LinearAttention) else "full_attention"
        if a.sliding_window is not None:
            kind = "sliding_attention"
        kinds.setdefault((kind, a.sliding_window, pages[i]), []).append(i)
    if len({key[:2] for key in kinds}) == 1:  # the same slots in every layer: one table, pages as they are
        (kind, window, _), layers = next(iter(kinds)), tuple(range(model.num_layers))
        return KvLayout((KvGroup(kind, layers, block_size, window),), tuple(pages))
    return _hybrid(kinds, max(pages), block_size, model.num_layers)


def _hybrid(
    kinds: dict[tuple[str, int | None, int], list[int]], page: int, block_size: int, num_layers: int
) -> KvLayout:
    """Groups of as many layers as the rarest kind has, or the commonest when it has less than 1.5 times as many."""
    rarest, commonest = min(map(len, kinds.values())), max(map(len, kinds.values()))
    size = commonest if commonest < 1.5 * rarest else rarest
    groups = []
    for (kind, window, own_page), layers in kinds.items():
        scaled = block_size * (page // own_page) if page % own_page == 0 else block_size
        count = -(-len(layers) // size)
        groups += [KvGroup(kind, tuple(layers[i::count]), scaled, window) for i in range(count)]
    return KvLayout(tuple(groups), (page,) * num_layers)
