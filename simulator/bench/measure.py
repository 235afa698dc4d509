"""Runs bench cases, each in a process of its own so that its peak memory is its own.

Counted: arrivals, routing, scheduling, pricing, KV blocks and all records as arrays. A deployment's price tables are
filled the first time a step needs them and kept, as repeated runs and sweeps keep them: the first run of a case,
building the cost model included, is reported apart (``first_cpu_s``), and rates are medians of the runs after it. Left
out: starting Python, reading or generating the trace, and metrics, which are a function of the records.
"""

from __future__ import annotations

import gc
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from simulator import native
from simulator.cluster.yardstick import timeouts_per_cpu_s
from simulator.core.errors import UserError
from simulator.core.names import suggestion

if TYPE_CHECKING:
    from simulator.cluster.plan import ClusterPlan
    from traces.trace import Trace


@dataclass(frozen=True, slots=True)
class Measurement:
    """One case. Rates are medians over the case's repeats (the first run itself where there is but one)."""

    name: str
    requests_per_cpu_s: float
    steps_per_cpu_s: float
    peak_rss_mb: float  # of the whole process, Python and libraries included
    cpu_s: float
    first_cpu_s: float  # of the first run, which builds the cost model and fills its tables
    requests: int
    steps: int
    repeats: int
    simpy_timeouts_per_cpu_s: float  # how fast this machine was just then: SimPy alone in the same process
    core: str  # compiled, or pure Python
    about: str
    against: str | None = None  # a case whose runs came before and after each of this one's
    times_against: float | None = None  # CPU time of a run over the mean of those two; median


def cases() -> Mapping[str, Any]:
    """Name -> case, in the order they run."""
    found: Mapping[str, Any] = yaml.safe_load(files("simulator.bench").joinpath("cases.yaml").read_text("utf-8"))
    return found


def select(names: Sequence[str]) -> list[str]:
    """The named cases, or all. Raises UserError for an unknown one."""
    for name in names:
        if name not in cases():
            raise UserError(f"there is no bench case {name!r}.", remedy=suggestion(name, cases(), noun="cases"))
    return list(names or cases())


def trace_path(name: str, traces: Path | None) -> Path | None:
    """The file a case needs, plain or gzipped: in the folder, or the one beside the repository."""
    needed = cases()[name].get("needs")
    if needed is None:
        return None
    shared = sorted((Path("..") / "shared" / "data" / "traces").glob("*"))
    folders = [traces] if traces else [Path("scenarios") / "data", *shared]
    for folder in folders:
        for suffix in ("", ".gz"):
            if (folder / f"{needed}{suffix}").is_file():
                return folder / f"{needed}{suffix}"
    return None


def measure(names: Sequence[str], traces: Path | None = None) -> Iterator[Measurement | tuple[str, str]]:
    """Measure one case after the other; ``(name, reason)`` for one that cannot run here."""
    for name in names:
        path = trace_path(name, traces)
        if cases()[name].get("needs") and path is None:
            yield name, f"needs {cases()[name]['needs']} (give its folder with --traces)"
            continue
        command = [sys.executable, "-m", "simulator.bench.measure", name, *([str(path)] if path else [])]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own module
        if done.returncode:
            raise RuntimeError(f"bench case {name} failed:\n{done.stderr}")
        yield Measurement(**json.loads(done.stdout))


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A case whose trace is read and whose cluster is built, to be run again and again."""

    trace: Trace
    cluster: ClusterPlan
    seed: int
    building_s: float  # CPU

    def run(self) -> tuple[float, int]:
        """(CPU s, steps)."""
        from simulator.cluster.simulation import Simulation

        gc.collect()
        begin = time.process_time()
        records = Simulation(self.trace, self.cluster, seed=self.seed).run()
        return time.process_time() - begin, int(records.steps.num_steps.sum())


def _prepare(name: str, path: Path | None) -> _Prepared:
    from simulator.scenario.build import build_cluster, build_groups
    from simulator.scenario.load import anchored
    from simulator.scenario.source import Source
    from simulator.scenario.trace import make_trace

    content = dict(cases()[name]["scenario"])
    if path is not None:
        trace_of = {**content["workload"]["trace"], "path": str(path.resolve())}
        content["workload"] = {**content["workload"], "trace": trace_of}
    scenario = anchored(Source(f"bench case {name}", Path(), content))
    trace = make_trace(scenario.workload, scenario.seed)
    begin = time.process_time()
    cluster = build_cluster(scenario, build_groups(scenario))
    return _Prepared(trace, cluster, scenario.seed, time.process_time() - begin)


def run_case(name: str, path: Path | None) -> Measurement:
    """Measure one case in this process."""
    case = cases()[name]
    prepared = _prepare(name, path)
    against = case.get("against")
    other = _prepare(against, path) if against else None
    seconds: list[float] = []
    others: list[float] = []
    yard: list[float] = []
    steps = 0
    for _ in range(case["repeats"]):
        yard.append(timeouts_per_cpu_s())
        if other is not None:
            others.append(other.run()[0])
        taken, steps = prepared.run()
        seconds.append(taken)
        yard.append(timeouts_per_cpu_s())  # before and after: a shared machine changes its pace meanwhile
    first = prepared.building_s + seconds[0]
    cpu_s = statistics.median(seconds[1:] or [first])
    times = None
    if other is not None:
        others.append(other.run()[0])
        times = _times(seconds, others)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)
    return Measurement(
        name=name,
        requests_per_cpu_s=len(prepared.trace) / cpu_s,
        steps_per_cpu_s=steps / cpu_s,
        peak_rss_mb=peak,
        cpu_s=cpu_s,
        first_cpu_s=first,
        requests=len(prepared.trace),
        steps=steps,
        repeats=case["repeats"],
        simpy_timeouts_per_cpu_s=statistics.median(yard),
        core=native.CORE,
        about=case["about"],
        against=against,
        times_against=times,
    )


def _times(seconds: Sequence[float], others: Sequence[float]) -> float:
    """Median of each run's time over the mean of the other case's before and after it; the first runs fill tables and
    are left out where there are more."""
    skip = 1 if len(seconds) > 1 else 0
    around = zip(seconds[skip:], others[skip:-1], others[skip + 1 :], strict=True)
    return statistics.median(2 * this / (before + after) for this, before, after in around)


if __name__ == "__main__":
    result = run_case(sys.argv[1], Path(sys.argv[2]) if len(sys.argv) > 2 else None)
    print(json.dumps(asdict(result)))  # noqa: T201 - read by ``measure``
