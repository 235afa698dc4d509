"""What the best design costs: by way of renting, against an API, and when the plan is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from simulator.core.errors import UserError
from simulator.hardware.gpu import gpu
from simulator.planning import answer as words
from simulator.planning import charts, costs
from simulator.planning.change import Change
from simulator.planning.ledger import Ledger
from simulator.planning.load import read_plan
from simulator.planning.outcome import Size
from simulator.planning.pictures import shake_bill
from simulator.planning.report import page
from simulator.planning.solve import solve
from simulator.planning.study import Study
from traces.trace import Trace

PLAN = """
name: small
question: what?
find: {find}
{more}
replications: 1
scenario:
  model: Qwen/Qwen2.5-0.5B
  hardware: A100
  engine: {{max_model_len: 4096, max_num_seqs: 8}}
  cluster: {{router: least-requests}}
  workload:
    synthetic:
      num_requests: 600
      arrivals: {{process: poisson, rate: 30}}
      lengths: {{prompt: 600, output: 30}}
  slo: {{ttft_s: 0.3, percentile: 90}}
  energy: {{carbon: {{region: DE-LU}}}}
space: {space}
"""


def plan_file(folder: Path, find: str, more: str, space: str) -> Path:
    path = folder / "small.yaml"
    path.write_text(PLAN.format(find=find, more=more, space=space), encoding="utf-8")
    return path


def brute(usd_per_hour: float, sizes: tuple[Size, ...], usd_per_request: float) -> tuple[float | None, float | None]:
    """The first rate, and the last, at which the cheaper side changes, on a fine grid."""
    rates = np.linspace(0.001, 40.0, 400_000)
    edges = np.array([costs.carries(sizes, n) for n in range(200)])
    own = usd_per_hour * np.searchsorted(edges, rates, side="left")
    cheaper = own <= 3600.0 * usd_per_request * rates
    if not cheaper.any():
        return None, None
    first = float(rates[np.argmax(cheaper)])
    return first, float(rates[len(rates) - np.argmin(cheaper[::-1])]) if cheaper[-1] and not cheaper.all() else None


@pytest.mark.parametrize(
    ("usd", "sizes", "each"),
    [
        (4.0, (Size(1, 2.0),), 0.001),
        (4.0, (Size(1, 2.0), Size(4, 10.0)), 0.0006),
        (7.0, (Size(1, 2.0), Size(4, 10.0)), 0.0009),
        (4.0, (Size(1, 1.0), Size(3, 6.0)), 0.0007),
    ],
)
def test_the_break_even_is_where_a_fine_grid_finds_it(usd: float, sizes: tuple[Size, ...], each: float) -> None:
    found = costs.break_even(usd, sizes, each)
    first, for_good = brute(usd, sizes, each)
    assert found.first == pytest.approx(first, abs=2e-3)
    assert found.for_good == pytest.approx(for_good, abs=2e-3)


def test_gpus_that_cost_more_than_they_carry_never_pay() -> None:
    assert costs.break_even(10.0, (Size(1, 2.0), Size(2, 4.0)), 0.001) == costs.BreakEven(None, None)
    once = costs.break_even(7.0, (Size(1, 2.0), Size(2, 3.0)), 0.001)  # one copy pays, more of them do not
    assert once.first == pytest.approx(7.0 / 3.6) and once.for_good is None


def test_an_answer_says_what_each_way_to_pay_costs_and_when_an_api_is_dearer(tmp_path: Path) -> None:
    api = "api_price: {input_usd_per_mtok: 0.02, output_usd_per_mtok: 0.1}"
    found = solve(read_plan(plan_file(tmp_path, "cheapest", f"rate: 60\n{api}", "{hardware.gpu: [A100]}")))
    best = found.best
    assert best is not None and best.copies is not None and best.sustained is not None
    load, rows = costs.load_of(found, best), costs.bills(found, best)
    assert (load.rate, load.prompt_tokens, load.output_tokens) == (60, 600, 30)
    assert [row.name for row in rows] == ["on demand", "reserved for a year", "spot, if it were never reclaimed", "the API"]
    card = gpu("A100")
    assert [row.usd_per_hour for row in rows[:3]] == pytest.approx(
        [best.copies * (card.price(way) or 0) for way in ("on-demand", "reserved", "spot")]
    )
    per_request = (600 * 0.02 + 30 * 0.1) / 1e6
    assert rows[3].usd_per_hour == pytest.approx(3600 * 60 * per_request)
    for row in rows:
        assert row.per_output * 60 * 30 * 3600 / 1e6 == pytest.approx(row.usd_per_hour)
        assert row.per_total * 60 * 630 * 3600 / 1e6 == pytest.approx(row.usd_per_hour)
    assert [size.copies for size in found.sizes][-1] == best.copies and found.sizes[0].copies == 1
    shown = page(found, tmp_path)
    assert "Break-even against an API" in shown and "kg of CO2 a day" in shown and words.against_api(found)[:20] in shown
    used = costs.energy(found, best)
    assert used is not None and used.grams_per_kwh is not None and used.kg_co2_per_day is not None
    assert used.grams_per_kwh[1:] == (255, 384) and 255 < used.grams_per_kwh[0] < 384
    assert best.gpus is not None and card.idle_w * best.gpus < used.mean_w < card.tdp_w * best.gpus
    said = words.as_json(found)
    assert said["costs"][0]["usd_per_hour"] == rows[0].usd_per_hour and said["energy"]["mean_w"] == used.mean_w


def test_hits_of_the_prefix_cache_are_billed_as_the_api_bills_them(tmp_path: Path) -> None:
    api = "{input_usd_per_mtok: 1, output_usd_per_mtok: 2, cached_input_usd_per_mtok: 0.1}"
    found = solve(read_plan(plan_file(tmp_path, "highest-rate", f"api_price: {api}", "{hardware.gpu: [A100]}")), pictures=False)
    load = costs.Load(5.0, 1000.0, 100.0, 0.75)
    assert costs.api_usd(found, load) == pytest.approx((750 * 0.1 + 250 * 1 + 100 * 2) / 1e6)


def test_a_bill_is_shaken_and_held_against_other_limits(tmp_path: Path) -> None:
    """A fleet that follows the load costs more with more of it; one that stays costs the same and comes closer to its
    limits. Of a design that misses, it is said by how much."""
    scaling = "{policy: queue, options: {target_requests: 8, average_s: 2}, max_replicas: 6, interval_s: 1}"
    scaled = f"{{replicas: 1, router: least-requests, cold_start: {{total_s: 1}}, scaling: {scaling}}}"
    fleets = f"one: {{replicas: 1, router: least-requests}}, two: {{replicas: 2, router: least-requests}}, scaled: {scaled}"
    api = "api_price: {input_usd_per_mtok: 0.05, output_usd_per_mtok: 0.2}\ntop: all"
    path = plan_file(tmp_path, "lowest-bill", api, f"{{cluster: {{{fleets}}}}}")
    text = path.read_text(encoding="utf-8").replace("rate: 30", "rate: 115")
    path.write_text(text.replace("num_requests: 600", "num_requests: 3000"), encoding="utf-8")
    file = read_plan(path)
    found = solve(file)
    of = {outcome.design.label: outcome for outcome in found.outcomes}
    names = ["prompts twice as long", "prompts half as long", "traffic +20%", "traffic -20%"]
    assert [one.name for one in found.shaken][:4] == names and "kernels" in found.shaken[4].name
    rows = {index: (slack, bill) for index, slack, bill in found.slo_runs}
    assert len(rows) == 3 and rows[of["one"].design.index][0] > rows[of["two"].design.index][0]
    assert rows[of["two"].design.index] == (of["two"].slack, of["two"].usd_per_hour)
    titles = [figure["title"] for figure in charts.figures(found)]
    assert titles == ["Cost against SLO", "If the plan is wrong"]
    assert words.against_api(found).startswith("The API would bill $") and "The API would bill" in page(found, tmp_path)

    study = Study(file.plan, Ledger())
    for label, follows in (("two", False), ("scaled", True)):
        usual, less, slow = (
            shake_bill((study, of[label], change))[0] for change in (Change(), Change(traffic=0.5), Change(slower=1.5))
        )
        assert usual is not None and less is not None and slow is not None
        assert usual.usd_per_hour == pytest.approx(of[label].usd_per_hour)
        assert usual.usd_per_hour is not None and less.usd_per_hour is not None
        assert (less.usd_per_hour < 0.9 * usual.usd_per_hour) == follows
        assert slow.slack > usual.slack


def test_more_traffic_is_more_of_the_same_requests_at_the_same_hours() -> None:
    arrival = np.sort(np.random.default_rng(0).uniform(0, 1000, 5000))
    trace = Trace(arrival, np.arange(5000) % 900 + 1, np.full(5000, 7))
    for times in (0.8, 1.2, 2.5):
        changed = Change(traffic=times).applied(trace, 0, 4096)
        assert len(changed) == pytest.approx(times * 5000, rel=0.02)
        assert np.all(np.diff(changed.arrival) >= 0)
        assert changed.prompt_tokens.mean() == pytest.approx(trace.prompt_tokens.mean(), rel=0.03)
    assert np.array_equal(Change(traffic=1.2).applied(trace, 3, 4096).arrival, Change(traffic=1.2).applied(trace, 3, 4096).arrival)


def test_an_api_that_costs_nothing_is_refused(tmp_path: Path) -> None:
    free = "rate: 5\napi_price: {input_usd_per_mtok: 0, output_usd_per_mtok: 0}"
    with pytest.raises(UserError, match="always cheaper"):
        read_plan(plan_file(tmp_path, "cheapest", free, "{hardware.gpu: [A100]}"))
