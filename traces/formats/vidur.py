"""Vidur's CSV: ``arrived_at,num_prefill_tokens,num_decode_tokens`` (s, tokens).

Source: github.com/microsoft/vidur (MIT), arXiv:2405.05465. Its processed length sets have no ``arrived_at``; every
request then arrives at 0 s, which the notes say (give them arrivals with ``transforms.with_arrivals``).
"""

from __future__ import annotations

import numpy as np

from traces.formats.base import Format, Sample, Source, read_csv
from traces.trace import Trace


def read(source: Source) -> Trace:
    rows = read_csv(source, ("num_prefill_tokens", "num_decode_tokens"), ("arrived_at",))
    timed = "arrived_at" in rows.columns
    if not timed:
        rows.remarks.append("there is no arrived_at column: every request arrives at 0 s")
    return rows.build(
        arrival=rows.floats("arrived_at", low=0) if timed else np.zeros(len(rows)),
        prompt_tokens=rows.tokens("num_prefill_tokens"),
        output_tokens=rows.tokens("num_decode_tokens"),
    )


def _matches(sample: Sample) -> bool:
    return {"num_prefill_tokens", "num_decode_tokens"} <= {name.lower() for name in sample.header}


FORMAT = Format("vidur", "Vidur CSV (arrived_at, num_prefill_tokens, num_decode_tokens)", read, _matches)
