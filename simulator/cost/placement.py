"""How a model is cut over GPUs and in which formats it is stored."""

from __future__ import annotations

from dataclasses import dataclass

from simulator.core.errors import HardwareError, ModelError
from simulator.hardware.gpu import Gpu
from simulator.model.architecture import Model
from simulator.model.formats import Quantization, weight_format


@dataclass(frozen=True, slots=True)
class Deployment:
    """How a model is cut and stored.

    ``dtype`` of unquantised weights and activations, ``quantization`` of weights, ``kv_cache_dtype``: see
    ``simulator.model.formats``; ``auto`` and None mean as the model is published (16-bit KV cache).
    """

    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    enable_expert_parallel: bool = False
    dtype: str = "auto"
    quantization: str | None = None
    kv_cache_dtype: str = "auto"


@dataclass(frozen=True, slots=True)
class Placed:
    """A deployment with every ``auto`` resolved for a model on a GPU."""

    tp: int
    pp: int
    expert_parallel: bool
    dtype: str
    quantization: Quantization | None
    kv_dtype: str

    @property
    def dtype_bytes(self) -> float:
        return weight_format(self.dtype).bits / 8


def place(model: Model, gpu: Gpu, deployment: Deployment) -> Placed:
    """Resolves ``auto``. Raises ModelError or HardwareError on what cannot be."""
    tp, pp = deployment.tensor_parallel_size, deployment.pipeline_parallel_size
    if tp < 1 or pp < 1 or pp > model.num_layers:
        raise ModelError(
            f"{model.name}: cannot cut {model.num_layers} layers into pp = {pp}, tp = {tp}",
            where="tensor_parallel_size, pipeline_parallel_size",
        )
    dtype = deployment.dtype
    if dtype == "auto":
        has_bf16 = "bf16" in gpu.peak_flops
        dtype = "float16" if model.dtype in ("float16", "bfloat16") and not has_bf16 else model.dtype
        dtype = ("bfloat16" if has_bf16 else "float16") if dtype == "float32" else dtype
    if weight_format(dtype).bits < 16:
        raise ModelError(f"dtype {dtype!r} is a quantisation", where="dtype", remedy=f"Write quantization: {dtype}.")
    if weight_format(dtype).math == "bf16" and "bf16" not in gpu.peak_flops:
        raise HardwareError(
            f"{gpu.name} (compute capability {gpu.compute_capability}) has no bfloat16", remedy="Set dtype: float16."
        )
    quantization = model.quantization
    if deployment.quantization is not None:
        name = deployment.quantization
        same = quantization is not None and (quantization.format == name or quantization.format.startswith(name + "_"))
        if weight_format(name).bits >= 16:
            quantization, dtype = None, weight_format(name).name
        elif not same:
            experts_alone = name.startswith("mxfp4") and model.is_moe
            quantization = Quantization(weight_format(name).name, "experts" if experts_alone else "linear")
    kv = deployment.kv_cache_dtype
    kv = dtype if kv == "auto" else kv
    return Placed(tp, pp, deployment.enable_expert_parallel, weight_format(dtype).name, quantization, kv)


def stage_sizes(num_layers: int, pp: int) -> tuple[int, ...]:
    """Layers per pipeline stage, as vLLM splits them: what is left over goes to the stages before the last one."""
    base, extra = divmod(num_layers, pp)
    sizes = [base] * pp
    for i in range(2, extra + 2):
        sizes[-i] += 1
    return tuple(sizes)
