"""Azure LLM inference traces of 2023 and 2024: ``TIMESTAMP,ContextTokens,GeneratedTokens``.

Source: github.com/Azure/AzurePublicDataset (CC-BY-4.0), published with Splitwise (doi:10.1109/ISCA59077.2024.00019).
Time stamps are absolute, in ticks of 100 ns (2023) or with a UTC offset (2024); the first arrival becomes 0 s.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from traces.formats.base import Format, Rows, Sample, Source, read_csv
from traces.trace import Floats, Trace


def read(source: Source) -> Trace:
    rows = read_csv(source, ("TIMESTAMP", "ContextTokens", "GeneratedTokens"))
    arrival = _seconds(rows)
    return rows.build(
        arrival=arrival - arrival[rows.ok].min(initial=np.inf),
        prompt_tokens=rows.tokens("ContextTokens"),
        output_tokens=rows.tokens("GeneratedTokens"),
    )


def _seconds(rows: Rows) -> Floats:
    """Seconds after the first time stamp, subtracted as integers: a double holds epoch seconds only to 0.2 us."""
    ns = _nanoseconds(rows.columns["TIMESTAMP"])
    missing = ns == np.iinfo(np.int64).min
    rows.refuse("TIMESTAMP", missing, "is not a time stamp like 2023-11-16 18:15:46.6805900")
    first = ns[~missing].min(initial=np.iinfo(np.int64).max)
    return np.where(missing, 0.0, (ns - first) / 1e9)


def _nanoseconds(values: Any) -> np.ndarray[Any, np.dtype[np.int64]]:
    import pandas as pd
    import pyarrow as pa
    import pyarrow.compute as pc

    for kind in (pa.timestamp("ns"), pa.timestamp("ns", tz="UTC")):
        try:
            return np.asarray(pc.cast(pc.cast(values, kind), pa.int64()).to_numpy(), dtype=np.int64)
        except pa.ArrowInvalid:
            continue
    parsed = pd.to_datetime(values.to_pandas(), utc=True, format="ISO8601", errors="coerce")
    return np.asarray(parsed.dt.tz_localize(None).to_numpy(dtype="datetime64[ns]").astype(np.int64))


def _matches(sample: Sample) -> bool:
    return {"timestamp", "contexttokens", "generatedtokens"} <= {name.lower() for name in sample.header}


FORMAT = Format(
    "azure", "Azure LLM inference 2023/2024 CSV (TIMESTAMP, ContextTokens, GeneratedTokens)", read, _matches
)
