"""Who drafts: what ``engine.speculative_config`` builds."""

from __future__ import annotations

from simulator.core.errors import ScenarioError
from simulator.cost.memory import kv_bytes_per_token
from simulator.cost.placement import Deployment, place
from simulator.cost.speculative import Drafter, DraftModel, Lookup, MedusaHeads, head, within_step
from simulator.cost.step import OperatorCost
from simulator.model.catalogue import model
from simulator.model.config import load_config
from simulator.model.weights import layer_weight_bytes, vocab_rows
from simulator.scenario.load import at
from simulator.scenario.speculation import SpeculativeSpec


def build_drafter(config: SpeculativeSpec, target: OperatorCost) -> Drafter:
    """Raises UserErrors whose ``where`` names the field below ``speculative_config`` that is wrong."""
    per_level = -(-(config.tree_size or 1) // config.num_speculative_tokens)
    if config.method == "draft_model":
        return _draft_model(config, target, per_level)
    if config.method in {"eagle", "eagle3", "mtp"}:
        return head(target, quantized=config.method == "mtp", per_level=per_level, parallel=config.parallel_drafting)
    if config.method == "medusa":
        return MedusaHeads(target, config.num_speculative_tokens)
    return Lookup(config.draft_s)


def _draft_model(config: SpeculativeSpec, target: OperatorCost, per_level: int) -> DraftModel:
    where = "model" if config.config is None else "config"
    with at(where):
        small = model(str(config.model)) if config.config is None else load_config(config.config)
    own, ranks = target.deployment, config.draft_tensor_parallel_size or target.placed.tp
    if ranks not in {1, target.placed.tp}:
        raise ScenarioError(
            f"{ranks} is neither 1 nor the target's tensor_parallel_size of {target.placed.tp}.",
            where="draft_tensor_parallel_size",
        )
    if small.vocab_size != target.model.vocab_size and abs(small.vocab_size - target.model.vocab_size) > 1024:
        raise ScenarioError(
            f"{small.name} has {small.vocab_size} tokens in its vocabulary, {target.model.name} "
            f"{target.model.vocab_size}: its drafts cannot be verified.",
            where=where,
            remedy="Choose a draft model of the same family.",
        )
    deployment = Deployment(ranks, dtype=own.dtype, quantization=config.quantization, kv_cache_dtype=own.kv_cache_dtype)
    with at(where):
        placed = place(small, target.gpu, deployment)
        cost = OperatorCost(small, target.operators, deployment, within_step(target.overhead))
    weights = sum(layer_weight_bytes(small, x, placed.tp, placed.dtype, placed.quantization) for x in small.layers)
    tables = 1 if small.tie_word_embeddings else 2
    weights += tables * vocab_rows(small.vocab_size, placed.tp) * small.hidden_size * placed.dtype_bytes
    return DraftModel(
        cost, weight_bytes=round(weights), kv_bytes_per_token=kv_bytes_per_token(small, placed.tp, placed.kv_dtype),
        per_level=per_level, parallel=config.parallel_drafting,
    )  # fmt: skip
