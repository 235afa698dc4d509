"""Where tensor parallelism cuts matrices, and what it then sends: 1D, 2D and weight-gathered layouts.

(Pope et al., Efficiently Scaling Transformer Inference, arXiv:2211.05102, section 3.) A block maps ``width`` columns of
a token to ``inner`` ones and back (an MLP, or attention with its projections). ``n`` ranks form ``groups`` that each
take a share of the tokens; inside a group ``columns x rows`` ranks hold a ``1/columns`` of the width and ``1/rows`` of
the inner columns:

- the width is gathered over the ``rows`` before the block and its partial sums are scattered over them after it;
- partial sums of the inner columns are scattered over the ``columns`` and what follows gathered again;
- a rank gathers the weights of its cut from as many others as there are groups.

One group and one column is the usual 1D layout, in which a rank sends as much however many there are; one group and a
square is 2D, in which it sends ``1/sqrt(n)``; as many groups as ranks is fully weight-gathered, for batches so large
that weights are the smaller part. A gather or scatter over ``k`` ranks sends ``(k - 1)/k`` of the whole, over a torus
or a switch alike.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from simulator.cost.placement import Placed, TensorLayout
from simulator.model.architecture import Attention, Layer, Model
from simulator.model.weights import Role, format_of


class Block(NamedTuple):
    """Elements per token of a block, and bytes of all its weights."""

    width: int
    inner_out: int  # columns of the first matrix: two for each of the second's where it is gated
    inner_in: int
    weight_bytes: float


class Cut(NamedTuple):
    """``sent_bytes``: by every rank, for one block. ``collectives``: gathers and scatters one after the other."""

    groups: int
    columns: int
    rows: int
    sent_bytes: float
    collectives: int


def cut(block: Block, tokens: int, element_bytes: float, groups: int, columns: int, rows: int) -> Cut:
    """What a layout sends for ``tokens`` tokens, all groups together."""
    mine = tokens / groups * element_bytes
    across = 2.0 * block.width / columns * (rows - 1) / rows
    inner = (block.inner_out + block.inner_in) / rows * (columns - 1) / columns
    weights = block.weight_bytes * (groups - 1) / (groups * columns * rows)
    collectives = 2 * (rows > 1) + 2 * (columns > 1) + (groups > 1)
    return Cut(groups, columns, rows, mine * (across + inner) + weights, collectives)


@lru_cache(maxsize=4096)
def best_cut(  # noqa: PLR0917 - a shape
    block: Block, tokens: int, element_bytes: float, ranks: int, layout: TensorLayout, message_bytes: float = 0.0
) -> Cut:
    """The layout that sends least: of all, of those with one group (2d), or the one with one column and group (1d).

    message_bytes: what a collective's latency is worth.
    """
    if layout == "1d":
        return cut(block, tokens, element_bytes, 1, 1, ranks)
    sizes = [n for n in range(1, ranks + 1) if ranks % n == 0]
    found = [
        cut(block, tokens, element_bytes, groups, columns, ranks // groups // columns)
        for groups in (sizes if layout == "best" else [1])
        for columns in sizes
        if ranks % (groups * columns) == 0
    ]
    return min(found, key=lambda c: (c.sent_bytes + c.collectives * message_bytes, c.collectives))


def blocks_of_layer(model: Model, placed: Placed, layer: Layer) -> dict[Role, Block]:
    """The blocks of a dense layer by the role of their matrices."""
    a, mlp = layer.attention, layer.mlp
    assert isinstance(a, Attention)  # see ``placement.check_layout``
    assert mlp is not None
    sizes: dict[Role, tuple[int, int]] = {
        "attention": ((a.num_heads + 2 * a.num_kv_heads) * a.head_dim, a.num_heads * a.head_dim),
        "mlp": ((2 if mlp.gated else 1) * mlp.intermediate_size, mlp.intermediate_size),
    }
    found: dict[Role, Block] = {}
    for role, (out, back) in sizes.items():
        linear = next(x for x in placed.linears(model, layer) if x.role == role)
        each = format_of(linear, placed.dtype, placed.quantization).bytes_per_weight(linear.in_features)
        found[role] = Block(model.hidden_size, out, back, (out + back) * model.hidden_size * each)
    return found
