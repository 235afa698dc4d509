"""What decoding over a compressed KV cache takes, from what the attention kernel takes over so many keys."""

from __future__ import annotations

from simulator.cost.operators import Curve, Operators
from simulator.cost.shapes import AttentionShape, read_per_context, residual_keys

GB = 1e9


def decode_curve(operators: Operators, shape: AttentionShape, num_decodes: int) -> Curve:
    """Seconds of one layer over the sum of contexts of ``num_decodes`` sequences, as ``Operators.decode_attention``.

    The kernel runs over the keys that are read, at the bytes they are stored in. Dequantising adds its instructions on
    the ordinary cores, one per core and clock (half of the FLOP/s of the data sheet, which counts a multiply-add as
    two), each kernel beside attention its launch, and what is copied its reading and writing.
    """
    curve = operators.decode_attention(shape, num_decodes)
    kv = shape.kv
    if kv is None:
        return curve
    share, fixed = read_per_context(shape), num_decodes * residual_keys(shape)
    elements = 2.0 * shape.kv_heads * shape.head_dim
    ordinary = operators.gpu.peak_flops.get("fp32", operators.gpu.peak("bf16")[1]) / 2.0
    extra = kv.keep * kv.read * elements * kv.dequant_ops / ordinary
    launch = operators.elementwise(0.0, 1).seconds
    beside = kv.kernels * launch
    per_byte = (operators.elementwise(GB, 1).seconds - launch) / GB
    extra += kv.rewrite * kv.keep * kv.stored_layers * 2.0 * shape.bytes_per_context * per_byte
    return Curve(
        tuple(base + slope * fixed + beside for base, slope in zip(curve.base, curve.slope, strict=True)),
        tuple(slope * share + extra for slope in curve.slope),
        tuple((knot - fixed) / share for knot in curve.knots),
    )
