"""Groups whose replicas lend each other KV memory."""

from __future__ import annotations

from simulator.cluster.plan import ClusterPlan
from simulator.replica.lending import Loans


def loans_by_place(cluster: ClusterPlan) -> dict[int, Loans]:
    """The pool that each replica of a lending group takes its blocks from."""
    found: dict[int, Loans] = {}
    place = 0
    for group in cluster.groups:
        if group.lends:
            loans = Loans(group.num_gpu_blocks - 1, group.args.block_size, group.count)
            found |= dict.fromkeys(range(place, place + group.count), loans)
        place += group.count
    return found
