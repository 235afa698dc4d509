"""Prompts of retrieval-augmented generation: documents in front of a question, popular ones again and again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simulator.core.errors import TraceError
from traces.generate.distributions import Distribution, below_one, whole
from traces.prefix import blocks_of_parts
from traces.trace import Chunks, Ints, PrefixBlocks


@dataclass(frozen=True, slots=True)
class Documents:
    """What a retriever finds.

    count: documents in the collection. tokens: their lengths. per_request: different ones in each prompt, in the order
    of their ranks in the result. zipf: a document is found with probability proportional to ``rank ** -zipf``.
    shared_prefix_tokens: a system prompt before them. block_tokens: tokens per prefix id.
    """

    count: int
    tokens: Distribution
    per_request: int = 1
    zipf: float = 0.0
    shared_prefix_tokens: int = 0
    block_tokens: int = 16

    def __post_init__(self) -> None:
        for name, low in (
            ("count", 1),
            ("per_request", 1),
            ("block_tokens", 1),
            ("shared_prefix_tokens", 0),
            ("zipf", 0),
        ):
            if not getattr(self, name) >= low:
                raise TraceError(f"documents: {name} must be >= {low}, not {getattr(self, name)}")
        if self.per_request > self.count:
            raise TraceError(f"documents: per_request ({self.per_request}) exceeds count ({self.count})")
        if below_one(self.tokens) == 1.0:
            raise TraceError("documents: every length drawn for tokens is 0: give 1 or more")


def sample_documents(num_requests: int, documents: Documents, rng: np.random.Generator) -> Chunks:
    """The parts of each prompt: the system prompt, where there is one, has id 0, documents follow by popularity."""
    lengths = whole(documents.tokens, rng.random(documents.count))
    found = _found(num_requests, documents, rng) + 1
    tokens = lengths[found - 1]
    if documents.shared_prefix_tokens:
        found = np.concatenate([np.zeros((num_requests, 1), dtype=np.int64), found], axis=1)
        first = np.full((num_requests, 1), documents.shared_prefix_tokens, dtype=np.int64)
        tokens = np.concatenate([first, tokens], axis=1)
    offsets = np.arange(num_requests + 1) * found.shape[1]
    return Chunks(offsets, found.ravel(), tokens.ravel())


def _found(num_requests: int, documents: Documents, rng: np.random.Generator) -> Ints:
    """Ranks (num_requests, per_request), no two alike in a row: who is drawn twice is drawn again."""
    weight = np.arange(1, documents.count + 1, dtype=np.float64) ** -documents.zipf
    edges = np.cumsum(weight / weight.sum())
    found = np.full((num_requests, documents.per_request), -1, dtype=np.int64)
    for column in range(documents.per_request):
        open_rows = np.arange(num_requests)
        while len(open_rows):
            drawn = np.searchsorted(edges, rng.random(len(open_rows)), side="right").clip(max=documents.count - 1)
            new = ~(found[open_rows, :column] == drawn[:, None]).any(axis=1)
            found[open_rows[new], column] = drawn[new]
            open_rows = open_rows[~new]
    return found


def prefix_of_chunks(chunks: Chunks, block_tokens: int) -> PrefixBlocks:
    """Chained ids of the full blocks of prompts that begin with these chunks; the question after them is nobody
    else's and has no ids."""
    return blocks_of_parts(PrefixBlocks(chunks.offsets, chunks.ids, 1), chunks.tokens, block_tokens)
