"""vLLM's ``--dataset-name timed_trace``: JSON lines with time (s), lengths and hashes of 16-token blocks.

Options carry the meaning and the defaults of ``vllm bench serve --timed-trace-*`` (vLLM 0.33): one hash per 16 tokens,
times multiplied by ``sec_multiplier``, and a label for each member. vLLM derives the tokens of a block from its own
hash alone, so ids are chained here where they are not.
"""

from __future__ import annotations

from traces.formats.base import Format, Sample, Source
from traces.formats.hashed import block_size_of, read_hashed
from traces.trace import Trace


def read(
    source: Source,
    *,
    chunk_hash_size: int = 16,
    sec_multiplier: float = 1.0,
    label_timestamp: str = "timestamp",
    label_input_length: str = "input_length",
    label_output_length: str = "output_length",
    label_hash_ids: str = "hash_ids",
) -> Trace:
    labels = (label_timestamp, label_input_length, label_output_length, label_hash_ids)
    h = read_hashed(source, block_tokens=chunk_hash_size, seconds_per_unit=sec_multiplier, labels=labels)
    return h.rows.build(
        arrival=h.arrival, prompt_tokens=h.prompt_tokens, output_tokens=h.output_tokens, prefix=h.prefix
    )


def _matches(sample: Sample) -> bool:
    chat = any("chat_id" in record for record in sample.records)
    return not chat and block_size_of(sample.records, (16, 512)) == 16


FORMAT = Format("timed_trace", "vLLM timed_trace JSON lines (timestamp in s, 16-token hash_ids)", read, _matches)
