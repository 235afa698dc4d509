"""Runs of variants: what was built once is used again when only the rate changes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from scipy.signal import lfilter

from simulator.core.errors import ScenarioError
from simulator.core.names import suggestion
from simulator.cost.served_experts import ServedExperts
from simulator.metrics.experience import quality_of_experience
from simulator.metrics.stats import Floats, Ints
from simulator.model.weights import parameters
from simulator.replica.records import Status
from simulator.scenario.build import build_groups
from simulator.scenario.result import Result
from simulator.scenario.run import run
from simulator.scenario.setup import Setup
from simulator.scenario.trace import make_trace
from simulator.survey.expression import Formula
from simulator.survey.load import SystemFile, Variant, variant
from simulator.survey.price import PublishedCost
from simulator.survey.spec import Measure
from traces import transforms
from traces.trace import LABEL_COLUMNS, Labels, Trace

GAP_EMA = "worst_gap_ema16_s"  # columns that take a pass over all tokens: made only where a formula names them
QOE = "qoe"
Numbers = dict[str, Any]  # a run's summary with its ``values``


class Experiment:
    """One variant of a system with some fields set; runs at any rate."""

    def __init__(self, file: SystemFile, name: str, settings: Mapping[str, Any], built: dict[str, Any]) -> None:
        """built: engines and traces made before, kept between experiments of one system."""
        self.variant = variant(file, name, settings)
        scenario = self.variant.scenario
        engines = repr((scenario.model, scenario.hardware, scenario.engine, scenario.cluster, self.variant.prices))
        if engines not in built:
            built[engines] = _priced(build_groups(scenario), self.variant, file)
        self.groups: tuple[Setup, ...] = built[engines]
        load = repr((scenario.workload, scenario.seed, self.variant.mix))
        if load not in built:
            built[load] = load_of(self.variant)
        self.trace: Trace = built[load]

    def run(self, rate: float | None = None) -> Result:
        """rate: the same requests, stretched to so many per second; None: as they come."""
        trace = self.trace if rate is None else transforms.to_rate(self.trace, rate)
        return run(self.variant.scenario, groups=self.groups, trace=trace)


def load_of(chosen: Variant) -> Trace:
    """The requests of a variant; parts of a mixed load come each with their labels and a seed of their own."""
    scenario = chosen.scenario
    if not chosen.mix:
        return make_trace(scenario.workload, scenario.seed)
    traces = []
    for index, (part, described) in enumerate(chosen.mix):
        trace = make_trace(described.workload, scenario.seed + 1_000 * index)
        given = {name: value for name in LABEL_COLUMNS if (value := getattr(part, name, None)) is not None}
        nobody = np.zeros(len(trace), dtype=np.int32)
        labels: dict[str, Any] = {name: Labels(nobody, (value,)) for name, value in given.items()}
        if part.priority is not None:
            trace = replace(trace, priority=np.full(len(trace), part.priority))
        traces.append(replace(trace, **labels))
    return transforms.merge(traces)


def _priced(groups: tuple[Setup, ...], chosen: Variant, file: SystemFile) -> tuple[Setup, ...]:
    """The groups, those with published step times priced by them."""
    names = [group.name for group in groups]
    for name in chosen.prices:
        if name not in names:
            place, remedy = str(file.path), suggestion(name, names, noun="groups")
            raise ScenarioError(f"there is no group of replicas {name!r} to price.", where=place, remedy=remedy)
    out = []
    for group in groups:
        price = chosen.prices.get(group.name)
        if price is not None:
            blocks = group.num_gpu_blocks if price.kv_tokens is None else price.kv_tokens // group.args.block_size + 1
            # A published price answers the same questions as OperatorCost's ``StepCost`` half.
            group = replace(group, cost=PublishedCost(price, group.cost), num_gpu_blocks=blocks)  # type: ignore[arg-type]  # noqa: PLW2901
        out.append(group)
    return tuple(out)


def numbers(result: Result, measure: Measure, earlier: Mapping[str, Any]) -> Numbers:
    """The summary, what is known of the engine, and a measurement's ``values``: formulas over both, the columns of
    requests and what was measured earlier."""
    found: Numbers = dict(result.summary)
    found["setup"] = [_setup(group) for group in result.groups]
    found["kv_utilization"] = kv_utilization(result)
    if not measure.values and not measure.keep:
        return found
    requests = columns(result)
    if any(GAP_EMA in text for text in measure.values.values()):
        requests[GAP_EMA] = worst_gap_ema(result)
    if any(f"requests.{QOE}" in text for text in measure.values.values()):
        requests[QOE] = quality_of_experience(result.records)
    for name in measure.keep:
        if name not in requests:
            raise ScenarioError(f"requests have no {name!r}.", remedy=suggestion(name, requests, noun="columns"))
        found[name] = requests[name]
    scope = dict(earlier) | found | {"requests": requests} | _moved(result)
    for name, text in measure.values.items():
        scope[name] = found[name] = Formula(text).number(scope)
    return found


def _setup(group: Setup) -> dict[str, float | int | None]:
    memory = group.memory
    return {
        "kv_tokens": (group.num_gpu_blocks - 1) * group.args.block_size,
        "kv_bytes_per_token": memory.kv_bytes_per_token,
        "num_gpus": group.num_gpus,
        "replicas": group.replicas,
        "usd_per_hour": group.usd_per_hour,
        "weight_bytes": memory.weight_bytes * group.num_gpus,
        "parameters": parameters(group.model).total,
        "expert_hit_ratio": _expert_hit_ratio(group),
        "flow_tokens_per_s": None if group.nodes is None else group.nodes.flow_tokens_per_s,
    }


def _expert_hit_ratio(group: Setup) -> float | None:
    """Of one sequence; None: all experts are in GPU memory."""
    if group.cost.placed.experts is None:  # a published price knows no layers
        return None
    served = [x for x in group.cost.expert_layers(eplb=False).values() if isinstance(x, ServedExperts)]
    return served[0].hit_ratio(1) if served else None


def kv_utilization(result: Result) -> float | None:
    """Tokens stored over token slots taken, averaged over the time of pure decode steps; None: there were none.

    The rest is waste: slots reserved for tokens that may come, and the open ends of last blocks.
    """
    steps, records = result.records.steps, result.records
    decoding = (steps.num_prefills == 0) & (steps.num_decodes > 0)
    blocks = np.asarray(records.num_gpu_blocks)[steps.replica] - 1
    slots = (blocks - steps.free_blocks) * records.block_size
    seconds = steps.num_steps * steps.step
    tokens = steps.context_tokens + steps.num_decodes * (steps.num_steps - 1) / 2.0
    known = decoding & (slots > 0)
    weight = float((slots * seconds)[known].sum())
    return float((tokens * seconds)[known].sum()) / weight if weight else None


def columns(result: Result) -> dict[str, Any]:
    """One value per request: times in s (NaN: it never happened), lengths in tokens, labels."""
    requests, latency = result.records.requests, result.analysis.latency
    found: dict[str, Any] = {
        "arrival_s": requests.arrival,
        "ttft_s": latency.ttft,
        "tpot_s": latency.tpot,
        "e2e_s": latency.e2e,
        "normalized_s": latency.normalized,
        "queue_s": latency.queue,
        "finish_s": requests.finish,
        "prompt_tokens": requests.prompt_tokens,
        "output_tokens": requests.output_tokens,
        "cached_tokens": requests.cached_tokens,
        "preemptions": requests.preemptions,
        "replica": requests.replica,
        "finished": requests.status == Status.FINISHED,
        "rejected": requests.status == Status.REJECTED,
    }
    if result.trace.turn is not None:
        found["turn"] = result.trace.turn
    if result.trace.session is not None:
        found["session_s"] = session_seconds(result.trace.session, requests.arrival, requests.finish)
    if result.analysis.outcome is not None:
        found["good"] = result.analysis.outcome.good
    for name in LABEL_COLUMNS:
        labels: Labels | None = getattr(result.trace, name)
        if labels is not None:
            found[name] = np.asarray([str(value) for value in labels.values()])
    return found


def session_seconds(session: Ints, arrival: Floats, finish: Floats) -> Floats:
    """(n,) s from a conversation's first arrival to its last finish, on the row that finishes last; NaN on the others,
    without a conversation, and where one of its requests never finished."""
    found = np.full(len(session), np.nan)
    order = np.lexsort((finish, session))  # NaN comes last
    order = order[session[order] >= 0]
    if len(order):
        first = np.concatenate(([True], np.diff(session[order]) > 0))
        starts = np.minimum.reduceat(arrival[order], np.flatnonzero(first))
        last = order[np.append(first[1:], True)]  # noqa: FBT003 - an array's element
        found[last] = finish[last] - starts
    return found


def worst_gap_ema(result: Result, span: int = 16) -> Floats:
    """Per request: the largest value of the moving average of its gaps between tokens, s; NaN without any.

    The average is exponential with weights ``(1 - 2 / (span + 1))^k``, normalised: what DeepSpeed-FastGen's benchmark
    holds against its limit (DeepSpeedExamples, ``plot_effective_throughput.py``: pandas' ``ewm(span=16)``).
    """
    ranges, ends = result.analysis.ranges, result.analysis.clock.ends
    worst = np.full(len(result.records.requests.arrival), np.nan)
    keep = 1.0 - 2.0 / (span + 1.0)
    for first, after in _rows_by_request(ranges.request):
        times = np.concatenate(
            [np.concatenate([[ranges.start[i]], ends[ranges.begin[i] : ranges.end[i]]]) for i in range(first, after)]
        )
        gaps = np.diff(times)
        if len(gaps):
            summed = lfilter([1.0], [1.0, -keep], gaps)
            weight = lfilter([1.0], [1.0, -keep], np.ones(len(gaps)))
            worst[ranges.request[first]] = float((summed / weight).max())
    return worst


def _rows_by_request(request: Ints) -> Iterator[tuple[int, int]]:
    edges = np.concatenate([[0], np.flatnonzero(np.diff(request)) + 1, [len(request)]])
    return zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True) if len(request) else iter(())


def _moved(result: Result) -> dict[str, Any]:
    """Transfers and events of the cluster, where there are any."""
    records = result.records
    events = {"kind": np.asarray([event.kind for event in records.events], dtype=str),
              "time_s": np.asarray([event.time for event in records.events])}  # fmt: skip
    moved = records.transfers
    if moved is None:
        return {"events": events}
    transfers = {"kind": np.asarray(moved.kind, dtype=str), "num_bytes": moved.num_bytes, "start_s": moved.start,
                 "end_s": moved.end, "request": moved.request}  # fmt: skip
    return {"events": events, "transfers": transfers}
