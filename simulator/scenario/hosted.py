"""What an engine offloads, built."""

from __future__ import annotations

from simulator.cluster.plan import ClusterPlan
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
    if engine.offload is not None or engine.cpu_offload_gb:
        _check_alone(scenario)
        _check_clocks(scenario, "engine.offload")
    if engine.experts is not None and engine.experts.cached_experts is not None:
        _check_clocks(scenario, "engine.experts.cached_experts")
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


def _check_alone(scenario: Scenario) -> None:
    """Raises ScenarioError where what is offloaded would be priced as if it were not."""
    engine = scenario.engine
    for name, on in (
        ("lora_config", engine.lora_config is not None),
        ("finetuning", engine.finetuning is not None),
        ("tensor_parallel_layout", engine.tensor_parallel_layout != "1d"),
    ):
        if on:
            raise ScenarioError(
                f"{name} is not modelled for weights or KV outside the GPU.",
                where="engine.offload",
                remedy="Leave one of them out.",
            )


def _check_clocks(scenario: Scenario, where: str) -> None:
    """Raises ScenarioError where copies from the host would slow down with the GPU's clock."""
    hardware = scenario.hardware
    for name, on in (
        ("hardware.power_cap_w and hardware.clock", hardware.power_cap_w is not None or hardware.clock != 1.0),
        ("cluster.clocks", scenario.cluster.clocks is not None),
    ):
        if on:
            raise ScenarioError(
                f"{name} is not modelled for what is read from the host's memory.",
                where=where,
                remedy="Leave one of them out.",
            )


def check_kv_at_home(plan: ClusterPlan, offload: Offload | None, *, tiers: bool) -> None:
    """Raises ScenarioError where KV outside the GPU would move as if it were in it."""
    if offload is None or not (offload.kv_host or offload.kv_disk):
        return
    if tiers or plan.moves_kv:
        raise ScenarioError(
            "KV in host memory or on disk is not moved on to tiers or other replicas here.",
            where="engine.offload",
            remedy="Leave out kv_host and kv_disk, or kv_tiers, disaggregation, migration, drains that migrate and "
            "kv_replication.",
        )
