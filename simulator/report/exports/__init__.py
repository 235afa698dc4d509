"""The same results in the shapes that other tools write, so that existing notebooks read them."""

from __future__ import annotations

from simulator.report.exports.aiperf import to_aiperf
from simulator.report.exports.perfetto import to_perfetto
from simulator.report.exports.vllm_bench import to_vllm_bench

__all__ = ["to_aiperf", "to_perfetto", "to_vllm_bench"]
