"""The fields that describe one replica: its model, its hardware, its engine."""

from __future__ import annotations

from dataclasses import asdict, field, fields
from typing import Annotated, Literal

from pydantic import Field

from simulator.core.errors import PolicyError
from simulator.cost.expert_serving import ExpertServing
from simulator.cost.other_kernels import KernelSpeed
from simulator.cost.sparsity import ContextualSparsity
from simulator.kv.eviction import EVICTIONS
from simulator.scenario.finetuning import FinetuningSpec
from simulator.scenario.kv import KvCompressionSpec
from simulator.scenario.lora import LoraSpec
from simulator.scenario.offload import OffloadSpec
from simulator.scenario.placement import PlacementSpec
from simulator.scenario.spec import (
    Bool,
    Fraction,
    Int,
    Name,
    NonNegative,
    NonNegativeNumber,
    Number,
    Positive,
    PositiveBytes,
    PositiveNumber,
    Seconds,
    Shorthand,
    Str,
    spec,
)
from simulator.scenario.speculation import SpeculativeSpec

Share = Annotated[float, Field(strict=True, gt=0, le=1, allow_inf_nan=False)]


@spec
class SparsitySpec:
    """Weights that a token needs, as predictors say: inputs, as quality is. A batch needs all that its tokens need."""

    neurons: Share = 1.0
    """Share of every MLP's neurons that a token needs."""
    heads: Share = 1.0
    """Share of the heads whose projections a token needs."""
    always: Fraction = 0.0
    """Of what a token needs, the share that every token needs; the rest is independent from token to token."""
    predictor_rank: Positive = 1000
    """Width of the predictors' hidden layer."""

    def __post_init__(self) -> None:
        if self.neurons == 1.0 and self.heads == 1.0:
            raise ValueError("give the share of 'neurons' or of 'heads' that a token needs, below 1.")

    def build(self) -> ContextualSparsity:
        return ContextualSparsity(self.neurons, self.heads, self.always, self.predictor_rank)


@spec
class ModelSpec:
    """What is served."""

    name: Name | None = None
    """Name in the catalogue (`windtunnel models`), such as meta-llama/Llama-3.1-8B. Give this or `config`."""
    config: Name | None = None
    """Path of a Hugging Face config.json, relative to the scenario file."""
    dtype: Name = "auto"
    """Type of weights and activations: auto (the model's own), bfloat16, float16 or float32."""
    quantization: Name | None = None
    """Weight quantization: fp8, int8, int4, mxfp4, nvfp4, ...; null: as the model is published."""
    kv_cache_dtype: Name = "auto"
    """Type of the KV cache: auto (that of the activations), bfloat16, fp8, int8 or int4."""
    kv_compression: Annotated[KvCompressionSpec, Shorthand("preset")] | None = None
    """How the KV cache is made smaller beyond its type. Plain text is a preset's name."""
    contextual_sparsity: SparsitySpec | None = None
    """Neurons and heads that a token needs, the only ones that are multiplied (Deja Vu); null: all of them."""

    def __post_init__(self) -> None:
        if (self.name is None) == (self.config is None):
            raise ValueError("give exactly one of 'name' (from the catalogue) and 'config' (path of a config.json).")


@spec
class KernelSpeedSpec:
    """Kernels other than the measured ones: speed over theirs. Nothing gets faster than the GPU's peaks."""

    gemm: PositiveNumber = 1.0
    """Matrix products of dense layers."""
    gemm_max_tokens: NonNegative = 0
    """`gemm` holds for up to so many tokens in a step; 0: for all."""
    experts: PositiveNumber = 1.0
    """Products of routed experts."""
    prefill_attention: PositiveNumber = 1.0
    """Attention of prompts."""
    decode_attention: PositiveNumber = 1.0
    """Attention of decodes."""
    elementwise: PositiveNumber = 1.0
    """Norms, rotary embedding, activations, sampling."""
    communication: PositiveNumber = 1.0
    """All-reduces and what else goes between GPUs within a step."""

    def __post_init__(self) -> None:
        if self.gemm_max_tokens and self.gemm == 1.0:
            raise ValueError("'gemm_max_tokens' bounds 'gemm', which is not given.")

    def build(self) -> KernelSpeed:
        return KernelSpeed(**asdict(self))


@spec
class HardwareSpec:
    """What it runs on."""

    gpu: Name
    """Name in the catalogue (`windtunnel gpus`), such as H100-SXM."""
    calibration: Name = "auto"
    """Where kernel times come from: auto (the GPU's shipped calibration, else the data sheet), roofline, or a file."""
    kernel_speed: KernelSpeedSpec | None = None
    """Other kernels than those of the calibration; null: as they were measured."""
    host: Name | None = None
    """Server around the GPUs (`simulator/hardware/hosts.yaml`), where an engine offloads to its memory, CPU or disk."""
    price_per_gpu_hour: NonNegativeNumber | None = None
    """USD for one GPU for an hour; null: the catalogue's dated price, where it has one."""
    pricing: Literal["on-demand", "reserved", "spot"] = "on-demand"
    """Which of the catalogue's prices: on demand, a year's commitment (about a fifth less), or spot, whose reclaims are
    `cluster.faults`."""
    power_cap_w: PositiveNumber | None = None
    """Power limit per GPU, W; null: its TDP. Steps that would draw more run at a lower clock."""
    clock: Annotated[float, Field(strict=True, gt=0, le=1, allow_inf_nan=False)] = 1.0
    """Core clock as a share of its maximum: prompts slow down with it, decodes hardly."""

    def __post_init__(self) -> None:
        if self.pricing != "on-demand" and self.price_per_gpu_hour is not None:
            raise ValueError("'price_per_gpu_hour' is the price already; leave 'pricing' out.")


@spec
class TierSpec:
    """A slower place for KV blocks that the prefix cache computes or forgets."""

    name: Name
    """dram, ssd, remote or any other name; equal names of a shared tier are one tier."""
    capacity_bytes: PositiveBytes
    """KV it holds."""
    bandwidth: PositiveBytes | None = None
    """Bytes per second that a replica (or all that share it) reads; null, for dram: the GPUs' links to the host."""
    latency_s: Seconds = 0.0
    """Before the first byte."""
    write: Literal["evict", "through"] = "evict"
    """When blocks come down: as the cache forgets them, or as they are computed."""
    eviction: Name = "lru"
    """Eviction policy of the tier: a registered name (`windtunnel policies`) or package.module:Class."""
    shared: Bool = False
    """One copy and one bandwidth for all replicas; its blocks are written through."""

    def __post_init__(self) -> None:
        if self.bandwidth is None and self.name != "dram":
            raise ValueError(f"tier {self.name!r} needs a 'bandwidth'; only dram has one by itself.")
        if self.shared and self.write != "through":
            raise ValueError("a shared tier is written through: set 'write: through'.")
        if self._eviction_knows_the_future():
            known = ", ".join(name for name, policy in EVICTIONS.items() if not policy.needs_future)
            raise ValueError(f"eviction policy {self.eviction!r} looks into the future. Policies: {known}.")

    def _eviction_knows_the_future(self) -> bool:
        try:
            return EVICTIONS.get(self.eviction).needs_future
        except PolicyError as error:
            raise ValueError(str(error)) from error


CACHE_FIELDS = {"eviction", "prefetch", "on_miss", "cpu_flops", "cpu_bandwidth", "skew", "sequence_skew"}


@spec
class ExpertsSpec:
    """A mixture-of-experts model's experts, served otherwise than all in GPU memory with exact dispatch."""

    cached_experts: NonNegativeNumber | None = None
    """Experts of each layer in GPU memory, on average; the others are in the host's. null: all."""
    eviction: Literal["lru", "popular", "activation-aware", "stream"] = "lru"
    """Which cached experts give way: lru, popular (the most popular ones stay), activation-aware (those that running
    sequences visit stay: MoE-Infinity) or stream (whole layers, one after the other)."""
    prefetch: Fraction = 0.0
    """Share of the experts to fetch that is known early enough to come while the layer computes."""
    on_miss: Literal["fetch", "compute", "faster"] = "fetch"
    """Fetch a missing expert, compute it on the CPU, or whichever is faster (Fiddler)."""
    cpu_flops: PositiveNumber | None = None
    """FLOP/s of the host's CPU, where it computes."""
    cpu_bandwidth: PositiveBytes | None = None
    """Bytes per second of the host's memory, where its CPU computes."""
    skew: NonNegativeNumber = 0.0
    """Zipf exponent of what is popular with all sequences."""
    sequence_skew: NonNegativeNumber = 1.0
    """Zipf exponent of what one sequence prefers, in an order of its own."""
    capacity_token_fraction: Annotated[float, Field(strict=True, gt=0, le=1, allow_inf_nan=False)] | None = None
    """Rows that every expert computes whatever it gets, as a share of the batch (static gating); null: only those."""
    local_share: Fraction | None = None
    """Share of tokens whose next expert is on their own GPU (placement by affinity: ExFlow); null: as by chance."""
    context_coherent: Bool = False
    """Tokens stay where their expert was: one exchange per layer instead of two (ExFlow)."""

    def __post_init__(self) -> None:
        if self.cached_experts is None:
            own = {f.name: f.default for f in fields(self) if f.name in CACHE_FIELDS}
            given = [name for name, default in own.items() if getattr(self, name) != default]
            if given:
                raise ValueError(f"{given[0]!r} is about experts in host memory: give 'cached_experts'.")
        if self.on_miss == "compute" and self.prefetch:
            raise ValueError("on_miss: compute fetches nothing, so there is nothing to 'prefetch'.")
        if self.on_miss != "fetch" and (self.cpu_flops is None or self.cpu_bandwidth is None):
            raise ValueError(f"on_miss: {self.on_miss} needs 'cpu_flops' and 'cpu_bandwidth'.")
        if self.on_miss == "fetch" and (self.cpu_flops is not None or self.cpu_bandwidth is not None):
            raise ValueError("'cpu_flops' and 'cpu_bandwidth' are used with on_miss: compute or faster.")

    def build(self) -> ExpertServing:
        given = {name: value for name, value in asdict(self).items() if value is not None}
        return ExpertServing(**given)


OF_TIERS = ("kv_tier_load", "kv_tier_prefetch", "kv_tier_load_if_faster", "kv_tier_match", "kv_recompute_fraction",
            "kv_recompute_layers")  # fields that mean nothing without ``kv_tiers``  # fmt: skip


@spec
class EngineSpec:
    """Engine arguments under vLLM's names. null: what vLLM would choose for this model and GPU."""

    policy: Name = "vllm"
    """Engine policy: a registered name (`windtunnel policies`) or package.module:Class."""
    scheduling_policy: Literal["fcfs", "priority"] = "fcfs"
    """Order of the waiting queue."""
    tensor_parallel_size: Positive = 1
    """GPUs that share each layer."""
    tensor_parallel_layout: Literal["1d", "2d", "best"] = "1d"
    """How dense layers are cut: 1d (rows or columns, as engines do), 2d (both), best (2d, or gathering weights where
    that sends less)."""
    pipeline_parallel_size: Annotated[int, Field(strict=True, ge=1, le=15)] = 1
    """GPUs that share the layers in sequence; as many batches are in flight."""
    placement: PlacementSpec | None = None
    """Layers on nodes of unlike GPUs, with requests on routes of their own through them; null: all GPUs are alike."""
    data_parallel_size: Annotated[int, Field(strict=True, ge=1, le=127)] = 1
    """Attention and dense layers are repeated so often, each rank with a scheduler and KV cache of its own; the experts
    are shared and all ranks step together. For mixture-of-experts models; others use `cluster.replicas`."""
    prefill_context_parallel_size: Annotated[int, Field(strict=True, ge=1, le=127)] = 1
    """GPUs (times `tensor_parallel_size`) that share the tokens of each prompt, in ring attention, and the KV of every
    request."""
    decode_context_parallel_size: Positive = 1
    """Tensor-parallel ranks that share the KV of requests along their sequence, instead of repeating it."""
    context_parallel_layout: Literal["striped", "contiguous"] = "striped"
    """How prompts are cut: striped (or zigzag, as vLLM does) gives every rank as much of the causal mask, contiguous
    leaves ranks waiting."""
    enable_expert_parallel: Bool = False
    """Spread a mixture-of-experts model's experts over the tensor-parallel and data-parallel ranks instead of cutting
    each."""
    all2all_backend: Literal["allgather_reducescatter", "deepep_high_throughput", "deepep_low_latency"] = (
        "allgather_reducescatter"
    )
    """How tokens reach the experts of other data-parallel ranks."""
    expert_skew: Annotated[float, Field(strict=True, ge=0, le=10, allow_inf_nan=False)] = 0.0
    """Zipf exponent of the experts' popularity; the busiest expert-parallel rank sets the time. 0: all are alike."""
    enable_eplb: Bool = False
    """Place experts by their load (EPLB) instead of in the order of their numbers."""
    num_redundant_experts: NonNegative = 0
    """Copies of experts per layer that EPLB may place beside the model's own."""
    eplb_step_interval: Positive = 3000
    """Steps from one placement of the experts to the next; moving their weights takes time."""
    cpu_offload_gb: NonNegativeNumber = 0.0
    """GiB of weights per GPU that stay in the host's memory and are read over PCIe in every step."""
    offload: OffloadSpec | None = None
    """Weights and KV in the host's memory or on its disk, in full."""
    experts: ExpertsSpec | None = None
    """Experts in host memory, padded, or placed by affinity; null: in GPU memory, with exact dispatch."""
    shared_prefix_attention: Literal["none", "batch", "groups"] = "none"
    """Decode attention that reads a shared prefix once: of the whole batch, as vLLM's cascade attention does
    (`disable_cascade_attention: false`), or of every group of requests with the same first block (Parrot, Hydragen).
    Needs prefix caching."""
    enforce_eager: Bool = False
    """Run without CUDA graphs: no padding of small batches, but every kernel is launched by the CPU."""
    max_cudagraph_capture_size: Positive | None = None
    """Most tokens that run in a CUDA graph; null: twice `max_num_seqs`, at most 512 (Blackwell: 1024)."""
    overhead: Name | None = None
    """Preset of what the engine adds to its kernels: vllm (the newest), vllm-0.10, sglang, ...; null: the policy's."""
    max_num_seqs: Positive | None = None
    """Requests running at once."""
    max_num_batched_tokens: Positive | None = None
    """Token budget of one step."""
    max_model_len: NonNegative = 0
    """Longest prompt plus output, tokens; 0: from the model's config."""
    block_size: Positive = 16
    """Tokens per KV block."""
    num_gpu_blocks_override: Positive | None = None
    """KV blocks to use instead of what the memory of the GPU gives."""
    gpu_memory_utilization: Annotated[float, Field(strict=True, gt=0, le=1, allow_inf_nan=False)] = 0.92
    """Share of the GPU's memory the engine may take."""
    enable_prefix_caching: Bool | None = None
    """Reuse KV blocks of equal prompt prefixes. null: as the policy does by default (vllm: true)."""
    kv_tiers: tuple[TierSpec, ...] = ()
    """Slower places behind the prefix cache, fastest first."""
    kv_tier_load: Literal["layerwise", "blocking", "async"] = "layerwise"
    """Who waits for what is loaded: a step, layer by layer while it computes (layerwise) or for all of it first
    (blocking), or the request alone, aside, while steps go on without it (async)."""
    kv_tier_prefetch: NonNegative = 0
    """Requests at the head of the queue whose blocks are brought up to the first tier before they are admitted, and
    forgotten last by tiers with `eviction: lru`."""
    kv_tier_load_if_faster: Bool = True
    """Load a prefix only where computing it would take longer."""
    kv_tier_match: Literal["prefix", "chunks"] = "prefix"
    """What tiers are asked for: a prompt's prefix, or its chunks wherever they stand (CacheBlend)."""
    kv_recompute_fraction: Fraction = 0.15
    """Share of the tokens of a chunk that are computed again in their new place, with `kv_tier_match: chunks`."""
    kv_recompute_layers: NonNegative = 1
    """First layers, in which all of a chunk's tokens are computed to find those that are computed again after them."""
    parallel_chunks: Bool = False
    """Encode the chunks of a prompt side by side, without attention between them; what follows them sees them all."""
    enable_chunked_prefill: Bool = True
    """Split prompts that exceed the token budget over several steps."""
    long_prefill_token_threshold: NonNegative = 0
    """Longest chunk of a prompt computed in one step, tokens; 0: only the budget limits it."""
    scheduler_reserve_full_isl: Bool = True
    """Admit a request only when KV blocks for its whole prompt are free, not just for its first chunk."""
    watermark: Fraction = 0.0
    """Share of the KV blocks kept free when requests are admitted."""
    async_scheduling: Bool | None = None
    """Schedule step N+1 while step N runs. null: as the policy does by default (vllm: true)."""
    lora_config: LoraSpec | None = None
    """LoRA adapters (docs/adapters.md)."""
    finetuning: FinetuningSpec | None = None
    """A fine-tuning job beside the requests (docs/adapters.md)."""
    speculative_config: SpeculativeSpec | None = None
    """Speculative decoding (docs/speculation.md)."""
    options: dict[str, Bool | Int | Number | Str] = field(default_factory=dict)
    """The policy's own options; a wrong name or value is answered with the right ones."""
