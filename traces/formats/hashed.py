"""The shape that Mooncake, vLLM's timed traces and Bailian have in common: JSON lines with lengths and block hashes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from simulator.core.errors import TraceError
from traces.formats.base import Rows, Source, read_jsonl
from traces.trace import Floats, Ints, PrefixBlocks


@dataclass(frozen=True, slots=True)
class Hashed:
    """Columns that were read; ``rows`` still holds the rest and the faults."""

    rows: Rows
    arrival: Floats
    prompt_tokens: Ints
    output_tokens: Ints
    prefix: PrefixBlocks | None


def read_hashed(
    source: Source,
    *,
    block_tokens: int,
    seconds_per_unit: float,
    labels: Sequence[str] = ("timestamp", "input_length", "output_length", "hash_ids"),
    optional: Sequence[str] = (),
) -> Hashed:
    """Read time, lengths and (where present) block ids under the given member names."""
    if block_tokens < 1:
        raise TraceError(f"block_tokens must be >= 1, not {block_tokens}", where=source.name)
    if not seconds_per_unit > 0:
        raise TraceError(f"the time unit must be > 0 s, not {seconds_per_unit}", where=source.name)
    timestamp, input_length, output_length, hash_ids = labels
    rows = read_jsonl(source, (timestamp, input_length, output_length), (hash_ids, *optional))
    arrival = rows.floats(timestamp, low=0) * seconds_per_unit
    prompt = rows.tokens(input_length)
    output = rows.tokens(output_length)
    prefix = rows.blocks(hash_ids, block_tokens, prompt) if hash_ids in rows.columns else None
    return Hashed(rows, arrival, prompt, output, prefix)


def block_size_of(records: Sequence[dict[str, Any]], candidates: Sequence[int]) -> int | None:
    """The one block size that explains the number of hashes of every sampled record, or None when that is not clear."""
    pairs = [(r.get("input_length"), r.get("hash_ids")) for r in records]
    usable = [(n, len(ids)) for n, ids in pairs if isinstance(n, int) and n > 0 and isinstance(ids, list)]
    fits = [b for b in candidates if usable and all(count in (n // b, -(-n // b)) for n, count in usable)]
    return fits[0] if len(fits) == 1 else None
