"""``Operators`` of a measured GPU: a calibration behind the questions that a step asks.

Tables are built with numpy once per shape; what runs per step is plain Python. Whatever a table says never falls as
tokens, contexts or the batch grow, and never beats the GPU's peaks.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence

import numpy as np

from simulator.cost.calibration import Calibration, Fit
from simulator.cost.context_parallel import ContextParallelCost
from simulator.cost.contextual_sparsity import SparseCost
from simulator.cost.correction import Floats, monotone
from simulator.cost.laws import (
    Points,
    decode_points,
    expert_points,
    gemm_points,
    latent_decode_points,
    latent_prefill_points,
    prefill_points,
)
from simulator.cost.offload import OffloadedCost
from simulator.cost.operators import Bound, ChunkSeconds, Curve, Operators, Price
from simulator.cost.other_kernels import KernelSpeed, OtherKernels
from simulator.cost.overhead import EngineOverhead
from simulator.cost.placement import Deployment
from simulator.cost.roofline import Roofline
from simulator.cost.shapes import AttentionShape, prefill_physics
from simulator.cost.step import OperatorCost
from simulator.hardware.gpu import Gpu, Link
from simulator.model.architecture import Model
from simulator.model.formats import WeightFormat

# Token counts with a price of their own: as many as OperatorCost asks for, and a few large ones.
EXACT = 512
TOKENS = np.array(
    [*range(1, EXACT + 1), *range(EXACT + 128, 32768 + 1, 128), *(2**j for j in range(16, 21))], dtype=float
)
BATCHES = np.unique(np.rint([*range(1, 33), *(2 ** (j / 4) for j in range(20, 53))]))  # to 8192 sequences
CONTEXTS = np.unique(np.rint([1, 8, *(2 ** (j / 2) for j in range(8, 41))]))  # keys per sequence, to a million
# Chunks: quarter octaves. Between knots seconds are straight lines, which leaves a parabola's 0.4 % at most.
NEW = np.unique(np.rint([*range(1, 9), *(2 ** (j / 4) for j in range(13, 73))]))  # to 262,144 tokens
COMPUTED = np.unique(np.rint([0, *(2 ** (j / 4) for j in range(16, 81))]))  # to a million
FEW_AND_MANY, SLOWER = np.array([8.0, 1024.0]), 1.3  # tokens at which formats are compared; worth a word
DEFAULT_ROUTING = 1.01  # exponent of the experts' popularity, see docs/calibration.md


class Calibrated:
    """Prices operators from a calibration; what it does not hold falls back to the data-sheet roofline."""

    def __init__(self, gpu: Gpu, calibration: Calibration, routing: float = DEFAULT_ROUTING) -> None:
        self.gpu, self.calibration = gpu, calibration
        self.notes: dict[str, str] = {}  # said once per operator: what is extrapolated, borrowed or not measured
        self._roofline = Roofline(gpu)
        self._routing = routing
        self._tables: dict[tuple[object, ...], Floats] = {}
        self._heads = sorted({int(f.key.split("/")[0]) for f in self._of("decode_attention")})

    def _of(self, operator: str) -> list[Fit]:
        return [f for f in self.calibration.fits.values() if f.operator == operator]

    def _said(self, operator: str, what: str) -> None:
        self.notes.setdefault(operator, what)

    # -- matrix products ----------------------------------------------------------------------------------------

    def _fit_of(self, operator: str, fmt: WeightFormat) -> tuple[Fit | None, str]:
        """(fit, number format of the product): the format's own kernels, else a near relation's, else 16-bit ones."""
        number = self.gpu.peak(fmt.math)[0]
        fits = self.calibration.fits
        for key in FORMAT_KEYS.get(fmt.name, (fmt.name,)):
            fit = fits.get((operator, key))
            if fit is not None and (key == FORMAT_KEYS.get(fmt.name, (fmt.name,))[0] or number == fit.number):
                return fit, fit.number
        fit = fits.get((operator, "bf16"))
        if fit is not None:
            self._said(
                f"{operator} {fmt.name}", "not measured: efficiency of the 16-bit kernels, bytes of its own format"
            )
        return fit, number

    def gemm(self, m: int, n: int, k: int, fmt: WeightFormat, activation_bytes: float) -> Price:
        """As fitted; a table per matrix."""
        physical = self._roofline.gemm(m, n, k, fmt, activation_bytes)
        fit, number = self._fit_of("gemm", fmt)
        if fit is None:
            return physical

        def points(tokens: Floats) -> Points:
            return gemm_points(
                tokens, np.full_like(tokens, n), np.full_like(tokens, k), fmt.bytes_per_weight(k), activation_bytes
            )

        table = self._by_tokens(("gemm", n, k, fmt.name, activation_bytes), fit, number, points)
        return _priced(physical, _at(table, m), fit.constants["launch_s"])

    def experts(  # noqa: PLR0917 - the shape of the operator
        self, tokens: int, visits: float, num_experts: int, shapes: Sequence[tuple[int, int]], fmt: WeightFormat,
        activation_bytes: float, all_visits: float | None = None,
    ) -> Price:  # fmt: skip
        """As fitted, for routing as uneven as ``routing`` says."""
        physical = self._roofline.experts(tokens, visits, num_experts, shapes, fmt, activation_bytes)
        fit, number = self._fit_of("experts", fmt)
        if fit is None or len(shapes) != 2:
            return physical
        (wide, hidden), (_, inter) = shapes
        spread = 1.0 if all_visits is None else max(all_visits / visits, 1.0)

        def points(counts: Floats, weight_bytes: float = fmt.bytes_per_weight(hidden)) -> Points:
            same = np.ones_like(counts)
            rows = np.maximum(counts * visits, 1.0)
            return expert_points(
                rows=rows, all_rows=rows * spread, experts=same * num_experts, routing=same * self._routing,
                hidden=same * hidden, inter=same * inter, gated=same * (wide > inter), weight_bytes=weight_bytes,
            )  # fmt: skip

        key = ("experts", visits, num_experts, spread, *shapes, fmt.name)
        if key not in self._tables:
            self._check_narrow(fit, points(FEW_AND_MANY), points(FEW_AND_MANY, 2.0))
        table = self._by_tokens(key, fit, number, points)
        return _priced(physical, _at(table, tokens), fit.constants["launch_s"])

    def _by_tokens(self, key: tuple[object, ...], fit: Fit, number: str, points: Callable[[Floats], Points]) -> Floats:
        table = self._tables.get(key)
        if table is None:
            asked = points(TOKENS)
            self._check_extent(fit, points(np.array([8.0, 1024.0])))
            table = monotone(fit.seconds(self.calibration.ceilings, asked, number))
            self._tables[key] = table
        return table

    def _check_narrow(self, fit: Fit, points: Points, wide_points: Points) -> None:
        """Experts slower in a narrower format than in 16 bits: so they were measured, and nobody would guess."""
        wide = self.calibration.fits.get((fit.operator, "bf16"))
        if wide is None or fit.number == wide.number:
            return
        c = self.calibration.ceilings
        times = (fit.seconds(c, points) / wide.seconds(c, wide_points)).min()
        if times > SLOWER:
            self._said(f"{fit.operator} {fit.key}", f"measured at {times:.1f} times the 16-bit kernels' time or more")

    def _check_extent(self, fit: Fit, points: Points) -> None:
        beyond = fit.outside(points)
        if beyond:
            self._said(
                f"{fit.operator} {fit.key} extrapolated",
                f"{', '.join(beyond)} beyond what was measured: the last known efficiency holds",
            )

    # -- elementwise and communication --------------------------------------------------------------------------

    def elementwise(self, size_bytes: float, kernels: int) -> Price:
        stream = self.calibration.stream
        if stream is None:
            return self._roofline.elementwise(size_bytes, kernels)
        seconds = stream.seconds(size_bytes, kernels, self.calibration.ceilings.bandwidth)
        return Price(seconds, 0.0, size_bytes, "latency" if 2.0 * stream.launch_s * kernels > seconds else "memory")

    def all_reduce(self, size_bytes: float, size: int) -> Price:
        return self._collective("all_reduce", size_bytes, size, self._roofline.all_reduce(size_bytes, size))

    def all_gather(self, size_bytes: float, size: int) -> Price:
        return self._collective("all_gather", size_bytes, size, self._roofline.all_gather(size_bytes, size))

    def _collective(self, operator: str, size_bytes: float, ranks: int, physical: Price) -> Price:
        measured = {c.ranks: c for c in self.calibration.collectives.values() if c.operator == operator}
        if not measured or ranks > self.gpu.gpus_per_node:
            return physical
        link = self.gpu.group_link(ranks)
        if ranks in measured:
            return physical._replace(seconds=max(measured[ranks].at(size_bytes), physical.bytes / link.bandwidth))
        # More ranks than asked for are the safe side; from fewer, the bytes each rank sends tell how much is missing.
        near = measured[min((r for r in measured if r > ranks), default=max(measured))]
        scale = max(1.0, (1.0 - 1.0 / ranks) / (1.0 - 1.0 / near.ranks))
        self._said(f"{operator} over {ranks} ranks", f"not measured: from {near.ranks} ranks")
        return physical._replace(seconds=max(near.at(size_bytes) * scale, physical.bytes / link.bandwidth))

    def send(self, size_bytes: float, link: Link) -> Price:
        return self._roofline.send(size_bytes, link)

    # -- attention ----------------------------------------------------------------------------------------------

    def _attention_fit(self, operator: str, shape: AttentionShape) -> tuple[Fit, float] | None:
        """(fit, bytes per cached element): kernels of the nearest head dimension and of the KV format's width."""
        fits = self.calibration.fits
        if shape.kind == "latent":
            width = shape.flops_per_context / (4.0 * shape.heads) + 32.0  # elements cached per token
            element = shape.bytes_per_context / width
            latent = operator.replace("decode_attention", "latent_decode").replace(
                "prefill_attention", "latent_prefill"
            )
            for kv in _cached_as(element):
                if (latent, kv) in fits:
                    return fits[latent, kv], element
            return None
        if shape.kind != "softmax" or not self._heads:
            return None
        element = shape.bytes_per_context / (2.0 * shape.kv_heads * shape.head_dim)
        dim = min(self._heads, key=lambda d: abs(math.log(d / shape.head_dim)))
        formats = _cached_as(element)
        window = "/windowed" if shape.window and operator == "decode_attention" else ""
        for key in (f"{dim}/{kv}{w}" for w in (window, "") for kv in formats):
            fit = fits.get((operator, key))
            if fit is not None:
                if dim != shape.head_dim:
                    self._said(f"{operator} head_dim {shape.head_dim}", f"not measured: efficiency of head_dim {dim}")
                return fit, element
        return None

    def decode_attention(self, shape: AttentionShape, num_decodes: int) -> Curve:
        """Straight lines between knots of the mean context."""
        found = self._attention_fit("decode_attention", shape)
        if found is None:
            if shape.kind != "linear":
                self._said(f"{shape.kind} attention", "not measured: data-sheet roofline")
            return self._roofline.decode_attention(shape, num_decodes)
        key = ("decode", shape)
        table = self._tables.get(key)
        if table is None:
            table = self._tables[key] = self._decode_table(shape, *found)
        return _curve(_row(table, BATCHES, num_decodes), num_decodes)

    def _decode_table(self, shape: AttentionShape, fit: Fit, element: float) -> Floats:
        batch, context = (a.ravel() for a in np.meshgrid(BATCHES, CONTEXTS, indexing="ij"))
        same = np.ones_like(batch)
        if shape.kind == "latent":
            flops = batch * (context * shape.flops_per_context + shape.flops_per_sequence)
            size = batch * (context * shape.bytes_per_context + shape.bytes_per_sequence) + shape.weight_bytes
            points = latent_decode_points(batch, context, same * shape.heads, flops, size)
        else:
            points = decode_points(
                batch, context, same * shape.heads, same * shape.kv_heads, same * shape.head_dim, 0.0 * same, element
            )
        seconds = fit.seconds(self.calibration.ceilings, points).reshape(len(BATCHES), len(CONTEXTS))
        return monotone(monotone(seconds, 0), 1)

    def prefill_launch(self, shape: AttentionShape) -> float:
        table = self._prefill_table(shape)
        return self._roofline.prefill_launch(shape) if table is None else float(table[0, 0]) * 0.9

    def prefill_attention(self, shape: AttentionShape) -> ChunkSeconds:
        table = self._prefill_table(shape)
        if table is None:
            return self._roofline.prefill_attention(shape)
        launch = self.prefill_launch(shape)
        return _chunk(shape, (table - launch).tolist())

    def _prefill_table(self, shape: AttentionShape) -> Floats | None:
        key = ("prefill", shape)
        table = self._tables.get(key)
        found = self._attention_fit("prefill_attention", shape)
        if table is None and found is not None:
            new, computed = (a.ravel() for a in np.meshgrid(NEW, COMPUTED, indexing="ij"))
            points = _prefill_points(shape, new, computed, found[1])
            seconds = found[0].seconds(self.calibration.ceilings, points).reshape(len(NEW), len(COMPUTED))
            table = self._tables[key] = monotone(monotone(seconds, 0), 1)
        return table


def _cached_as(element: float) -> tuple[str, ...]:
    """Measured KV formats by bytes per element, nearest first."""
    if element > 3.0:
        return ("fp32", "bf16")
    return ("fp8", "bf16", "fp16") if element < 1.5 else ("bf16", "fp16")


def _prefill_points(shape: AttentionShape, new: Floats, computed: Floats, element: float) -> Points:
    same = np.ones_like(new)
    if shape.kind != "latent":
        return prefill_points(
            same, new, computed, same * shape.heads, same * shape.kv_heads, same * shape.head_dim,
            same * (shape.window or 0), element,
        )  # fmt: skip
    physics = [prefill_physics(shape, int(n), int(c)) for n, c in zip(new, computed, strict=True)]
    flops, size = (np.array(column) for column in zip(*physics, strict=True))
    size = size - shape.bytes_per_chunk
    per_pair = same * shape.flops_per_pair / shape.heads
    return latent_prefill_points(same, new, computed, same * shape.heads, flops, size, per_pair)


# The kernels that run each weight format, nearest first.
FORMAT_KEYS = {
    "float32": ("fp32",),
    "bfloat16": ("bf16", "fp16"),
    "float16": ("fp16", "bf16"),
    "fp8": ("fp8", "fp8_block"),
    "fp8_block": ("fp8_block", "fp8"),
    "int8": ("int8", "fp8"),
    "mxfp4": ("mxfp4",),
    "mxfp4_marlin": ("int4", "mxfp4"),
    "nvfp4": ("nvfp4",),
    "int4": ("int4",),
    "int4_g32": ("int4",),
}


def _priced(physical: Price, seconds: float, launch: float) -> Price:
    """The measured seconds with the physics' account; what binds: its launch, or what binds the roofline."""
    bound: Bound = physical.bound
    if bound == "latency" or seconds < 2.0 * launch:
        bound = "latency" if seconds < 2.0 * launch else "memory"
    return physical._replace(seconds=seconds, bound=bound)


def _at(table: Floats, tokens: int) -> float:
    """Seconds at a token count; past the table in proportion."""
    if tokens <= EXACT:
        return float(table[tokens - 1])
    if tokens > TOKENS[-1]:
        return float(table[-1] * tokens / TOKENS[-1])
    return float(np.interp(tokens, TOKENS, table))


def _row(table: Floats, axis: Floats, value: float) -> Floats:
    """A row of a table between its knots; past the last one in proportion."""
    if value >= axis[-1]:
        return np.asarray(table[-1] * (value / axis[-1]))
    i = max(int(np.searchsorted(axis, value, side="right")) - 1, 0)
    share = (value - axis[i]) / (axis[i + 1] - axis[i])
    return np.asarray((1.0 - share) * table[i] + share * table[i + 1])


def _curve(seconds: Floats, num_decodes: int) -> Curve:
    """Seconds at each mean context as straight lines in the sum of contexts; flat ends keep the outer slopes."""
    sums = CONTEXTS * num_decodes
    slope = np.diff(seconds) / np.diff(sums)
    base = seconds[:-1] - slope * sums[:-1]
    return Curve(tuple(base.tolist()), tuple(slope.tolist()), tuple(sums[1:-1].tolist()))


def _chunk(shape: AttentionShape, table: list[list[float]]) -> ChunkSeconds:
    """Bilinear in the table; past its end in proportion to the FLOPs."""
    new_knots: list[float] = NEW.tolist()
    computed_knots: list[float] = COMPUTED.tolist()
    last_new, last_computed = new_knots[-1], computed_knots[-1]
    rows = [(bisect_left(new_knots, n, 1, len(new_knots) - 1) - 1) for n in range(4097)]

    def seconds(new: int, computed: int) -> float:
        i = rows[new] if new <= 4096 else bisect_left(new_knots, new) - 1
        if new > last_new or computed > last_computed:
            edge = min(new, int(last_new)), min(computed, int(last_computed))
            return seconds(*edge) * prefill_physics(shape, new, computed)[0] / prefill_physics(shape, *edge)[0]
        low, high = table[i], table[i + 1]
        left = new_knots[i]
        u = (new - left) / (new_knots[i + 1] - left)
        if computed == 0:
            return low[0] + (high[0] - low[0]) * u
        j = bisect_left(computed_knots, computed) - 1
        left = computed_knots[j]
        v = (computed - left) / (computed_knots[j + 1] - left)
        a, b = low[j], high[j]
        a += (low[j + 1] - a) * v
        return a + (b + (high[j + 1] - b) * v - a) * u

    return seconds


def cost_model(
    model: Model, gpu: Gpu, calibration: Calibration | None, deployment: Deployment,
    overhead: EngineOverhead | None = None, speed: KernelSpeed | None = None,
) -> OperatorCost:  # fmt: skip
    """``StepCost`` of a model: from a calibration, or from the data sheet where there is none.

    speed: of other kernels than those; None: as they are.
    """
    operators: Operators = Roofline(gpu) if calibration is None else Calibrated(gpu, calibration)
    if speed is not None and not speed.as_measured:
        operators = OtherKernels(operators, speed)
    cut = deployment.prefill_context_parallel_size * deployment.decode_context_parallel_size > 1
    sparse = deployment.sparsity is not None
    kind = (
        OffloadedCost if deployment.offload is not None else ContextParallelCost if cut
        else SparseCost if sparse else OperatorCost
    )  # fmt: skip
    return kind(model, operators, deployment, overhead)
