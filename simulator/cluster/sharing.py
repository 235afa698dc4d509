"""Groups of replicas on the same GPUs."""

from __future__ import annotations

from simulator.cluster.plan import ClusterPlan, Group
from simulator.core.errors import ScenarioError
from simulator.replica.shared import Processor


def shared_processors(cluster: ClusterPlan) -> dict[int, Processor]:
    """The GPUs of each replica that does not have them for itself, by place. Raises ScenarioError where groups do not
    fit on the same GPUs.
    """
    groups = cluster.groups
    tenants = [group for group in groups if group.shares is not None]
    if not tenants:
        return {}
    first, place = {}, 0
    for group in groups:
        first[group.name] = place
        place += group.count
    hosts = {group.name: group for group in groups}
    found: dict[int, Processor] = {}
    for group in tenants:
        host = _host(group, hosts)
        for k in range(group.count):
            processor = found.setdefault(first[host.name] + k, Processor(host.args.pipeline_parallel_size))
            found[first[group.name] + k] = processor
    return found


def _host(group: Group, hosts: dict[str, Group]) -> Group:
    """The group whose GPUs these are."""
    where = f"cluster.groups.{group.name}.shares"
    host = hosts.get(group.shares or "")
    if host is None or host is group or host.shares is not None:
        own = ", ".join(name for name, other in hosts.items() if other.shares is None and other is not group)
        raise ScenarioError(
            f"{group.shares!r} is not another group with GPUs of its own.", where=where, remedy=f"Name one of: {own}."
        )
    if (group.gpu, group.num_gpus, group.count) != (host.gpu, host.num_gpus, host.count):
        raise ScenarioError(
            f"{group.count} x {group.num_gpus} {group.gpu} cannot be the same GPUs as the "
            f"{host.count} x {host.num_gpus} {host.gpu} of {host.name!r}.",
            where=where,
            remedy="Give both groups the same hardware, replicas and tensor_parallel_size.",
        )
    if group.args.pipeline_parallel_size != host.args.pipeline_parallel_size:
        raise ScenarioError(
            f"{group.args.pipeline_parallel_size} pipeline stages cannot be the {host.args.pipeline_parallel_size} of "
            f"{host.name!r}.",
            where=where,
            remedy="Give both groups the same pipeline_parallel_size.",
        )
    return host
