"""A forest finds what jumps, keeps its last value outside, and survives its file."""

from __future__ import annotations

import json
import zlib
from itertools import product

import numpy as np
import pandas as pd
import pytest

from profiler.fit.boost import ForestSpec, edges_of, grow
from profiler.fit.calibrate import one
from profiler.fit.operators import RECIPES
from simulator.cost.forest import Forest
from simulator.cost.kernels import Ceilings
from simulator.cost.laws import DECODE

SPEC = ForestSpec(tables=150, depth=3, features=1.0)


def grid() -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Points, a kernel 20 % slower where n > 30 and k < 12, and each point's whole shape."""
    n, k, m = (np.array(c, dtype=float) for c in zip(*product(range(0, 60, 2), range(0, 24, 2), range(4)), strict=True))
    return {"n": n, "k": k, "m": m}, np.where((n > 30) & (k < 12), 0.2, 0.0), (n * 100 + k).astype(np.int64)


def grown() -> Forest:
    features, target, shape = grid()
    found = grow(SPEC, features, target, shape, np.ones_like(target))
    assert found is not None
    return found


def test_a_sharp_choice_is_found_on_shapes_that_were_left_out() -> None:
    features, target, shape = grid()
    held = np.random.default_rng(1).permutation(int(shape.max()) + 1)[shape] % 5 == 0
    train = {name: column[~held] for name, column in features.items()}
    forest = grow(SPEC, train, target[~held], shape[~held], np.ones(int((~held).sum())))
    assert forest is not None
    miss = np.abs(forest.at({name: column[held] for name, column in features.items()}) - target[held])
    assert miss.mean() < 0.01
    assert np.abs(target[held]).mean() > 0.03  # what it would miss without


def test_outside_the_measured_range_the_edge_holds() -> None:
    forest = grown()
    edge = {"n": np.array([58.0]), "k": np.array([0.0]), "m": np.array([1.0])}
    far = {"n": np.array([1e9]), "k": np.array([-1e9]), "m": np.array([1.0])}
    assert forest.at(far) == pytest.approx(forest.at(edge))


def test_growing_is_deterministic_and_survives_its_file() -> None:
    first, second = grown(), grown()
    assert json.dumps(first.to_json()) == json.dumps(second.to_json())
    features, _, _ = grid()
    back = Forest.from_json(json.loads(json.dumps(first.to_json())))
    assert back.at(features).tolist() == first.at(features).tolist()


def test_points_are_priced_alike_alone_and_among_thousands() -> None:
    """Points go through in chunks."""
    forest, (features, _, _) = grown(), grid()
    many = {name: np.tile(column, 3) for name, column in features.items()}
    together, i = forest.at(many), 1400
    assert together[i] == pytest.approx(forest.at({name: column[i : i + 1] for name, column in many.items()})[0])


@pytest.mark.parametrize("damage", [{"splits": "AAAA"}, {"depth": 2}, {"edges": "AAAA"}, {"counts": [1, 2]}, {"axes": ["n"]}])
def test_a_damaged_forest_is_refused(damage: dict[str, object]) -> None:
    with pytest.raises((ValueError, IndexError, zlib.error)):
        Forest.from_json(grown().to_json() | damage)


def test_edges_of_a_grid_lie_between_its_values() -> None:
    assert edges_of(np.array([1.0, 4.0, 2.0, 4.0])) == (1.5, 3.0)
    assert edges_of(np.ones(5)) == ()
    assert len(edges_of(np.arange(1000.0))) == 47


def test_rows_timed_with_cold_operands_stand_in_for_warm_ones() -> None:
    """A benchmark finds 64 MB of keys in a cache of 128 MB and halves the time; rows of a served model do not."""
    ceilings = Ceilings(188, {"bf16": 500e12}, 1.8e12, 128e6)
    shapes = [
        {"batch": b, "context": c, "heads": kv * 4, "kv_heads": kv, "head_dim": 128, "window": 0, "kv_dtype": "bf16"}
        for b, c, kv in product((1, 4, 16, 64, 256), (16, 64, 256, 1024, 4096), (2, 4, 8))
    ]
    frame = pd.DataFrame(shapes).assign(dtype="bf16", kernel="made", source="benchmark")
    recipe = RECIPES["decode_attention"]
    points = recipe.points(frame, "bf16")
    true = DECODE.seconds(dict(DECODE.start) | {"packed": 1.0}, ceilings, "bf16", points)
    warm = frame.assign(seconds=np.where(points["size"] < 100e6, 0.5 * true, true))
    cold = frame.assign(seconds=true, source="LLMServingSim x").loc[frame["kv_heads"] == 8]
    found = one("decode_attention", "128/bf16", recipe, ceilings, pd.concat([warm, cold], ignore_index=True))
    asked = recipe.points(cold, "bf16")
    middle = (asked["size"] > 20e6) & (asked["size"] < 100e6)
    assert middle.any()
    miss = found.seconds(ceilings, asked)[middle] / cold["seconds"].to_numpy()[middle] - 1.0
    assert np.abs(miss).max() < 0.08
