"""What an engine offloads, built."""

from __future__ import annotations

from simulator.core.errors import ScenarioError
from simulator.cost.hosted import Offload
from simulator.cost.placement import Deployment, place
from simulator.hardware.gpu import GIB, Gpu
from simulator.hardware.host import host
from simulator.model.architecture import Model
from simulator.model.weights import layer_weight_bytes
from simulator.scenario.config import Scenario
from simulator.scenario.load import at


def build_offload(scenario: Scenario, model: Model, gpu: Gpu) -> Offload | None:
    """What the engine offloads; None: nothing. Raises UserErrors when it is said twice, by too much, or to nowhere."""
    engine, name = scenario.engine, scenario.hardware.host
    with at("hardware.host"):
        server = None if name is None else host(name)
    if engine.offload is not None:
        if engine.cpu_offload_gb:
            raise ScenarioError(
                "weights are offloaded by cpu_offload_gb and by offload.",
                where="engine.cpu_offload_gb",
                remedy="Give one of them.",
            )
        if engine.offload.cpu_share == "balanced" and server is None:
            remedy = "Name it: hardware.host."
            raise ScenarioError("its host is not known.", where="engine.offload.cpu_share", remedy=remedy)
        return engine.offload.build(server, gpu, engine.tensor_parallel_size)
    if not engine.cpu_offload_gb:
        return None
    away = engine.cpu_offload_gb * GIB
    spec = scenario.model
    cut = Deployment(engine.tensor_parallel_size, dtype=spec.dtype, quantization=spec.quantization)
    with at("model"):
        placed = place(model, gpu, cut)
    total = sum(layer_weight_bytes(model, x, placed.tp, placed.dtype, placed.quantization) for x in model.layers)
    if away > total:
        raise ScenarioError(
            f"the layers of {model.name} have {total / GIB:.1f} GiB of weights per GPU.",
            where="engine.cpu_offload_gb",
            remedy=f"Give at most {int(total / GIB)}.",
        )
    # vLLM's kernels read such weights over PCIe as they run: nothing is copied ahead.
    return Offload(host=server, weights_host=away / total, overlap=False)
