"""Groups whose replicas lend each other KV memory."""

from __future__ import annotations

from simulator.cluster.plan import ClusterPlan, Group
from simulator.core.errors import ScenarioError
from simulator.cost.step import OperatorCost, by_operators
from simulator.replica.lending import Loans
from simulator.scheduling import POLICIES


def loans_by_place(cluster: ClusterPlan) -> dict[int, Loans]:
    """The pool that each replica of a lending group takes its blocks from. Raises ScenarioError where it cannot."""
    found: dict[int, Loans] = {}
    place = 0
    for group in cluster.groups:
        if group.lends:
            _check(cluster, group)
            loans = Loans(group.num_gpu_blocks - 1, group.args.block_size, group.count)
            found |= dict.fromkeys(range(place, place + group.count), loans)
        place += group.count
    return found


def _check(cluster: ClusterPlan, group: Group) -> None:
    args, policy = group.args, POLICIES.get(group.args.policy)
    context_ranks = args.prefill_context_parallel_size * args.decode_context_parallel_size
    ranks = args.pipeline_parallel_size * args.data_parallel_size * context_ranks
    others = cluster.acting
    for name, on in (
        ("pipeline, data and context parallel sizes", ranks > 1),
        ("enable_prefix_caching", bool(args.enable_prefix_caching)),
        ("kv_tiers", group.tiers is not None),
        ("GPUs that are shared", group.shares is not None),
        ("KV compression that bounds requests", group.holding is not None),
        ("adapters", group.lora is not None),
        ("speculation", args.speculation is not None),
        ("power caps and clocks", not isinstance(group.cost, OperatorCost)),
        ("weights or KV outside the GPU", isinstance(group.cost, OperatorCost) and not by_operators(group.cost)),
        ("sliding windows", group.cost.sliding_window is not None),
        (f"policy {args.policy!r}", not policy.grows or policy.elastic or policy.keeps),
    ):
        others += [name] if on else []
    if others:
        raise ScenarioError(
            f"group {group.name}: {others[0]} is not modelled where replicas lend each other KV memory.",
            where=f"cluster.groups.{group.name}.lends",
            remedy="Leave it out; policies must grow block by block, such as vllm.",
        )
