"""Helix: the integer program against every placement of small clusters, and the optimiser's answer simulated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations_with_replacement, product
from math import inf
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import yaml
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_flow

from simulator import plan
from simulator.core.errors import UserError
from simulator.cost.nodes import Node, Wires, max_flow
from simulator.cost.step import OperatorCost
from simulator.planning.optimisers.answer import Optimised
from simulator.planning.optimisers.layer_program import Kind, Span, place_layers, swarm_stages

LAYERS = 5
BIG = Kind(1, "", (0.0, 60.0, 30.0, 20.0, 15.0))
SMALL = Kind(2, "", (0.0, 20.0, 9.0))


def flow_of(held: Sequence[tuple[Span, float]], num_layers: int, *, partial: bool) -> float:
    """Maximum flow through nodes with these layers and capacities, over links that carry anything."""
    if not partial:  # nodes lead from the layer before their first to their last
        room = np.zeros((num_layers + 1, num_layers + 1), dtype=np.int32)
        for span, rate in held:
            room[span.first, span.end] += round(rate * 1000)
        return float(maximum_flow(csr_array(room), 0, num_layers).flow_value) / 1000
    nodes = [Node("", 1, span.first, span.end, "", 1, cast("OperatorCost", None), inf) for span, _ in held]
    return max_flow(nodes, [rate for _, rate in held], Wires(0.0), 1.0, num_layers).tokens_per_s


def placements(kinds: Sequence[Kind], num_layers: int) -> Iterator[list[tuple[Span, float]]]:
    """Every way to give each node some layers."""
    each = []
    for kind in kinds:
        spans = [Span(a, a + k) for k in range(1, kind.most + 1) for a in range(num_layers - k + 1)]
        each.append(list(combinations_with_replacement(spans, kind.count)))
    for chosen in product(*each):
        yield [
            (span, kind.rates[span.end - span.first])
            for kind, spans in zip(kinds, chosen, strict=True)
            for span in spans
        ]


@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize(
    "kinds",
    [
        (BIG, SMALL),
        (Kind(2, "", (0.0, 30.0, 16.0, 10.0)), Kind(1, "", (0.0, 12.0, 6.0))),
    ],
)
def test_the_program_finds_the_best_of_all_placements(kinds: tuple[Kind, ...], *, partial: bool) -> None:
    best = max(flow_of(held, LAYERS, partial=partial) for held in placements(kinds, LAYERS))
    found = place_layers(kinds, LAYERS, partial=partial)
    assert found is not None
    assert found.flow == pytest.approx(best, rel=1e-6)
    assert found.bound == pytest.approx(best, rel=1e-6)
    held = [
        (span, kinds[g].rates[span.end - span.first]) for (g, span), count in found.counts.items() for _ in range(count)
    ]
    assert flow_of(held, LAYERS, partial=partial) == pytest.approx(best, rel=1e-6)


def test_thin_links_between_regions_keep_the_flow_inside_them() -> None:
    """Two regions that each hold the model do not need the link; one that does not gets what the link carries."""
    whole = [Kind(2, region, (0.0, 40.0, 20.0, 10.0)) for region in ("a", "b")]
    assert getattr(place_layers(whole, 6, link_tokens_per_s=1.0), "flow", None) == pytest.approx(20.0)
    halves = [Kind(1, region, (0.0, 40.0, 20.0, 10.0)) for region in ("a", "b")]
    assert getattr(place_layers(halves, 6, link_tokens_per_s=3.0), "flow", None) == pytest.approx(3.0)
    assert getattr(place_layers(halves, 6), "flow", None) == pytest.approx(10.0)


def test_no_placement_where_nodes_do_not_hold_the_model() -> None:
    assert place_layers([Kind(2, "", (0.0, 9.0, 4.0))], 5) is None


def test_swarm_fills_the_stage_that_computes_least() -> None:
    """Stages of two layers, as the small nodes hold two; the big node is worth three of them."""
    stages = swarm_stages((BIG, Kind(5, "", (0.0, 20.0, 10.0))), 6)
    assert stages == {Span(0, 2): [0], Span(2, 4): [1, 1, 1], Span(4, 6): [1, 1]}
    assert swarm_stages((SMALL,), 8) is None


QUESTION = """
name: small
optimiser: helix
options:
  nodes: [{gpu: A10, count: 1}, {gpu: T4, count: 3}]
  bandwidth: 1 GB
  granularity: 4
  typical_decodes: 16
replications: 1
scenario:
  model: {name: meta-llama/Llama-2-7b-hf, dtype: float16}
  hardware: {gpu: A10, calibration: roofline}
  engine: {max_num_batched_tokens: 1024, max_num_seqs: 512, max_model_len: 1024}
  workload: {synthetic: {num_requests: 60, arrivals: {process: poisson, rate: 1000}, lengths: {prompt: 300, output: 60}}}
"""


def answer(tmp_path: Path, **changed: object) -> Optimised:
    data = yaml.safe_load(QUESTION)
    data["options"] |= changed
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(data))
    found = plan(path)
    assert isinstance(found, Optimised)
    return found


def test_its_placement_is_simulated_beside_the_others(tmp_path: Path) -> None:
    """The flow of the placement is the belief; no more than it comes through."""
    found = answer(tmp_path)
    assert [one.label for one in found.candidates] == ["Helix", "Swarm", "separate pipelines"]
    assert found.belief is not None
    assert found.simulated is not None
    assert found.belief == max(one.belief for one in found.candidates if one.label != "separate pipelines")
    assert 0.2 * found.belief < found.simulated <= found.belief
    assert found.gap == pytest.approx(found.simulated / found.belief - 1)
    written = found.write(tmp_path / "out")
    assert "placement" in written["scenario.yaml"].read_text()


def test_what_is_wrong_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no node has the scenario's hardware"):
        answer(tmp_path, nodes=[{"gpu": "T4", "count": 4}])
    with pytest.raises(UserError, match="go with nodes in several regions"):
        answer(tmp_path, region_bandwidth=1e6)
    none = answer(tmp_path, nodes=[{"gpu": "A10", "count": 1}], weight_share=0.1)
    assert none.candidates[-1].reason
