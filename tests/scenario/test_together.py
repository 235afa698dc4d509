"""Every pair of the table of what does not go together is refused, and each of its features works alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from simulator.core.errors import ScenarioError
from simulator.scenario import load
from simulator.scenario import together as features
from simulator.scenario.build import build_groups
from simulator.scenario.config import Scenario
from simulator.scenario.together import APART, FEATURES, pairs

BASE: dict[str, Any] = {
    "model": {"name": "meta-llama/Llama-3.1-8B"},
    "hardware": {"gpu": "H100-SXM"},
    "engine": {"max_model_len": 4096},
    "workload": {
        "synthetic": {
            "num_requests": 10,
            "arrivals": {"process": "poisson", "rate": 1},
            "lengths": {"prompt": 100, "output": 10},
        }
    },
}
TWO: dict[str, Any] = {"groups": [{"name": "a", "role": "prefill"}, {"name": "b", "role": "decode"}]}
FAULT: dict[str, Any] = {"policy": "failures", "options": {"mtbf_s": 100.0, "mttr_s": 10.0}}
ASKED: dict[str, dict[str, Any]] = {
    features.PIPELINE: {"engine": {"pipeline_parallel_size": 2}},
    features.DATA_RANKS: {
        "model": {"name": "mistralai/Mixtral-8x7B-v0.1"},
        "engine": {"data_parallel_size": 2, "enable_expert_parallel": True},
    },
    features.EPLB: {
        "model": {"name": "mistralai/Mixtral-8x7B-v0.1"},
        "engine": {"tensor_parallel_size": 2, "enable_expert_parallel": True, "enable_eplb": True},
    },
    features.PREFILL_RANKS: {"engine": {"prefill_context_parallel_size": 2}},
    features.DECODE_RANKS: {"engine": {"tensor_parallel_size": 16, "decode_context_parallel_size": 2}},
    features.LAYOUT: {"engine": {"tensor_parallel_size": 4, "tensor_parallel_layout": "2d"}},
    features.SPECULATION: {
        "engine": {
            "max_num_seqs": 16,
            "speculative_config": {
                "method": "ngram",
                "num_speculative_tokens": 2,
                "synthetic_acceptance_rate": 0.5,
            },
        }
    },
    features.ADAPTERS: {"engine": {"lora_config": {"max_loras": 2}}},
    features.FINETUNING: {"engine": {"finetuning": {"mode": "co-serving"}}},
    features.CHUNKS: {"engine": {"parallel_chunks": True}},
    features.PREFIXES: {"engine": {"enable_prefix_caching": True}},
    features.CASCADE: {"engine": {"shared_prefix_attention": "groups"}},
    features.NO_PREFIXES: {"engine": {"enable_prefix_caching": False}},
    features.TIERS: {"engine": {"kv_tiers": [{"name": "dram", "capacity_bytes": 1e9}]}},
    features.ASIDE: {"engine": {"kv_tiers": [{"name": "dram", "capacity_bytes": 1e9}], "kv_tier_load": "async"}},
    features.WINDOW: {"model": {"name": "mistralai/Mistral-7B-v0.1"}},
    features.BOUNDED: {"model": {"kv_compression": "streaming-llm"}},
    features.SPARSITY: {"model": {"contextual_sparsity": {"neurons": 0.2}}},
    features.OFFLOAD: {"engine": {"cpu_offload_gb": 1.0}},
    features.KV_AWAY: {"hardware": {"host": "Xeon-Gold-6136"}, "engine": {"offload": {"weights_host": 0.5, "kv_host": 1}}},
    features.EXPERTS_AWAY: {
        "model": {"name": "mistralai/Mixtral-8x7B-v0.1"},
        "engine": {"experts": {"cached_experts": 4}},
    },
    features.NODES: {"engine": {"placement": {"nodes": [{"layers": [0, 16]}, {"layers": [16, 32]}]}}},
    features.LOCKED: {"hardware": {"clock": 0.8}},
    features.CLOCKS: {"cluster": {"clocks": {"policy": "slo-clock"}}},
    features.SHARED: {
        "engine": {"gpu_memory_utilization": 0.45},
        "cluster": {"groups": [{"name": "a"}, {"name": "b", "shares": "a"}]},
    },
    features.LENDS: {
        "engine": {"enable_prefix_caching": False},
        "cluster": {"groups": [{"name": "a", "replicas": 2, "lends": True}]},
    },
    features.ELASTIC: {"engine": {"policy": "loongserve", "max_num_batched_tokens": 4096}},
    features.SLICES: {"engine": {"policy": "slices", "options": {"slice_tokens": 32}}},
    features.KEEPS: {"engine": {"policy": "infercept", "options": {"interception": "preserve"}}},
    features.RESERVES: {"engine": {"policy": "orca"}},
    features.PROMISES: {"engine": {"policy": "sglang"}},
    features.PADS: {"engine": {"policy": "static"}},
    features.PREDICTION: {"cluster": {"admission": {"reject_predicted_miss": True, "ttft_s": 1.0}}},
    features.DISAGGREGATION: {"cluster": TWO},
    features.MIGRATION: {"cluster": {"replicas": 2, "migration": {}}},
    features.LIFE: {"cluster": {"faults": [FAULT]}},
    features.COPIES: {"cluster": {"faults": [FAULT], "kv_replication": {}}},
    features.RESCUE: {"cluster": {"faults": [{**FAULT, "recovery": "migrate"}]}},
}


def scenario(folder: Path, *asked: str) -> Scenario:
    data: dict[str, Any] = {}
    for part in (BASE, *(ASKED[name] for name in asked)):
        for section, fields in part.items():
            mine = data.setdefault(section, {})
            if "groups" in mine and "groups" in fields:  # each group is what both ask for
                both = [{**x, **y, "name": x["name"]} for x, y in zip(mine["groups"], fields["groups"], strict=False)]
                mine["groups"] = both + mine["groups"][len(both) :] + fields["groups"][len(both) :]
            else:
                mine |= fields
    if "groups" in data.get("cluster", {}):
        data["cluster"].pop("replicas", None)
    path = folder / "scenario.yaml"
    path.write_text(yaml.safe_dump(data))
    return load(path)


def test_every_feature_of_the_table_is_asked_for_here() -> None:
    assert set(ASKED) == set(FEATURES)
    assert {name for pair in pairs() for name in pair} == set(FEATURES)
    assert len(list(pairs())) == len({frozenset(pair) for pair in pairs()}), APART


@pytest.mark.parametrize("pair", list(pairs()), ids=lambda pair: " + ".join(pair))
def test_pairs_are_refused(pair: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="are not modelled together") as error:
        build_groups(scenario(tmp_path, *pair))
    assert all(name in str(error.value) for name in pair) or {features.OFFLOAD, features.KV_AWAY} & set(pair)


@pytest.mark.parametrize("name", list(FEATURES))
def test_each_is_built_alone(name: str, tmp_path: Path) -> None:
    assert build_groups(scenario(tmp_path, name))
