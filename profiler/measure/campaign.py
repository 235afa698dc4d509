"""Campaign files: what to measure. YAML (where pyyaml is installed) or JSON; every field is checked first."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from profiler.measure.errors import CampaignError, nearest
from profiler.measure.models import DecoderShape, from_config, named

Check = Callable[[Any], str | None]  # what is wrong with a value, None: nothing


@dataclass(frozen=True, slots=True)
class Campaign:
    """``suites``: fields of each suite with defaults filled in, in the order they run."""

    name: str
    device: str  # cuda | cpu
    models: tuple[DecoderShape, ...]
    suites: Mapping[str, Mapping[str, Any]]
    timing: Mapping[str, float]
    rotate_bytes: int | None  # buffers together at least so large; None: twice the L2
    threads: int | None  # of torch, on the CPU
    clock: str  # wall | cpu (CPU seconds of this process: one core of a shared machine)
    seed: int
    sha256: str
    rounds: int = 1  # every point so many times, a whole round after the other

    def with_device(self, device: str) -> Campaign:
        return Campaign(**{**{f: getattr(self, f) for f in self.__slots__}, "device": device})


# -- checks of values -----------------------------------------------------------------------------------------------


def whole(low: int = 1, *, null: bool = False) -> Check:
    def check(value: Any) -> str | None:
        if value is None and null:
            return None
        good = isinstance(value, int) and not isinstance(value, bool) and value >= low
        return None if good else f"must be a whole number >= {low}{' or null' if null else ''}, not {value!r}"

    return check


def positive(value: Any) -> str | None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and value > 0
    return None if good else f"must be a positive number, not {value!r}"


def true_or_false(value: Any) -> str | None:
    return None if isinstance(value, bool) else f"must be true or false, not {value!r}"


def one_of(*names: str) -> Check:
    def check(value: Any) -> str | None:
        return None if value in names else f"{value!r} is unknown. {nearest(str(value), names)}"

    return check


def each(check: Check, length: int | None = None) -> Check:
    """A list, ``length`` long where given."""

    def listed(values: Any) -> str | None:
        if not isinstance(values, list) or not values or (length and len(values) != length):
            return f"must be a list{f' of {length}' if length else ''}, not {values!r}"
        return next((f"entry {i}: {bad}" for i, v in enumerate(values) if (bad := check(v))), None)

    return listed


def chunks(value: Any) -> str | None:
    """[[new, computed], ...], may be empty."""
    return None if value == [] else each(each(whole(0), 2))(value)


DTYPE = one_of("fp32", "bf16", "fp16", "fp8", "int8")
FLOAT = one_of("fp32", "bf16", "fp16")
TOKENS = [1, 8, 32, 64, 128, 256, 512, 1024, 2048, 4096]

# field: (check, default); a field without a default is required
FIELDS: Mapping[str, Mapping[str, tuple[Check, Any]]] = {
    "ceilings": {
        "dtypes": (each(DTYPE), ["bf16"]),
        "size": (whole(64), 8192),  # of the square product
        "copy_bytes": (whole(1 << 16), 1 << 30),
    },
    "gemm": {
        "dtypes": (each(DTYPE), ["bf16"]),
        "tokens": (each(whole()), TOKENS),
        "shapes": (lambda v: None if v == [] else each(each(whole(), 2))(v), []),  # [n, k], beside the models' own
        "models": (true_or_false, True),
        "unfused": (true_or_false, False),  # q, k, v, gate and up by themselves too, as eager model code runs them
    },
    "prefill_attention": {
        "dtypes": (each(FLOAT), ["bf16"]),
        "batches": (each(whole()), [1]),
        "new_tokens": (each(whole()), [128, 512, 2048, 8192]),
        "computed_tokens": (each(whole(0)), [0, 2048, 8192]),
        "windows": (each(whole(null=True)), [None]),
        "heads": (lambda v: None if v == [] else each(each(whole(), 3))(v), []),  # [heads, kv_heads, head_dim]
        "backends": (each(one_of("sdpa_flash", "sdpa_cudnn", "sdpa_math", "sdpa", "flex")), ["sdpa_flash"]),
        "max_pairs": (positive, 2e9),  # larger points (batch x new x span) are left out
    },
    "decode_attention": {
        "dtypes": (each(FLOAT), ["bf16"]),
        "batches": (each(whole()), [1, 8, 32, 128, 256]),
        "contexts": (each(whole()), [128, 1024, 4096, 16384]),
        "spreads": (each(one_of("equal", "skewed")), ["equal", "skewed"]),
        "windows": (each(whole(null=True)), [None]),
        "heads": (lambda v: None if v == [] else each(each(whole(), 3))(v), []),
        "block_size": (whole(), 16),
        "backends": (each(one_of("loop", "gather", "varlen_paged", "flex", "flashinfer")), ["varlen_paged", "gather"]),
        "max_tokens": (whole(), 2_000_000),  # larger points (batch x context) are left out
    },
    "packed_attention": {  # all sequences of a step in one masked product, as engines without a paged kernel run
        "dtypes": (each(FLOAT), ["bf16"]),
        "queries": (each(whole()), [1, 8, 64, 256]),
        "keys": (each(whole()), [64, 512, 4096, 16384]),
        "heads": (lambda v: None if v == [] else each(each(whole(), 3))(v), []),
        "max_pairs": (positive, 5e8),
    },
    "moe": {
        "dtypes": (each(FLOAT), ["bf16"]),
        "tokens": (each(whole()), TOKENS),
        "routing": (each(one_of("balanced", "uniform", "skewed")), ["balanced", "uniform", "skewed"]),
        "shapes": (lambda v: None if v == [] else each(each(whole(), 4))(v), []),  # [hidden, inter, experts, top_k]
        "backends": (each(one_of("grouped_mm", "loop")), ["grouped_mm", "loop"]),
    },
    "elementwise": {
        "dtypes": (each(FLOAT), ["bf16"]),
        "tokens": (each(whole()), [1, 16, 64, 256, 1024, 4096]),
        "kernels": (
            each(one_of("rms_norm", "add_rms_norm", "rope_and_cache", "silu_mul", "embedding", "sample_greedy",
                        "sample_top_p", "add_rms_norm_unfused", "rope_and_cache_unfused")),
            ["rms_norm", "add_rms_norm", "rope_and_cache", "silu_mul", "embedding", "sample_greedy"],
        ),
        "max_sampled": (whole(), 1024),  # rows of logits
    },
    "copies": {
        "sizes": (each(whole()), [4096, 65536, 1 << 20, 1 << 24, 1 << 28]),
        "directions": (each(one_of("h2d", "d2h", "d2d")), ["h2d", "d2h", "d2d"]),
    },
    "collectives": {
        "sizes": (each(whole()), [1 << 12, 1 << 16, 1 << 20, 1 << 24, 1 << 28]),
        "ops": (each(one_of("all_reduce", "all_gather", "reduce_scatter", "all_to_all")), ["all_reduce", "all_gather"]),
        "ranks": (each(whole(2)), [2, 4, 8]),
    },
    "layer": {
        "dtypes": (each(FLOAT), ["bf16"]),
        "decodes": (each(each(whole(0), 2)), [[1, 512], [32, 512], [128, 1024]]),  # [number, context of each]
        "chunks": (each(chunks), [[]]),
        "modes": (each(one_of("eager", "graph")), ["eager", "graph"]),
    },
    "step": {
        "dtypes": (each(FLOAT), ["bf16"]),
        "decodes": (each(each(whole(0), 2)), [[1, 512], [32, 512], [128, 1024]]),
        "chunks": (each(chunks), [[], [[512, 0]], [[2048, 0]]]),
        "modes": (each(one_of("eager", "graph")), ["eager", "graph"]),
        "layers": (whole(null=True), None),  # fewer than the model's, to save memory; null: all
    },
}  # fmt: skip

TOP: Mapping[str, tuple[Check, Any]] = {
    "name": (lambda v: None if isinstance(v, str) and v else f"must be a text, not {v!r}", None),
    "device": (one_of("cuda", "cpu"), "cuda"),
    "models": (lambda v: None if isinstance(v, list) else f"must be a list, not {v!r}", []),
    "suites": (lambda v: None if isinstance(v, dict) and v else "must name at least one suite", None),
    "timing": (lambda v: None if isinstance(v, dict) else f"must be a mapping, not {v!r}", {}),
    "rotate_bytes": (whole(0, null=True), None),
    "threads": (whole(null=True), None),
    "clock": (one_of("wall", "cpu"), "wall"),
    "seed": (whole(0), 0),
    "rounds": (whole(), 1),
}
TIMING: Mapping[str, tuple[Check, Any]] = {
    "warmup": (whole(0), 2), "min_repeats": (whole(2), 7), "max_repeats": (whole(2), 100), "target_s": (positive, 0.2),
}  # fmt: skip


# -- reading --------------------------------------------------------------------------------------------------------


Where = Callable[[str], str]


def load(path: Path) -> Campaign:
    """Reads and checks a campaign. Raises CampaignError with file, line and field."""
    data, where, sha256 = read_checked(path)
    return parse(data, where, sha256)


def read_checked(path: Path) -> tuple[Any, Where, str]:
    """(values, locator of fields, digest) of a YAML or JSON file. Raises CampaignError."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise CampaignError(f"cannot be read: {error.strerror}", where=str(path)) from None
    data, lines = _parse(text, path)

    def where(field: str) -> str:
        key = field
        while key and key not in lines:
            key = key.rpartition(".")[0]
        return f"{path}:{lines[key]}: {field}" if key in lines else f"{path}: {field}" if field else str(path)

    return data, where, hashlib.sha256(text.encode()).hexdigest()


def parse(data: Any, where: Callable[[str], str], sha256: str = "") -> Campaign:
    """From plain values. ``where(field)`` locates a field for errors."""
    top: dict[str, Any] = fields_of(data, TOP, "", where)
    timing = fields_of(top["timing"], TIMING, "timing", where)
    for name in top["suites"]:
        if name not in FIELDS:
            raise CampaignError(
                f"unknown suite {name!r}", where=where(f"suites.{name}"), remedy=nearest(str(name), FIELDS)
            )
    suites = {
        name: fields_of(fields or {}, FIELDS[name], f"suites.{name}", where) for name, fields in top["suites"].items()
    }
    return Campaign(
        name=top["name"],
        device=top["device"],
        models=tuple(model_of(m, i, where) for i, m in enumerate(top["models"])),
        suites=suites,
        timing=timing,
        rotate_bytes=top["rotate_bytes"],
        threads=top["threads"],
        clock=top["clock"],
        seed=top["seed"],
        sha256=sha256,
        rounds=top["rounds"],
    )


def fields_of(
    data: Any, known: Mapping[str, tuple[Check, Any]], path: str, where: Callable[[str], str]
) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise CampaignError(f"must be a mapping, not {data!r}", where=where(path))
    prefix = f"{path}." if path else ""
    for key in data:
        if key not in known:
            place = where(f"{prefix}{key}")
            raise CampaignError(f"unknown field {key!r}", where=place, remedy=nearest(str(key), known))
    found = {}
    for key, (check, default) in known.items():
        if key not in data and default is None and key in ("name", "suites"):
            raise CampaignError(f"field {key!r} is missing", where=where(path))
        value = data.get(key, default)
        bad = check(value) if key in data else None
        if bad:
            raise CampaignError(bad, where=where(f"{prefix}{key}"))
        found[key] = value
    return found


def model_of(entry: Any, index: int, where: Callable[[str], str]) -> DecoderShape:
    place = where(f"models.{index}")
    if isinstance(entry, str):
        return named(entry, place)
    if isinstance(entry, dict):
        return from_config(entry, str(entry.get("name", f"model-{index}")), place)
    raise CampaignError(f"must be a name or the fields of a config.json, not {entry!r}", where=place)


def _parse(text: str, path: Path) -> tuple[Any, dict[str, int]]:
    """The values, and the line of every field (JSON read without pyyaml has no lines)."""
    try:
        import yaml
    except ImportError:
        try:
            return json.loads(text), {}
        except ValueError as error:
            raise CampaignError(
                f"not JSON: {error}", where=str(path), remedy="Install pyyaml to read YAML, or write the file as JSON."
            ) from None
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        raise CampaignError(f"not YAML: {getattr(error, 'problem', error)}", where=place) from None
    lines: dict[str, int] = {}
    if node is not None:
        _lines(node, "", lines)
    return data, lines


def _lines(node: Any, path: str, lines: dict[str, int]) -> None:
    if node.id == "mapping":
        for key, child in node.value:
            name = f"{path}.{key.value}" if path else str(key.value)
            lines[name] = key.start_mark.line + 1
            _lines(child, name, lines)
    elif node.id == "sequence":
        for i, child in enumerate(node.value):
            lines[f"{path}.{i}"] = child.start_mark.line + 1
            _lines(child, f"{path}.{i}", lines)
