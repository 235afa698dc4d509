"""A served engine's kernels as the simulator prices them in any scenario: ``OperatorCost`` over a calibration.

What a scenario cannot say is said here: the engine's own time comes from the probe and not from a preset, and an engine
that packs all sequences of a step into one masked product (``transformers`` without a paged kernel) has its attention
from the measured tables, since no engine that the simulator models runs such a kernel.
"""

from __future__ import annotations

from collections.abc import Sequence

from profiler.serve.predict import ServedCost, shape_of
from profiler.serve.record import Run
from profiler.serve.tables import Tables
from simulator.core.errors import HardwareError
from simulator.cost.calibrated import cost_model
from simulator.cost.calibration import Calibration, choose
from simulator.cost.overhead import EngineOverhead
from simulator.cost.placement import Deployment
from simulator.hardware.gpu import Gpu
from simulator.hardware.gpu import gpu as find_gpu
from simulator.model.config import from_config

# Kernels alone, each launched by the engine's eager code.
NOTHING = EngineOverhead(0.0, 0.0, 0.0, 0.0, async_scheduling=False, graph_sizes=(), full_graphs=False)
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


class CalibratedCost(ServedCost):
    """Kernels from a calibration. ``packed``: tables with the packed attention of an engine that runs it."""

    def __init__(self, run: Run, calibration: Calibration, card: Gpu, packed: Tables | None = None) -> None:
        """Raises ModelError or HardwareError on what the simulator cannot run."""
        super().__init__()
        self.name = calibration.name
        self._heads = (run.model["num_attention_heads"], run.model["num_key_value_heads"], run.model["head_dim"])
        self._layers, self._packed = shape_of(run).layers, packed
        deployment = Deployment(dtype=DTYPES[run.dtype])
        self._cost = cost_model(from_config(run.model, str(run.model["name"])), card, calibration, deployment, NOTHING)
        self._by_tokens: dict[int, float] = {}

    def kernels(self, num_decodes: int, context: float, chunks: Sequence[tuple[int, int]], num_sampled: int) -> float:
        if self._packed is None:
            return self._cost.mixed(num_decodes, int(context), 0, chunks, num_sampled)
        tokens = num_decodes + sum(new for new, _ in chunks)
        keys = context + sum(new + old for new, old in chunks)
        attention = self._packed.packed(self._heads, tokens, keys)
        return self._tokens(tokens) + self._seconds_of_sampled(num_sampled) + self._layers * attention

    def _tokens(self, tokens: int) -> float:
        if tokens not in self._by_tokens:
            self._by_tokens[tokens] = sum(e.times * e.price.seconds for e in self._cost.token_entries(tokens))
        return self._by_tokens[tokens]

    def _seconds_of_sampled(self, rows: int) -> float:
        return sum(e.times * e.price.seconds for e in self._cost.sampled_entries(rows))


def calibrated_cost(run: Run, setting: str, tables: Tables) -> CalibratedCost | None:
    """The cost of a run on its device; None where the device is not in the catalogue or nothing is calibrated for it.

    setting: as ``hardware.calibration`` of a scenario. Raises CalibrationError on a name that is none.
    """
    try:
        card = find_gpu("cpu" if run.device.get("type") == "cpu" else str(run.device.get("name")))
    except HardwareError:
        return None
    calibration = choose(setting, card)
    if calibration is None:
        return None
    return CalibratedCost(run, calibration, card, tables if run.engine["name"] == "transformers" else None)
