# ruff: noqa: T201 - a command
"""``python -m profiler.blocks FOLDER``: fit the block rates on mixed batches, check the tail on uneven ones.

FOLDER is LLMServingSim's, named after GPU and model (``RTXPRO6000-Llama-3.1-8B-tp1``).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.optimize import least_squares

from profiler.blocks.tables import Mixed, Uneven, mixed_batches, uneven_batches
from profiler.tables.llmservingsim import FOLDER
from simulator.core.errors import CalibrationError, UserError
from simulator.cost.correction import Floats
from simulator.cost.flash_attention import MEASURED, SPLIT_BELOW, Blocks, Rates, blocks_of
from simulator.cost.shapes import attention_shape
from simulator.hardware.gpu import gpu
from simulator.model.catalogue import model

LAUNCH_S = 5e-6  # of the chunk's kernel, which decodes beside it share
MOST_TOKENS = 600_000  # of decodes; beyond, times of equal batches differ by a tenth
LEAST_KEYS = 512
FOLDS = 5
NAMES = ("block_s", "empty_s", "late", "l2_full", "l2_range")


def main(arguments: Sequence[str]) -> int:
    if len(arguments) != 1:
        print(__doc__)
        return 2
    try:
        folder = Path(arguments[0])
        found = FOLDER.match(folder.name)
        if found is None:
            raise CalibrationError("The folder's name does not tell GPU and model.", where=str(folder))
        chip, served, tp = gpu(found["gpu"]), model(found["model"]), int(found["tp"])
        shape = attention_shape(served.layers[0].attention, tp, "bfloat16", 2.0)

        def law(rates: Rates) -> Blocks:
            known = blocks_of(chip, shape, rates)
            if known is None:
                raise CalibrationError(f"No FlashAttention-2 on {chip.name}, or its SMs are not known.")
            return known

        _report(law, mixed_batches(folder), uneven_batches(folder))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _report(law: Callable[[Rates], Blocks], mixed: list[Mixed], uneven: list[Uneven]) -> None:
    near = [row for row in mixed if row.context <= MOST_TOKENS]
    blocks = law(MEASURED)
    rates = replace(fitted(law, near), packed_s=packed(blocks, many := filling(blocks, uneven)))
    print(f"{rates}")
    for label, used in (("as shipped", MEASURED), ("fitted here", rates)):
        print(f"mixed batches, {label}: {100 * np.abs(errors(law(used), near)).mean():.1f} % of {len(near)}")
    shapes = {key: i % FOLDS for i, key in enumerate(sorted({(r.decodes, r.context) for r in near}))}
    held_out = []
    for fold in range(FOLDS):
        inside = [row for row in near if shapes[row.decodes, row.context] != fold]
        outside = [row for row in near if shapes[row.decodes, row.context] == fold]
        held_out.append(np.abs(errors(law(fitted(law, inside)), outside)))
    print(f"mixed batches, decodes left out of the fit: {100 * np.concatenate(held_out).mean():.1f} %")
    wrong = np.abs(tail_errors(blocks, MEASURED.packed_s, many)).mean()
    print(f"uneven batches, as shipped: {100 * wrong:.1f} % of {len(many)}")
    equal = np.abs([1.0 - 1.0 / row.slower for row in many]).mean()
    print(f"uneven batches as if equal: {100 * equal:.1f} %")
    few = [row.slower for row in uneven if row not in many and row.mean >= LEAST_KEYS]
    print(f"batches that are split, from 512 tokens on: {100 * (np.mean(few) - 1.0):.1f} % slower, {len(few)}")


def fitted(law: Callable[[Rates], Blocks], rows: Sequence[Mixed]) -> Rates:
    """Least squares of relative errors, robust; ``key_s`` is read off: batches of few long decodes take no more."""
    start = np.array([getattr(MEASURED, name) for name in NAMES])

    def wrong(x: Floats) -> Floats:
        return errors(law(replace(MEASURED, **dict(zip(NAMES, (x * start).tolist(), strict=True)))), rows)

    found = least_squares(
        wrong, np.ones(len(NAMES)), loss="soft_l1", f_scale=0.05, diff_step=[1e-3] * len(NAMES), bounds=(0.1, 10.0)
    )
    return replace(MEASURED, **dict(zip(NAMES, (found.x * start).tolist(), strict=True)))


def errors(blocks: Blocks, rows: Sequence[Mixed]) -> Floats:
    """Logarithm of predicted over measured."""
    beside = {n: blocks.beside(n) for n in {row.decodes for row in rows}}
    predicted = [
        row.chunk_s + beside[row.decodes](row.alone_s, row.context, 0, 0, row.chunk, row.chunk_s - LAUNCH_S)
        for row in rows
    ]
    ratio: Floats = np.log(np.array(predicted) / np.array([row.seconds for row in rows]))
    return ratio


def filling(blocks: Blocks, rows: Sequence[Uneven]) -> list[Uneven]:
    """Batches that are not split, and long enough that launching is not most of the time."""
    least = SPLIT_BELOW * blocks.sms / blocks.kv_heads
    return [row for row in rows if row.decodes >= least and row.mean >= LEAST_KEYS]


def packed(blocks: Blocks, rows: Sequence[Uneven]) -> float:
    """Least squares of the closed form's relative errors over ``packed_s``, on a grid."""
    tried = np.arange(10.0, 30.0, 0.1) * 1e-9
    return float(min(tried, key=lambda packed_s: float((tail_errors(blocks, packed_s, rows) ** 2).mean())))


def tail_errors(blocks: Blocks, packed_s: float, rows: Sequence[Uneven]) -> Floats:
    """Closed form over measured, less 1. The long sequences come first: their last block is as far as it gets."""
    errors = []
    for r in rows:
        context = r.long * r.longest + (r.decodes - r.long) * r.short
        squares = r.long * r.longest**2 + (r.decodes - r.long) * r.short**2
        ahead = max(r.longest - squares / context - context / blocks.slots, 0.0)
        errors.append((1.0 + packed_s * ahead / r.equal_s) / r.slower - 1.0)
    return np.array(errors)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
