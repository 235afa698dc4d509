"""Memory plans: vLLM's arithmetic, sums that close, and refusals that say what would help."""

from __future__ import annotations

import re

import pytest

from simulator.core.errors import HardwareError, ModelError
from simulator.cost.kv_layout import kv_layout
from simulator.cost.memory import kv_bytes_per_token, memory_plan
from simulator.cost.rows import fit_rows, gpu_rows, model_rows
from simulator.hardware.gpu import GIB, gpu
from simulator.model.catalogue import model
from simulator.model.config import from_config


def test_kv_bytes_per_token_by_attention_kind() -> None:
    assert kv_bytes_per_token(model("llama-3.1-8b")) == 2 * 32 * 8 * 128 * 2
    assert kv_bytes_per_token(model("llama-3.1-8b"), kv_cache_dtype="fp8") == 32 * 8 * 128 * 2
    assert kv_bytes_per_token(model("llama-3.1-8b"), kv_cache_dtype="int8") == 2 * 32 * 8 * (128 + 4)
    assert kv_bytes_per_token(model("llama-3.1-8b"), kv_cache_dtype="int4") == 2 * 32 * 8 * (64 + 4)
    assert kv_bytes_per_token(model("llama-3.1-8b"), tp=16) == 2 * 32 * 1 * 128 * 2  # heads are replicated
    assert kv_bytes_per_token(model("deepseek-v3"), tp=8) == 61 * 576 * 2  # so is the latent
    assert kv_bytes_per_token(model("opt-13b")) == 819_200  # the 800 KB of the PagedAttention paper, section 3


def test_the_terms_sum_to_the_gpu() -> None:
    for name, card, tp in (("llama-3.1-8b", "h100", 1), ("llama-3.1-70b", "h100", 4), ("gpt-oss-120b", "h200", 1)):
        plan = memory_plan(model(name), gpu(card), tp=tp)
        assert sum(size for _, size in plan.terms) == plan.total_bytes
        assert all(size >= 0 for _, size in plan.terms)
        assert plan.kv_cache_bytes == plan.num_gpu_blocks * plan.block_bytes
        assert plan.kv_tokens == int(plan.max_concurrency * plan.max_model_len)


def test_llama_8b_on_an_h100_leaves_what_start_up_logs_show() -> None:
    plan = memory_plan(model("llama-3.1-8b"), gpu("h100"), gpu_memory_utilization=0.9, max_num_seqs=256)
    assert plan.weight_bytes / GIB == pytest.approx(14.96, abs=0.05)  # "Model loading took 14.99 GiB"
    assert 53 < plan.kv_cache_bytes / GIB < 56
    assert plan.block_bytes == 16 * 131072


def test_sharding_divides_weights_and_pipeline_divides_layers() -> None:
    one = memory_plan(model("llama-3.1-8b"), gpu("h100"))
    four = memory_plan(model("llama-3.1-8b"), gpu("h100"), tp=4)
    assert four.weight_bytes == pytest.approx(one.weight_bytes / 4, rel=0.01)
    assert four.block_bytes == one.block_bytes / 4
    staged = memory_plan(model("llama-3.1-8b"), gpu("h100"), pp=4)
    assert staged.block_bytes == one.block_bytes / 4
    assert staged.weight_bytes < 0.35 * one.weight_bytes  # a quarter of the layers, and an embedding or lm_head


def test_quantised_weights() -> None:
    llama, h200 = model("llama-3.1-70b"), gpu("h200")
    sizes = {q: memory_plan(llama, h200, tp=2, quantization=q).weight_bytes for q in ("bf16", "fp8", "int4", "nvfp4")}
    assert sizes["fp8"] / sizes["bf16"] == pytest.approx(0.515, abs=0.01)  # embeddings stay wide
    assert sizes["int4"] < sizes["nvfp4"] < 0.31 * sizes["bf16"]
    gpt = memory_plan(model("gpt-oss-120b"), gpu("h200"))
    assert gpt.weight_bytes / 1e9 == pytest.approx(65.2, abs=0.5)  # the checkpoint's 60.8 GiB


def test_sliding_window_layers_share_the_pool() -> None:
    gpt = model("gpt-oss-120b")
    plan = memory_plan(gpt, gpu("h100"), max_model_len=100_000)
    kinds = [(g.kind, len(g.layers), g.block_size) for g in plan.layout.groups]
    assert sorted(kinds) == [("full_attention", 18, 16), ("sliding_attention", 18, 16)]
    assert plan.block_bytes == 18 * 16 * 2 * 8 * 64 * 2
    full, sliding = 6250, -(-(127 + 2 * 8192) // 16) + 1
    assert plan.max_concurrency == pytest.approx(plan.num_gpu_blocks / (full + sliding))


def test_unlike_pages_are_made_equal() -> None:
    """Five sliding layers to one global one with half the bytes per token: its blocks hold twice the tokens."""
    base = {
        "model_type": "gemma4_text", "hidden_size": 256, "num_hidden_layers": 12, "num_attention_heads": 4,
        "num_key_value_heads": 4, "head_dim": 64, "num_global_key_value_heads": 1, "global_head_dim": 128,
        "intermediate_size": 512, "vocab_size": 1024, "sliding_window": 128,
        "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 2,
    }  # fmt: skip
    layout = kv_layout(from_config(base, "tiny"), 1, "bfloat16", 16, 2.0)
    assert len(layout.groups) == 6
    assert {(g.kind, g.block_size) for g in layout.groups} == {("sliding_attention", 16), ("full_attention", 32)}
    assert set(layout.page_bytes) == {16 * 2 * 4 * 64 * 2}
    held = sorted(i for g in layout.groups for i in g.layers)
    assert held == list(range(12))


def test_linear_attention_states_set_the_block() -> None:
    hybrid = from_config(
        {
            "model_type": "qwen3_next", "hidden_size": 2048, "num_hidden_layers": 8, "num_attention_heads": 16,
            "num_key_value_heads": 2, "head_dim": 256, "intermediate_size": 5120, "vocab_size": 151936,
            "full_attention_interval": 4, "linear_num_key_heads": 16, "linear_num_value_heads": 32,
            "linear_key_head_dim": 128, "linear_value_head_dim": 128, "linear_conv_kernel_dim": 4,
            "max_position_embeddings": 8192,
        },
        "hybrid",
    )  # fmt: skip
    plan = memory_plan(hybrid, gpu("l4"))
    state = 32 * 128 * 128 * 4 + (2 * 16 * 128 + 32 * 128) * 3 * 2
    assert plan.block_size * 2048 >= state > (plan.block_size - 16) * 2048
    assert plan.layout.blocks_per_request(8192, 0) == 3 + -(-8192 // plan.block_size)


def test_too_small_a_gpu_says_by_how_much_and_what_helps() -> None:
    with pytest.raises(HardwareError, match=r"does not fit 1 x H100-SXM.*62\.. GiB per GPU") as caught:
        memory_plan(model("llama-3.1-70b"), gpu("h100"))
    assert caught.value.remedy is not None
    assert "tensor_parallel_size: 4" in caught.value.remedy
    assert memory_plan(model("llama-3.1-70b"), gpu("h100"), tp=4).num_gpu_blocks > 0  # the remedy works
    with pytest.raises(HardwareError) as caught:
        memory_plan(model("llama-3.1-405b"), gpu("h100"), tp=8)
    assert caught.value.remedy is not None
    assert "quantization: fp8" in caught.value.remedy
    assert memory_plan(model("llama-3.1-405b"), gpu("h100"), tp=8, quantization="fp8").num_gpu_blocks > 0


def test_too_long_a_context_names_the_longest_that_fits() -> None:
    with pytest.raises(HardwareError, match="131072 tokens needs 8192 KV blocks") as caught:
        memory_plan(model("llama-3.1-8b"), gpu("a10g"))
    assert caught.value.remedy is not None
    assert re.fullmatch(r"It fits with max_model_len: \d+ or .*\.", caught.value.remedy)
    longest = int(caught.value.remedy.split("max_model_len: ")[1].split(" or ")[0])
    assert memory_plan(model("llama-3.1-8b"), gpu("a10g"), max_model_len=longest).max_concurrency >= 1
    with pytest.raises(HardwareError):
        memory_plan(model("llama-3.1-8b"), gpu("a10g"), max_model_len=longest + 16)


def test_the_override_replaces_the_blocks_and_is_checked() -> None:
    plan = memory_plan(model("llama-3.1-8b"), gpu("h100"), num_gpu_blocks_override=9000)
    assert plan.num_gpu_blocks == 9000
    assert sum(size for _, size in plan.terms) == plan.total_bytes
    with pytest.raises(
        HardwareError, match=r"num_gpu_blocks_override: one request.*8192 KV blocks, 8191 are"
    ) as caught:
        memory_plan(model("llama-3.1-8b"), gpu("h100"), num_gpu_blocks_override=8192)  # the null block is missing
    assert "larger num_gpu_blocks_override" in str(caught.value)
    with pytest.raises(HardwareError, match=r"exceed the 79\.1 GiB of H100-SXM"):
        memory_plan(model("llama-3.1-8b"), gpu("h100"), num_gpu_blocks_override=40_000)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"gpu_memory_utilization": 1.5}, "gpu_memory_utilization is 1.5"),
        ({"block_size": 0}, "must be positive"),
        ({"max_model_len": 200_000}, "exceeds the positions"),
        ({"tp": 3}, "not divisible"),
    ],
)
def test_arguments_out_of_range(arguments: dict[str, float], complaint: str) -> None:
    with pytest.raises((HardwareError, ModelError), match=complaint):
        memory_plan(model("llama-3.1-8b"), gpu("h100"), **arguments)  # type: ignore[arg-type]


def test_rows_for_the_command_line() -> None:
    rows = fit_rows(model("llama-3.1-8b"), [gpu("h100"), gpu("l4")], max_model_len=32768)
    by_place = {(r["gpu"], r["tensor_parallel_size"]): r for r in rows}
    assert by_place["H100-SXM", 1]["fits"] == "yes"
    assert by_place["L4", 1]["fits"] == "yes"
    assert by_place["L4", 1]["price_per_hour"] == gpu("l4").price_per_hour
    big = fit_rows(model("deepseek-v3"), [gpu("l4")])
    assert all(r["fits"] == "no" and r["why_not"] for r in big)
    assert {r["model"] for r in model_rows()} >= {"openai/gpt-oss-120b", "facebook/opt-175b"}
    assert any(r["attention"] == "MLA 128 heads, latent 576" for r in model_rows())
    assert len(gpu_rows()) >= 19
