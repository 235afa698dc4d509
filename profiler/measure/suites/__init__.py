"""One file per kind of operator: a point in, buffers, the timed call and its check out (``Case``)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from profiler.measure.suites import attention, ceilings, collectives, copies, elementwise, gemm, moe, whole
from profiler.measure.suites.case import Case, Context

BUILDERS: Mapping[str, Callable[[Mapping[str, Any], Context], Case]] = {
    "ceiling": ceilings.build,
    "gemm": gemm.build,
    "prefill_attention": attention.build_prefill,
    "decode_attention": attention.build_decode,
    "packed_attention": attention.build_packed,
    "moe": moe.build,
    "elementwise": elementwise.build,
    "copy": copies.build,
    "all_reduce": collectives.build,
    "all_gather": collectives.build,
    "reduce_scatter": collectives.build,
    "all_to_all": collectives.build,
    "layer": whole.build,
    "step": whole.build,
}
