"""Routers that go with migration and disaggregation, against choices made by hand."""

from __future__ import annotations

import numpy as np

from simulator.routing import ROUTERS, Fleet, Surroundings
from simulator.scheduling import Request
from traces.trace import Trace


def fleet() -> Fleet:
    return Fleet(3, weight=[1.0] * 3, num_blocks=[100] * 3, block_size=[16] * 3)


def test_freeness_counts_memory_per_request_and_what_the_queue_will_take() -> None:
    """Free: 20, 30 and 50 blocks of 16 tokens; 4, 8 and 20 requests: 80, 60 and 40 tokens each. With 200 prompt tokens
    queued on the first: (320 - 200) / 4 = 30."""
    view = fleet()
    view.free_blocks[:] = [20, 30, 50]
    view.in_flight[:] = [4, 8, 20]
    one = Trace(np.zeros(1), np.array([100]), np.array([10]))
    router = ROUTERS.get("freeness")(Surroundings(view, one, np.random.default_rng(0)), {})
    request, everybody = Request(0, 0.0, 100, 10), np.arange(3)
    assert router.route(request, everybody, 0.0) == 0
    view.queued_tokens[0] = 200
    assert router.route(request, everybody, 0.0) == 1
    assert router.route(request, np.array([0, 2]), 0.0) == 2


def test_least_heavy_sends_everybody_to_the_lower_ratio_of_two() -> None:
    """The predictor knows all: answers of 500 tokens are heavy, of 20 light."""
    output = np.array([500, 500, 20, 500, 20, 20])
    requests = Trace(np.zeros(6), np.full(6, 50), output)
    view = fleet()
    router = ROUTERS.get("least-heavy")(Surroundings(view, requests, np.random.default_rng(1)), {"accuracy": 1.0})

    def place(row: int, *candidates: int) -> int:
        chosen = router.route(Request(row, 0.0, 50, int(output[row])), np.array(candidates), 0.0)
        view.sent(chosen, 50)
        return chosen

    place(0, 0)  # replica 0: 1 heavy
    place(2, 2)  # replica 2: 1 light
    assert place(1, 0, 2) == 2  # now 1 heavy for 1 light one there
    router.ended(Request(0, 0.0, 50, 500), 0)
    view.ended(0, 50)
    assert place(3, 0, 2) == 0
    assert place(4, 0) == 0  # 1 : 1 on both
    assert place(5, 2) == 2  # 1 : 2
    assert place(3, 0, 2) == 2


def test_least_heavy_asks_for_room_first() -> None:
    requests = Trace(np.zeros(1), np.array([50]), np.array([900]))
    view = fleet()
    view.free_blocks[:] = [60, 61, 63]  # 950 tokens are 60 blocks, the class of 801 to 1,000 asks for 66
    router = ROUTERS.get("least-heavy")(Surroundings(view, requests, np.random.default_rng(1)), {"accuracy": 1.0})
    request = Request(0, 0.0, 50, 900)
    assert len({router.route(request, np.arange(3), 0.0) for _ in range(20)}) > 1  # nobody has the room: all are asked
    view.free_blocks[1] = 66
    assert {router.route(request, np.arange(3), 0.0) for _ in range(20)} == {1}
