"""Mooncake (Kimi) traces: JSON lines ``timestamp`` (ms), ``input_length``, ``output_length``, ``hash_ids``.

Source: github.com/kvcache-ai/Mooncake (Apache-2.0), described in FAST'25. Ids stand for blocks of 512 tokens and are
chained already; the last one of a prompt is partial and is left out.
"""

from __future__ import annotations

from traces.formats.base import Format, Sample, Source
from traces.formats.hashed import block_size_of, read_hashed
from traces.trace import Trace

BLOCK_TOKENS = 512


def read(source: Source, *, block_tokens: int = BLOCK_TOKENS) -> Trace:
    """block_tokens: tokens that one hash stands for."""
    h = read_hashed(source, block_tokens=block_tokens, seconds_per_unit=1e-3)
    return h.rows.build(
        arrival=h.arrival, prompt_tokens=h.prompt_tokens, output_tokens=h.output_tokens, prefix=h.prefix
    )


def _matches(sample: Sample) -> bool:
    # Seconds and milliseconds look alike: only whole numbers with 512-token blocks are Mooncake's.
    whole_ms = all(isinstance(r.get("timestamp"), int) for r in sample.records)
    return whole_ms and block_size_of(sample.records, (16, BLOCK_TOKENS)) == BLOCK_TOKENS


FORMAT = Format("mooncake", "Mooncake JSON lines (timestamp in ms, 512-token hash_ids)", read, _matches)
