"""Replicas on nodes, and the ways between them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from simulator.core.errors import HardwareError
from simulator.hardware.gpu import gpu
from simulator.hardware.topology import Fabric, Slot, Topology, Wan

H100 = gpu("H100")  # 8 in a node, NVLink 450 GB/s, network 50 GB/s
PERFECT = Fabric(efficiency=1.0)


def rate(topology: Topology, source: int, target: int) -> float:
    """bytes/s of one transfer alone."""
    path, _ = topology.route(source, target)
    return min(topology.channels[c].bandwidth / share for c, share in path.items())


def test_replicas_stay_inside_a_node_while_they_fit() -> None:
    topology = Topology([Slot(H100, tensor=4) for _ in range(3)], PERFECT)
    assert [set(place.nodes) for place in topology.places] == [{0}, {0}, {1}]
    assert rate(topology, 0, 1) == 4 * 450e9  # NVLink
    assert rate(topology, 0, 2) == 4 * 50e9  # a NIC per GPU
    assert topology.route(0, 1)[1] == H100.link.latency_s
    assert topology.route(0, 2)[1] == H100.network.latency_s


def test_the_side_with_fewer_nics_limits() -> None:
    topology = Topology([Slot(H100, tensor=8), Slot(H100, tensor=2)], PERFECT)
    assert rate(topology, 0, 1) == rate(topology, 1, 0) == 2 * 50e9


def test_pipeline_stages_take_nodes_of_their_own_when_together_they_fill_more_than_one() -> None:
    topology = Topology([Slot(H100, tensor=8, stages=2), Slot(H100, tensor=4, stages=2)], PERFECT)
    assert topology.places[0].nodes == (0,) * 8 + (1,) * 8
    assert set(topology.places[1].nodes) == {2}
    limited = Topology(topology.slots, replace(PERFECT, node_bandwidth=100e9))
    assert rate(limited, 0, 1) == 100e9  # two nodes send half each, one receives all
    assert rate(topology, 0, 1) == 8 * 50e9


def test_a_tensor_group_larger_than_a_node_spans_nodes() -> None:
    pair = replace(H100, gpus_per_node=4)
    topology = Topology([Slot(pair, tensor=8)], PERFECT)
    assert topology.places[0].nodes == (0,) * 4 + (1,) * 4
    assert pair.group_link(8).kind == "network"  # as its collectives are priced
    assert pair.group_link(4).kind == "nvlink"


def test_interleaved_puts_prefill_and_decode_side_by_side() -> None:
    slots = [Slot(H100, "prefill", 4) for _ in range(2)] + [Slot(H100, "decode", 4) for _ in range(2)]
    packed, mixed = Topology(slots, PERFECT), Topology(slots, replace(PERFECT, placement="interleaved"))
    assert [place.nodes[0] for place in packed.places] == [0, 0, 1, 1]
    assert [place.nodes[0] for place in mixed.places] == [0, 1, 0, 1]


def test_gpus_of_different_kinds_share_no_node() -> None:
    topology = Topology([Slot(H100), Slot(gpu("L40S")), Slot(H100)])
    assert [place.nodes[0] for place in topology.places] == [0, 1, 0]


def test_regions_are_far_apart() -> None:
    slots = [Slot(H100, "here"), Slot(H100, "there")]
    fabric = Fabric(regions={"here": "eu", "there": "us"}, wans={frozenset(("eu", "us")): Wan(1e9, 0.04)})
    topology = Topology(slots, fabric)
    path, latency = topology.route(0, 1)
    assert "wan eu to us" in [topology.channels[c].name for c in path]
    assert rate(topology, 0, 1) == pytest.approx(1e9)
    assert latency == pytest.approx(0.04 + H100.network.latency_s)
    with pytest.raises(HardwareError, match="'eu' and 'us'"):
        Topology(slots, replace(fabric, wans={}))


def test_one_switch_for_all() -> None:
    topology = Topology([Slot(H100, tensor=8) for _ in range(2)], replace(PERFECT, fabric_bandwidth=3e9))
    assert rate(topology, 0, 1) == 3e9
