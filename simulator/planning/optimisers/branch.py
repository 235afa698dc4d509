"""Branch and bound over two settings in which both what is wanted and what is limited only rise (ExeGPT's search)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True)
class Point:
    """A pair of settings, by their places. ``rate``: wanted; ``within``: every limit holds."""

    at: tuple[int, int]
    rate: float
    within: bool


def best_within(judge: Callable[[int, int], tuple[float, bool]], wide: int, high: int) -> tuple[Point | None, int]:
    """The highest rate within the limits, of places (0 .. wide - 1, 0 .. high - 1), and how many were judged.

    judge: rate and whether all limits hold. The rate must not fall, and limits must not be met again, as either place
    grows: a box whose lowest corner misses a limit holds nothing, and none of it has a higher rate than its highest
    corner. What is found equals exhaustive search where that is so (arXiv:2404.07947, section 5).
    """
    judged = cache(judge)
    best: Point | None = None
    boxes = [((0, 0), (wide - 1, high - 1))]
    while boxes:
        low, top = boxes.pop()
        if not judged(*low)[1]:
            continue
        rate, within = judged(*top)
        if best is not None and rate <= best.rate:
            continue
        if within:
            best = Point(top, rate, within)
            continue
        if best is None or judged(*low)[0] > best.rate:
            best = Point(low, judged(*low)[0], within=True)
        (x, y), (to_x, to_y) = low, top
        if to_x - x >= to_y - y:
            middle = (x + to_x) // 2
            parts = [(low, (middle, to_y)), ((middle + 1, y), top)]
        else:
            middle = (y + to_y) // 2
            parts = [(low, (to_x, middle)), ((x, middle + 1), top)]
        boxes += parts  # the higher half next: what it finds prunes the lower one
    return best, judged.cache_info().currsize
