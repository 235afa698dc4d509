"""What bends too sharply for a smooth surface: a library's choice of kernels, as a sum of decision tables.

A decision table asks the same few questions ("k above 3,000?", "last wave over half full?") of every point and adds the
value of the cell that the answers name (oblivious trees: Kohavi 1994; CatBoost, arXiv:1706.09516). Beyond the measured
range all answers stay what they are at its edge, so the last known efficiency holds there as it does for surfaces.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.cost.correction import Floats

STEP = 3e-3  # values are multiples of this: 0.3 % of a kernel's time; a fit makes good what one table rounds
CHUNK = 1024  # points at once: bounds the memory of their answers


@dataclass(frozen=True)
class Forest:
    """``splits[t, d]``: (axis, edge) of question d of table t; ``values[t]``: one per combination of answers."""

    axes: tuple[str, ...]
    edges: tuple[tuple[float, ...], ...]
    splits: NDArray[np.uint8]  # (tables, depth, 2)
    values: Floats  # (tables, 2 ** depth)

    def at(self, features: Mapping[str, Floats]) -> Floats:
        """Sum of all tables at points given by one array per axis."""
        columns = np.stack([features[a] for a in self.axes])
        total = np.empty(columns.shape[1])
        for start in range(0, len(total), CHUNK):
            total[start : start + CHUNK] = self._at(columns[:, start : start + CHUNK])
        return total

    def _at(self, columns: Floats) -> Floats:
        tables, depth = self.splits.shape[:2]
        cell = np.zeros((tables, columns.shape[1]), dtype=np.int32)
        answers = [
            (column >= np.asarray(edges, dtype=float)[:, None]).astype(np.int32)
            for column, edges in zip(columns, self.edges, strict=True)
        ]
        first = np.cumsum([0, *(len(e) for e in self.edges)])[:-1]
        asked = np.concatenate(answers)
        for d in range(depth):
            cell *= 2
            cell += asked[first[self.splits[:, d, 0]] + self.splits[:, d, 1]]
        flat = cell + (np.arange(tables, dtype=np.int32) << depth)[:, None]
        return np.asarray(self.values.ravel()[flat].sum(axis=0))

    def to_json(self) -> dict[str, Any]:
        steps = np.clip(np.rint(self.values / STEP), -127, 127).astype(np.int8)
        return {
            "axes": list(self.axes),
            "counts": [len(e) for e in self.edges],
            "edges": _pack(np.concatenate([np.asarray(e, dtype="<f4") for e in self.edges]).tobytes()),
            "depth": self.splits.shape[1],
            "splits": _pack(self.splits.tobytes()),
            "int8": _pack(steps.tobytes()),
        }

    @staticmethod
    def from_json(row: Mapping[str, Any]) -> Forest:
        """Raises ValueError, KeyError, IndexError or zlib.error on a damaged row."""
        depth = int(row["depth"])
        splits = np.frombuffer(_unpack(row["splits"]), dtype=np.uint8).reshape(-1, depth, 2)
        steps = np.frombuffer(_unpack(row["int8"]), dtype=np.int8).reshape(len(splits), 1 << depth)
        axes, sizes = tuple(row["axes"]), np.array(row["counts"], dtype=np.int64)
        every = np.frombuffer(_unpack(row["edges"]), dtype="<f4").astype(float)
        if len(axes) != len(sizes) or len(every) != sizes.sum():
            raise ValueError("a forest's edges are not those of its axes")
        edges = tuple(tuple(part.tolist()) for part in np.split(every, np.cumsum(sizes)[:-1]))
        if (splits[..., 0] >= len(axes)).any():
            raise ValueError("a forest asks for an axis that it does not have")
        if (splits[..., 1] >= sizes[splits[..., 0]]).any():
            raise ValueError("a forest asks for an edge that it does not have")
        return Forest(axes, edges, splits, steps.astype(np.float64) * STEP)

    def rounded(self) -> Forest:
        """As it will be read back from a file."""
        return Forest.from_json(self.to_json())


def _pack(raw: bytes) -> str:
    return base64.b85encode(zlib.compress(raw, 9)).decode()


def _unpack(text: str) -> bytes:
    return zlib.decompress(base64.b85decode(text))
