"""Steps of an engine whose weights or KV lie partly in the host's memory or on its disk.

A step goes through the layers once, however many requests it holds: what is not on the GPU comes over PCIe layer by
layer while the layer before computes, so that a step lasts as long as the slowest of the GPU, the links and the CPU
(FlexGen's block schedule, Sheng et al., ICML 2023, arXiv:2303.06865, section 4.2: T = max(ctog, gtoc, dtoc, ctod,
comp)); without overlap, as their sum. A token at a time and a batch that fits the GPU make it the row schedule of
ZeRO-Inference and Accelerate.

The CPU may compute, too: attention over the KV in its memory, after the GPU's products of the layer (FlexGen's
``--cpu``); or its share of every matrix, beside them (HeteGen, arXiv:2403.01164; PowerInfer's cold neurons,
arXiv:2312.12456; without overlap, llama.cpp's layers on the CPU).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from simulator.core.errors import ModelError
from simulator.cost.hosted import Attender
from simulator.cost.interface import Line
from simulator.cost.operators import Curve
from simulator.cost.served_experts import HOST_EFFICIENCY
from simulator.cost.step import FOREVER, Entry, OperatorCost, Table
from simulator.cost.wave import slowest
from simulator.hardware.gpu import Gpu
from simulator.hardware.host import Host
from simulator.model.architecture import Layer
from simulator.model.weights import format_of, layer_weight_bytes, linear_bytes

# Share of its memory's data-sheet bandwidth that a CPU's product with a vector gets: what STREAM reaches.
CPU_EFFICIENCY = 0.8
# Bytes a CPU's attention moves per byte of keys and values: 16-bit ones are read, and widened ones written and read
# (FlexGen's ``mha_gen`` calls ``k.float()`` in every step).
PASSES: Mapping[Attender, float] = {"cpu": 1.0, "cpu_fp32": 5.0}


class OffloadedCost(OperatorCost):
    """``OperatorCost`` with the links to the host and its CPU beside the GPU. Built where ``deployment.offload`` is."""

    def _use(self, stage: tuple[tuple[Layer, ...], bool, bool]) -> None:
        super()._use(stage)
        self.blocks = [None] * len(self.attention_shapes)  # how unequal contexts are is lost among the copies
        self.uneven = False
        p, o = self.placed, self.placed.offload
        assert o is not None
        self._offload = o
        self._link = link_bandwidth(self.gpu, o.host)
        self._on_cpu = 0.0
        self._weights = sum(
            count * layer_weight_bytes(self.model, layer, p.tp, p.dtype, p.quantization)
            for layer, count in self.layers.items()
        )
        self._roles: tuple[str, ...] = ("mlp",) if o.sparse else ("mlp", "attention")
        weights = products = 0.0  # of those matrices
        for layer, count in self.layers.items():
            for x in self._linears[layer]:
                if x.role in self._roles:
                    weights += count * linear_bytes(x, format_of(x, p.dtype, p.quantization), p.dtype_bytes)
                    products += count * x.out_features * x.in_features
        self._shared_bytes, self._flops_per_token = weights, 2.0 * products
        self._on_cpu = o.on_cpu * self._weights / weights if o.sparse else o.on_cpu
        if self._on_cpu > 1.0:
            raise ModelError(
                f"the MLPs of {self.model.name} are {weights / self._weights:.2f} of its layers' weights",
                where="offload",
                remedy="With activated, give at most as much of weights_host.",
            )
        self._beside_cpu: Table[float] = Table(self._shared_seconds)
        self._kv = [0.0, 0.0]  # bytes that a decode reads per token of context, whole and clipped to a window
        self._stored = 0.0  # bytes per new token
        for shape, count in self.attention_shapes:
            share = 1.0 if shape.kv is None else shape.kv.keep * shape.kv.read
            self._kv[shape.window is not None] += count * shape.bytes_per_context * share
            self._stored += count * shape.bytes_per_context
        host = o.host
        if host is not None:  # shared by the ranks
            self._cpu_bandwidth = host.memory_bandwidth * CPU_EFFICIENCY / p.tp
            self._cpu_flops = host.flops / p.tp
            self._disk_read, self._disk_write = host.disk_read / p.tp, host.disk_write / p.tp

    def _layer_entries(self, layer: Layer, tokens: int) -> list[Entry]:
        """Products of what the CPU multiplies, or no token needs, are not the GPU's."""
        shared = {linear.name for linear in self._linears[layer] if linear.role in self._roles}
        share = self.placed.offload.by_gpu(tokens, self._on_cpu) if self.placed.offload is not None else 1.0
        return [
            e._replace(price=e.price._replace(seconds=e.price.seconds * share)) if e.operator in shared else e
            for e in super()._layer_entries(layer, tokens)
        ]

    def _shared_seconds(self, tokens: int) -> float:
        """The GPU's seconds on the matrices of which the CPU has a part."""
        return sum(
            count * e.price.seconds
            for layer, count in self.layers.items()
            for e in self._layer_entries(layer, self.overhead.padded(tokens))
            if e.operator in {linear.name for linear in self._linears[layer] if linear.role in self._roles}
        )

    def _attention_curves(self, num_decodes: int) -> tuple[Curve, Curve]:
        """The GPU's part of the contexts."""
        o = self.placed.offload
        whole, windowed = super()._attention_curves(num_decodes)
        if o is None or o.attention == "gpu" or not o.kv_host:
            return whole, windowed
        return _part(whole, 1.0 - o.kv_host), _part(windowed, 1.0 - o.kv_host)

    def decode(  # noqa: PLR0917 - see UnevenStepCost
        self, num_decodes: int, context: int, windowed: int, growing: int, longest: int = 0, squares: int = 0
    ) -> Line:
        """See ``StepCost``."""
        gpu = super().decode(num_decodes, context, windowed, growing)
        read = self._read_bytes(context, windowed)
        more = self._kv[0] * num_decodes + self._kv[1] * growing
        return self._together(gpu, num_decodes, num_decodes, read, more, 0.0)

    def mixed(  # noqa: PLR0917
        self, num_decodes: int, context: int, windowed: int, chunks: Sequence[tuple[int, int]], num_sampled: int,
        longest: int = 0, squares: int = 0,
    ) -> float:  # fmt: skip
        """See ``StepCost``. Prompts compute on the GPU: what a chunk attends to is copied there."""
        if not chunks:
            return self.decode(num_decodes, context, windowed, 0).first
        gpu = super().mixed(num_decodes, context, windowed, chunks, num_sampled)
        tokens, window = num_decodes + sum(new for new, _ in chunks), self.sliding_window
        computed = [old for _, old in chunks]
        seen = computed if window is None else [min(old, window) for old in computed]
        prefix = self._read_bytes(sum(computed), 0 if window is None else sum(seen))
        read = self._read_bytes(context, windowed) if num_decodes else 0.0
        return self._together(Line(gpu, 0.0, FOREVER), num_decodes, tokens, read, 0.0, prefix).first

    def _read_bytes(self, context: int, windowed: int) -> float:
        return self._kv[0] * context + self._kv[1] * windowed

    def _together(  # noqa: PLR0917 - bytes of a step
        self, gpu: Line, num_decodes: int, tokens: int, read: float, more: float, prefix: float
    ) -> Line:
        """The step from the GPU's part. read: bytes of KV its decodes read, ``more`` of them every step; prefix: those
        of chunks."""
        o, link = self._offload, self._link
        parts = [gpu]
        copied = o.kv_disk + (o.kv_host if o.attention == "gpu" else 0.0)
        fetched = o.streamed * self._weights + copied * read + (o.kv_host + o.kv_disk) * prefix
        if fetched:
            parts.append(Line(fetched / link, copied * more / link, FOREVER))
        stored = tokens * self._stored
        if o.kv_host or o.kv_disk:
            parts.append(Line((o.kv_host + o.kv_disk) * stored / link, 0.0, FOREVER))
        if o.weights_disk or o.kv_disk:
            first = (o.weights_disk * self._weights + o.kv_disk * (read + prefix)) / self._disk_read
            parts.append(Line(first, o.kv_disk * more / self._disk_read, FOREVER))
            parts.append(Line(o.kv_disk * stored / self._disk_write, 0.0, FOREVER))
        if o.on_cpu:
            share = o.by_cpu(tokens, self._on_cpu)
            moved, flops = share * self._shared_bytes, share * tokens * self._flops_per_token
            work = max(moved / self._cpu_bandwidth, flops / self._cpu_flops)
            if o.overlap:  # with the GPU's part of the same matrices: what is over comes on top of the GPU's step
                gpu = gpu._replace(first=gpu.first + max(work - self._beside_cpu[tokens], 0.0))
                parts[0] = gpu
            else:
                parts.append(Line(work, 0.0, FOREVER))
        if o.kv_host and o.attention != "gpu" and num_decodes:
            rate = o.kv_host * PASSES[o.attention] / self._cpu_bandwidth
            parts[0] = _sum([gpu, Line(rate * read, rate * more, FOREVER)])
        return slowest(parts) if o.overlap else _sum(parts)


def balanced_cpu_share(host: Host, gpu: Gpu, ranks: int) -> float:
    """Share of weights at which the CPU's products with a vector take as long as copying the others (HeteGen, 3.2)."""
    cpu = host.memory_bandwidth * CPU_EFFICIENCY / ranks
    return cpu / (cpu + link_bandwidth(gpu, host))


def link_bandwidth(gpu: Gpu, host: Host | None) -> float:
    """Bytes/s that copies between the two get: of the card's lanes, or of the slot it sits in."""
    lanes = gpu.host_bandwidth if host is None else min(gpu.host_bandwidth, host.pcie)
    return lanes * HOST_EFFICIENCY


def _part(curve: Curve, share: float) -> Curve:
    """Seconds over a share of the keys."""
    if share <= 0.0:
        return Curve((curve.at(0.0),), (0.0,))
    return Curve(curve.base, tuple(s * share for s in curve.slope), tuple(k / share for k in curve.knots))


def _sum(lines: Sequence[Line]) -> Line:
    return Line(
        sum(line.first for line in lines),
        sum(line.increment for line in lines),
        min(line.valid_steps for line in lines),
    )
