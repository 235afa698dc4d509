"""How a model is cut over GPUs and in which formats it is stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from simulator.core.errors import HardwareError, ModelError
from simulator.cost.expert_serving import ExpertServing, check_serving
from simulator.cost.hosted import Offload, check_offload
from simulator.cost.sparsity import ContextualSparsity, check_sparsity
from simulator.hardware.gpu import Gpu
from simulator.model.architecture import Attention, Layer, LinearAttention, Model
from simulator.model.formats import Quantization, weight_format
from simulator.model.weights import Linear, layer_linears

All2All = Literal["allgather_reducescatter", "deepep_high_throughput", "deepep_low_latency"]
ALLGATHER: All2All = "allgather_reducescatter"
ContextLayout = Literal["striped", "contiguous"]
TensorLayout = Literal["1d", "2d", "best"]


@dataclass(frozen=True, slots=True)
class Deployment:
    """How a model is cut and stored.

    ``dtype`` of unquantised weights and activations, ``quantization`` of weights, ``kv_cache_dtype``: see
    ``simulator.model.formats``; ``auto`` and None mean as the model is published (16-bit KV cache).

    With ``data_parallel_size`` attention and dense layers are repeated, and the experts are spread over all the ranks,
    which exchange tokens through ``all2all_backend``. ``expert_skew``: Zipf exponent of the experts' popularity.
    ``enable_eplb``: experts are placed by load, with ``num_redundant_experts`` copies. See ``cost/experts.py``.

    Context parallel sizes cut sequences and their KV, see ``cost/context_parallel.py``: over GPUs of their own for
    prefill, over tensor-parallel ranks for decode. ``context_parallel_masters``: prefill ranks that share the decoding
    tokens; 0: each computes all of them. ``tensor_parallel_layout``: see ``cost/tensor_cuts.py``.

    ``sparsity``: weights that a token needs, see ``cost/contextual_sparsity.py``.

    ``layers``: the first layer held and the one after the last, of a model whose others are elsewhere; None: all.
    """

    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    enable_expert_parallel: bool = False
    dtype: str = "auto"
    quantization: str | None = None
    kv_cache_dtype: str = "auto"
    data_parallel_size: int = 1
    all2all_backend: All2All = ALLGATHER
    expert_skew: float = 0.0
    enable_eplb: bool = False
    num_redundant_experts: int = 0
    prefill_context_parallel_size: int = 1
    decode_context_parallel_size: int = 1
    context_parallel_layout: ContextLayout = "striped"
    context_parallel_masters: int = 0
    experts: ExpertServing | None = None
    tensor_parallel_layout: TensorLayout = "1d"
    offload: Offload | None = None
    layers: tuple[int, int] | None = None
    sparsity: ContextualSparsity | None = None


@dataclass(frozen=True, slots=True)
class Placed:
    """A deployment with every ``auto`` resolved for a model on a GPU."""

    tp: int
    pp: int
    expert_parallel: bool
    dtype: str
    quantization: Quantization | None
    kv_dtype: str
    dp: int = 1
    all2all: All2All = ALLGATHER
    skew: float = 0.0
    eplb: bool = False
    redundant: int = 0
    pcp: int = 1  # prefill context parallel
    dcp: int = 1  # decode context parallel, inside tp
    striped: bool = True
    masters: int = 0
    experts: ExpertServing | None = None
    layout: TensorLayout = "1d"
    offload: Offload | None = None
    layers: tuple[int, int] | None = None  # held, of a model whose others are elsewhere

    @property
    def num_gpus(self) -> int:
        return self.tp * self.pp * self.dp * self.pcp

    @property
    def context_ranks(self) -> int:
        """Shares that the KV of a request is cut into along its sequence."""
        return self.pcp * self.dcp

    @property
    def expert_ranks(self) -> int:
        """GPUs over which the experts of a layer are spread, whole or in slices."""
        return self.tp * self.dp

    def linears(self, model: Model, layer: Layer) -> tuple[Linear, ...]:
        """Matrices of a layer on one rank."""
        return layer_linears(model, layer, self.tp, self.expert_parallel, self.dp, self.redundant)

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
    if deployment.layers is not None and not 0 <= deployment.layers[0] < deployment.layers[1] <= model.num_layers:
        first, end = deployment.layers
        raise ModelError(
            f"{model.name} has no layers {first} to {end - 1}: they are numbered 0 to {model.num_layers - 1}",
            where="layers",
            remedy=f"Give the first one held and the one after the last, such as [0, {model.num_layers}].",
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
    check_experts(model, deployment)
    if deployment.experts is not None:
        dp = deployment.data_parallel_size
        exchange = dp > 1 and deployment.all2all_backend != ALLGATHER
        spread = dp > 1 or deployment.enable_expert_parallel
        check_serving(model, deployment.experts, spread=spread, exchange=exchange)
    check_context_parallel(model, deployment)
    check_layout(model, deployment)
    ranks = tp * pp * deployment.data_parallel_size * deployment.prefill_context_parallel_size
    if deployment.offload is not None:
        check_offload(model, deployment.offload, ranks=ranks * deployment.decode_context_parallel_size, tp=tp)
    if deployment.sparsity is not None:
        check_sparsity(
            model,
            sizes=ranks // tp * deployment.decode_context_parallel_size,
            layout=deployment.tensor_parallel_layout,
            offloaded=deployment.offload is not None or deployment.layers is not None,
        )
    if gpu.sliced_from and ranks > 1:
        raise HardwareError(
            f"MIG slices have no links to each other, and {ranks} of {gpu.name} would need them",
            where="tensor_parallel_size",
            remedy=f"Use {gpu.sliced_from} whole, or cluster.replicas of one slice each.",
        )
    return Placed(
        tp, pp, deployment.enable_expert_parallel, weight_format(dtype).name, quantization, kv,
        deployment.data_parallel_size, deployment.all2all_backend, deployment.expert_skew, deployment.enable_eplb,
        deployment.num_redundant_experts, deployment.prefill_context_parallel_size,
        deployment.decode_context_parallel_size, deployment.context_parallel_layout == "striped",
        deployment.context_parallel_masters, deployment.experts, deployment.tensor_parallel_layout,
        deployment.offload, deployment.layers,
    )  # fmt: skip


def check_experts(model: Model, d: Deployment) -> None:
    """Raises ModelError when experts cannot be spread as asked, or there are none."""
    name, dp = model.name, d.data_parallel_size
    if dp > 1 and not model.is_moe:
        raise ModelError(
            f"{name} has no experts to share, so data-parallel ranks would be independent replicas",
            where="data_parallel_size",
            remedy=f"Use cluster.replicas: {dp}.",
        )
    if dp > 1 and d.pipeline_parallel_size > 1:
        raise ModelError(
            "data_parallel_size does not go with pipeline_parallel_size",
            where="data_parallel_size",
            remedy="Set pipeline_parallel_size: 1 and a larger data_parallel_size or tensor_parallel_size.",
        )
    spread = d.enable_expert_parallel and model.is_moe and dp * d.tensor_parallel_size > 1
    if d.all2all_backend != ALLGATHER and not (spread and dp > 1):
        raise ModelError(
            f"all2all_backend {d.all2all_backend!r} moves tokens between expert-parallel ranks of several "
            "data-parallel ones",
            where="all2all_backend",
            remedy="Set enable_expert_parallel: true and data_parallel_size above 1, or leave it out.",
        )
    for where, on in (("expert_skew", d.expert_skew > 0), ("enable_eplb", d.enable_eplb)):
        if on and not spread:
            raise ModelError(
                f"{where} needs whole experts on several ranks",
                where=where,
                remedy="Serve a mixture-of-experts model with enable_expert_parallel: true and more than one rank "
                "(tensor_parallel_size x data_parallel_size), or leave it out.",
            )
    if d.num_redundant_experts and not d.enable_eplb:
        raise ModelError(
            "redundant experts are placed by the load balancer",
            where="num_redundant_experts",
            remedy="Set enable_eplb: true, or num_redundant_experts: 0.",
        )
    if d.enable_eplb and d.pipeline_parallel_size > 1:
        raise ModelError(
            "enable_eplb does not go with pipeline_parallel_size here",
            where="enable_eplb",
            remedy="Set pipeline_parallel_size: 1.",
        )


def check_context_parallel(model: Model, d: Deployment) -> None:
    """Raises ModelError when sequences cannot be cut as asked."""
    pcp, dcp = d.prefill_context_parallel_size, d.decode_context_parallel_size
    if pcp * dcp == 1:
        return
    where = "prefill_context_parallel_size" if pcp > 1 else "decode_context_parallel_size"
    if d.pipeline_parallel_size > 1 or d.data_parallel_size > 1:
        raise ModelError(
            f"{where} does not go with pipeline_parallel_size or data_parallel_size here",
            where=where,
            remedy=f"Set both to 1, or {where}: 1.",
        )
    if any(isinstance(x.attention, LinearAttention) or x.attention.sliding_window for x in model.layers):
        raise ModelError(
            f"{model.name} has layers with a window or a recurrent state, whose KV is not cut along the sequence",
            where=where,
            remedy="Use tensor_parallel_size.",
        )
    if any(isinstance(x.attention, Attention) and x.attention.kv is not None for x in model.layers):
        raise ModelError(
            "a compressed KV cache is not cut along the sequence",
            where=where,
            remedy="Use tensor_parallel_size, or leave the compression out.",
        )
    if pcp > 1 and model.is_moe:
        raise ModelError(
            f"experts of {model.name} on several prefill context parallel ranks are not modelled",
            where=where,
            remedy="Use tensor_parallel_size with decode_context_parallel_size.",
        )
    heads = max(x.attention.num_kv_heads if isinstance(x.attention, Attention) else 1 for x in model.layers)
    copies = max(d.tensor_parallel_size // heads, 1)  # of each KV head
    if copies % dcp:
        raise ModelError(
            f"tensor_parallel_size {d.tensor_parallel_size} keeps {copies} copies of a KV head, which "
            f"decode_context_parallel_size {dcp} cannot divide among itself",
            where="decode_context_parallel_size",
            remedy=f"Set it to a divisor of {copies}, or use prefill_context_parallel_size.",
        )


def check_layout(model: Model, d: Deployment) -> None:
    """Raises ModelError where tensor parallelism in two dimensions is not modelled."""
    if d.tensor_parallel_layout == "1d":
        return
    dense = all(isinstance(x.attention, Attention) and x.mlp is not None and x.moe is None for x in model.layers)
    if not dense or d.pipeline_parallel_size > 1 or d.data_parallel_size > 1:
        raise ModelError(
            f"tensor_parallel_layout {d.tensor_parallel_layout!r} is for dense models with softmax attention, on "
            "tensor-parallel ranks alone",
            where="tensor_parallel_layout",
            remedy="Set tensor_parallel_layout: 1d.",
        )


def stage_ranges(num_layers: int, placed: Placed) -> list[range]:
    """Layers of each pipeline stage, or those held."""
    if placed.layers is not None:
        return [range(*placed.layers)]
    start, stages = 0, []
    for size in stage_sizes(num_layers, placed.pp):
        stages.append(range(start, start + size))
        start += size
    return stages


def stage_sizes(num_layers: int, pp: int) -> tuple[int, ...]:
    """Layers per pipeline stage, as vLLM splits them: what is left over goes to the stages before the last one."""
    base, extra = divmod(num_layers, pp)
    sizes = [base] * pp
    for i in range(2, extra + 2):
        sizes[-i] += 1
    return tuple(sizes)
