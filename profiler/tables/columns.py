"""The one form every table of kernel measurements is read into.

``Tables`` maps an operator to a DataFrame with the columns below, plus ``seconds``, ``dtype`` (number format the
product ran in, see ``DTYPES``), ``kernel`` (as the source names it) and ``source``. Head counts, inner sizes and
experts are those of one GPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from simulator.core.errors import CalibrationError

SHAPES: Mapping[str, tuple[str, ...]] = {
    "gemm": ("m", "n", "k"),
    # new: tokens of each sequence; computed: tokens of it already in the cache; window 0: none
    "prefill_attention": ("batch", "new", "computed", "heads", "kv_heads", "head_dim", "window", "kv_dtype"),
    # context: keys of each sequence, the new token's included
    "decode_attention": ("batch", "context", "heads", "kv_heads", "head_dim", "window", "kv_dtype"),
    # experts: on this rank; rows = tokens x top_k x share of the experts on this rank; routing 0: equal, else exponent
    "experts": ("tokens", "rows", "hidden", "inter", "top_k", "experts", "gated", "routing"),
    # the whole MLA module of a layer: projections, norms, rope, attention
    "mla_prefill": ("batch", "new", "computed", "heads", "kv_dtype"),
    "mla_decode": ("batch", "context", "heads", "kv_dtype"),
    # what is left of those when their projections are taken out; whole: seconds of the module
    "latent_prefill": ("batch", "new", "computed", "heads", "kv_dtype", "whole"),
    "latent_decode": ("batch", "context", "heads", "kv_dtype", "whole"),
    "all_reduce": ("ranks", "size_bytes"),  # size_bytes: the whole buffer
    "nccl_all_reduce": ("ranks", "size_bytes"),
    "all_gather": ("ranks", "size_bytes"),
    "reduce_scatter": ("ranks", "size_bytes"),
    "all_to_all": ("ranks", "size_bytes"),
    "elementwise": ("bytes", "kernels", "name"),
    "ceiling": ("quantity", "value"),
}
DTYPES = ("bf16", "fp16", "fp32", "fp8", "fp8_block", "int8", "int4", "mxfp4", "nvfp4", "mxfp4_fp8")
COMMON = ("dtype", "seconds", "kernel", "source")


@dataclass
class Tables:
    """Measurements by operator, and what is known of where they come from."""

    frames: dict[str, pd.DataFrame] = field(default_factory=dict)
    provenance: list[dict[str, str]] = field(default_factory=list)

    def add(self, operator: str, frame: pd.DataFrame, where: Path) -> None:
        """Raises CalibrationError on missing columns, or times and sizes that are not positive."""
        columns = (*SHAPES[operator], *COMMON)
        missing = [c for c in columns if c not in frame.columns]
        if missing:
            raise CalibrationError(f"{operator} table lacks columns: {', '.join(missing)}", where=str(where))
        frame = frame.loc[:, list(columns)]
        if operator != "ceiling":
            bad = ~(frame["seconds"] > 0.0)
            if bad.any():
                row = int(bad.to_numpy().argmax())
                raise CalibrationError(
                    f"{operator}: time {frame['seconds'].iloc[row]!r} is not positive", where=f"{where}, row {row}"
                )
        have = self.frames.get(operator)
        self.frames[operator] = frame if have is None else pd.concat([have, frame], ignore_index=True)

    def merge(self, other: Tables) -> None:
        for operator, frame in other.frames.items():
            have = self.frames.get(operator)
            self.frames[operator] = frame if have is None else pd.concat([have, frame], ignore_index=True)
        self.provenance += [p for p in other.provenance if p not in self.provenance]


def medians(frame: pd.DataFrame, keys: Iterable[str]) -> pd.DataFrame:
    """One row per shape: the median of its repetitions."""
    keys = list(keys)
    if not frame.duplicated(keys).any():
        return frame
    return frame.groupby(keys, as_index=False, sort=True).agg(
        {c: "median" if c == "seconds" else "first" for c in frame.columns if c not in keys}
    )


def fastest(frame: pd.DataFrame, keys: Iterable[str]) -> pd.DataFrame:
    """One row per shape: its fastest kernel's."""
    order = frame.sort_values("seconds", kind="stable")
    return order.drop_duplicates(list(keys)).sort_index().reset_index(drop=True)
