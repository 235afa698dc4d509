"""A scenario's engine as the command that starts it."""

from __future__ import annotations

import shlex

from simulator.hardware.gpu import GIB
from simulator.scenario.config import Scenario
from simulator.scenario.engine import EngineSpec, ModelSpec
from simulator.scenario.setup import Setup


def vllm_serve(model: ModelSpec, engine: EngineSpec, setup: Setup) -> str:
    """``vllm serve MODEL ...`` with what differs from vLLM's defaults, and the limits written out.

    Empty where vLLM has no such engine: another policy. ``max_model_len`` is the one the memory plan settled on.
    """
    if engine.policy not in ("vllm", "vllm-v0"):
        return ""
    words = ["vllm", "serve", model.name or str(model.config)]
    for flag, size in (
        ("--tensor-parallel-size", engine.tensor_parallel_size),
        ("--pipeline-parallel-size", engine.pipeline_parallel_size),
        ("--data-parallel-size", engine.data_parallel_size),
        ("--prefill-context-parallel-size", engine.prefill_context_parallel_size),
        ("--decode-context-parallel-size", engine.decode_context_parallel_size),
    ):
        words += [flag, str(size)] if size > 1 else []
    words += ["--max-model-len", str(setup.args.max_model_len), "--max-num-seqs", str(setup.args.max_num_seqs)]
    words += ["--max-num-batched-tokens", str(setup.args.max_num_batched_tokens)]
    words += ["--gpu-memory-utilization", f"{engine.gpu_memory_utilization:g}"]
    for flag, name, default in (
        ("--dtype", model.dtype, "auto"),
        ("--quantization", model.quantization, None),
        ("--kv-cache-dtype", model.kv_cache_dtype, "auto"),
        ("--scheduling-policy", engine.scheduling_policy, "fcfs"),
    ):
        words += [flag, str(name)] if name not in (default, None) else []
    for switch, on, usual in (
        ("enable-prefix-caching", bool(setup.args.enable_prefix_caching), True),
        ("enable-chunked-prefill", engine.enable_chunked_prefill, True),
        ("async-scheduling", bool(setup.args.async_scheduling), True),
    ):
        words += [f"--{switch}" if on else f"--no-{switch}"] if on != usual else []
    for flag, count, standard in (
        ("--block-size", engine.block_size, 16),
        ("--long-prefill-token-threshold", engine.long_prefill_token_threshold, 0),
        ("--cpu-offload-gb", engine.cpu_offload_gb, 0),
    ):
        words += [flag, f"{count:g}"] if count != standard else []
    if _in_host_memory(engine):
        gib = engine.kv_tiers[0].capacity_bytes / GIB
        words += ["--kv-offloading-backend", "native", "--kv-offloading-size", f"{gib:.0f}"]
    words += ["--enforce-eager"] if engine.enforce_eager else []
    words += ["--enable-expert-parallel"] if engine.enable_expert_parallel else []
    words += ["--enable-eplb"] if engine.enable_eplb else []
    return shlex.join(words)


def _in_host_memory(engine: EngineSpec) -> bool:
    """Its KV tiers are vLLM's own: the host's memory, of one engine alone."""
    return len(engine.kv_tiers) == 1 and engine.kv_tiers[0].name == "dram" and not engine.kv_tiers[0].shared


def unsaid(model: ModelSpec, engine: EngineSpec) -> list[str]:
    """Fields that the design has and the command does not say."""
    given = {
        "engine.kv_tiers": bool(engine.kv_tiers) and not _in_host_memory(engine),
        "engine.speculative_config": engine.speculative_config is not None,
        "engine.lora_config": engine.lora_config is not None,
        "engine.finetuning": engine.finetuning is not None,
        "engine.offload": engine.offload is not None,
        "engine.experts": engine.experts is not None,
        "model.kv_compression": model.kv_compression is not None,
    }
    return [name for name, there in given.items() if there]


def commands(scenario: Scenario, setups: tuple[Setup, ...]) -> list[tuple[str, str]]:
    """(what it starts, command) per group of replicas."""
    specs = scenario.cluster.groups
    found = []
    for index, setup in enumerate(setups):
        own = specs[index] if specs else None
        model = (own.model if own else None) or scenario.model
        engine = (own.engine if own else None) or scenario.engine
        gpus = f"{setup.num_gpus} x {setup.gpu.name}" if setup.num_gpus > 1 else setup.gpu.name
        what = f"on each of {setup.replicas} replicas ({gpus})" if setup.replicas > 1 else f"on {gpus}"
        command = "" if engine.placement is not None else vllm_serve(model, engine, setup)  # vLLM has no such nodes
        if command:
            role = "" if own is None or own.role == "both" else f", {own.role}: with a KV connector"
            missing = unsaid(model, engine)
            without = f"; without {', '.join(missing)}, as the scenario has it" if missing else ""
            found.append((what + role + without, command))
    return found
