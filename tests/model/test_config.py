"""Reading Hugging Face configs: published totals come out, and what is not understood is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from simulator.core.errors import ModelError
from simulator.model.architecture import Attention, LatentAttention, LinearAttention
from simulator.model.catalogue import model, models
from simulator.model.config import from_config, load_config
from simulator.model.formats import kv_element_bytes, weight_format
from simulator.model.weights import layer_linears, local_kv_heads, parameters, vocab_rows

CONFIGS = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "model_configs"
real_configs = pytest.mark.skipif(not CONFIGS.is_dir(), reason="reference configs are not in this checkout")

LLAMA = {
    "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 2,
    "intermediate_size": 128, "vocab_size": 1000, "max_position_embeddings": 512,
}  # fmt: skip

# Totals as the model cards or papers print them (billions); active counts exclude the embedding look-up.
PUBLISHED = [
    ("llama-3.1-8b", 8.03, None),
    ("llama-3.1-70b", 70.6, None),
    ("llama-3.1-405b", 405.9, None),
    ("llama-2-7b", 6.74, None),
    ("llama-2-13b", 13.02, None),
    ("llama-2-70b", 68.98, None),
    ("mistral-7b-v0.1", 7.24, None),
    ("mixtral-8x7b", 46.7, 12.9),
    ("qwen2.5-1.5b", 1.54, None),
    ("qwen2.5-3b", 3.09, None),
    ("qwen3-0.6b", 0.6, None),
    ("qwen3-8b", 8.19, None),
    ("qwen3-32b", 32.8, None),
    ("qwen3-30b-a3b", 30.5, 3.3),
    ("qwen3-235b-a22b", 235.0, 22.0),
    ("gpt-oss-20b", 20.9, 3.6),
    ("gpt-oss-120b", 116.8, 5.13),
    ("deepseek-v3", 671.0, 37.0),
    ("minimax-m2.5", 229.0, 10.0),
    ("opt-13b", 12.85, None),
    ("opt-66b", 65.7, None),
    ("opt-175b", 175.0, None),
]


@pytest.mark.parametrize(("name", "billions", "active"), PUBLISHED)
def test_parameter_counts_are_those_published(name: str, billions: float, active: float | None) -> None:
    count = parameters(model(name))
    assert count.total / 1e9 == pytest.approx(billions, rel=0.007)
    if active is not None:
        # Publishers differ in whether the input embedding counts: the truth lies between.
        assert count.active <= active * 1e9 * 1.05
        assert count.active + count.embedding >= active * 1e9 * 0.97


def test_llama_8b_is_exact_to_the_parameter() -> None:
    assert parameters(model("meta-llama/Llama-3.1-8B")).total == 8_030_261_248
    assert parameters(model("Qwen/Qwen3-0.6B")).total == 596_049_920


@real_configs
@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.json")) if CONFIGS.is_dir() else [], ids=lambda p: p.stem)
def test_every_real_config_is_read_and_can_be_cut_in_eight(file: Path) -> None:
    found = load_config(file)
    assert found.num_layers == len(found.layers) > 0
    tp = 2 if "gemma" in file.stem else 8
    for layer in set(found.layers):
        whole, slices = layer_linears(found, layer), layer_linears(found, layer, tp)
        for one, cut in zip(whole, slices, strict=True):
            assert cut.parameters <= one.parameters
            assert cut.parameters * tp >= one.parameters


@real_configs
def test_the_catalogue_agrees_with_the_real_configs() -> None:
    pairs = 0
    for file in CONFIGS.glob("*.json"):
        name = file.stem.replace("--", "/").replace("Meta-Llama", "Llama")
        if name not in models():
            continue
        real, ours = load_config(file), models()[name]
        assert (real.layers, real.hidden_size, real.vocab_size, real.max_model_len) == (
            ours.layers, ours.hidden_size, ours.vocab_size, ours.max_model_len,
        ), name  # fmt: skip
        assert real.tie_word_embeddings == ours.tie_word_embeddings
        if "nvidia" not in name:  # its quantisation is in another file
            assert real.quantization == ours.quantization, name
        pairs += 1
    assert pairs >= 14


@real_configs
def test_hybrid_models_keep_the_order_of_their_layers() -> None:
    qwen = load_config(CONFIGS / "Qwen--Qwen3.5-397B-A17B.json")
    kinds = [type(x.attention) for x in qwen.layers[:4]]
    assert kinds == [LinearAttention, LinearAttention, LinearAttention, Attention]
    assert parameters(qwen).total / 1e9 == pytest.approx(397, rel=0.005)
    gemma = load_config(CONFIGS / "google--gemma-4-26B-A4B.json")
    windows = [x.attention.sliding_window for x in gemma.layers[:6]]
    assert windows == [1024] * 5 + [None]
    assert gemma.sliding_window == 1024


def test_latent_attention_caches_one_vector() -> None:
    attention = model("deepseek-r1").layers[0].attention
    assert isinstance(attention, LatentAttention)
    assert attention.latent_dim == 576


def test_names_are_forgiving_and_errors_helpful(tmp_path: Path) -> None:
    assert model("Meta-Llama-3.1-8B-Instruct") is model("llama-3.1-8b")
    assert model("gpt_oss_120b").name == "openai/gpt-oss-120b"
    assert model("Llama-3.1-70B-Instruct-FP8").quantization is not None
    assert model("Llama-3.1-70B-Instruct").quantization is None
    with pytest.raises(ModelError, match=r"Did you mean 'Llama-3.1-8B'"):
        model("llama-3.1-9b")
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA))
    assert model(folder).name == "tiny"
    with pytest.raises(ModelError, match=r"cannot read the model config"):
        model(tmp_path / "absent.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ModelError, match="not JSON"):
        model(tmp_path / "bad.json")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"model_type": "jamba"}, "state-space"),
        ({"model_type": "deepseek_v32"}, "sparse attention"),
        ({"vocab_size": None}, "vocab_size is missing"),
        ({"hidden_size": "wide"}, "hidden_size is 'wide'"),
        ({"layer_types": ["full_attention", "chunked_attention"]}, "chunked_attention"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "bitsandbytes"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 3}}, "3-bit"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(change: dict[str, object], complaint: str) -> None:
    with pytest.raises(ModelError, match=complaint):
        from_config({**LLAMA, **change}, "odd")


@pytest.mark.parametrize("key", ["num_local_experts", "num_experts", "n_routed_experts"])
def test_experts_under_each_of_their_names(key: str) -> None:
    moe = from_config({**LLAMA, "model_type": "mixtral", key: 4, "num_experts_per_tok": 2}, "moe").layers[0].moe
    assert moe is not None
    assert (moe.num_experts, moe.top_k) == (4, 2)


def test_gpt2_names_and_quantised_configs() -> None:
    gpt2 = from_config(
        {"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50257, "n_positions": 1024},
        "gpt2",
    )
    assert parameters(gpt2).total == 124_439_808  # GPT-2 small, as PyTorch counts it
    awq = from_config({**LLAMA, "quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 128}}, "awq")
    assert awq.quantization is not None
    assert awq.quantization.format == "int4"


def test_tensor_parallel_beyond_the_kv_heads_replicates_them() -> None:
    assert [local_kv_heads(8, tp) for tp in (1, 2, 8, 16)] == [8, 4, 1, 1]
    with pytest.raises(ModelError, match="multiple"):
        local_kv_heads(8, 12)
    tiny = from_config(LLAMA, "tiny")
    (qkv, *_) = layer_linears(tiny, tiny.layers[0], 4)
    assert qkv.out_features == (2 + 2 * 1) * 8  # two query heads, one copied KV head
    with pytest.raises(ModelError, match="not divisible"):
        layer_linears(tiny, tiny.layers[0], 3)
    assert vocab_rows(1000, 4) == 256  # padded to 1024


def test_formats_carry_their_scales() -> None:
    assert weight_format("bf16").bytes_per_weight(4096) == 2.0
    assert weight_format("mxfp4").bytes_per_weight(4096) == 0.5 + 1 / 32
    assert weight_format("nvfp4").bytes_per_weight(4096) == 0.5 + 1 / 16
    assert weight_format("awq").bytes_per_weight(4096) == pytest.approx(0.5 + 2.5 / 128)
    assert kv_element_bytes("fp8_e4m3") == (1.0, 0.0)
    with pytest.raises(ModelError, match="int3"):
        weight_format("int3")
    with pytest.raises(ModelError, match="kv_cache_dtype"):
        kv_element_bytes("fp2")
