"""A progress bar on standard error: simulated time, requests, rate and ETA. Silent when that is not a terminal."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from simulator.cli.console import err
from simulator.core.units import format_seconds

if TYPE_CHECKING:  # they load scipy, which `windtunnel run` can do without
    from simulator.planning.outcome import Status as PlanStatus
    from simulator.planning.sweep import Status as SweepStatus
    from simulator.survey.runner import Status as SurveyStatus

MIN_INTERVAL_S = 0.1


class SimulationProgress:
    """Call it with (simulated seconds, requests arrived, requests in the trace)."""

    def __init__(self, title: str) -> None:
        console = err()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("[dim]{task.fields[simulated]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._title = title
        self._task: TaskID | None = None
        self._begin = self._last = 0.0

    def __enter__(self) -> Self:
        self._bar.start()
        self._task = self._bar.add_task(self._title, total=None, simulated="")
        self._begin = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def __call__(self, simulated_s: float, arrived: int, total: int) -> None:
        now = time.perf_counter()
        if self._task is None or now - self._last < MIN_INTERVAL_S:
            return
        self._last = now
        rate = arrived / max(now - self._begin, 1e-9)
        text = f"{format_seconds(simulated_s)} simulated, {rate:,.0f} requests/s"
        self._bar.update(self._task, completed=arrived, total=total, simulated=text)


class SurveyProgress:
    """Call it with a survey's ``Status``. A bar on a terminal, elsewhere one line per finished system."""

    def __init__(self) -> None:
        self._console = err()
        self._bar = Progress(
            TextColumn("survey"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("[dim]{task.fields[running]}"),
            TextColumn("{task.fields[eta]}"),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task: TaskID | None = None
        self._finished = -1

    def __enter__(self) -> Self:
        self._bar.start()
        self._task = self._bar.add_task("survey", total=None, running="", eta="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def __call__(self, status: SurveyStatus) -> None:
        eta = "" if status.eta_s is None else f"{format_seconds(status.eta_s)} left"
        running = ", ".join(status.running)
        if self._task is not None and self._console.is_terminal:
            self._bar.update(self._task, completed=status.finished, total=status.total, running=running, eta=eta)
        elif status.finished != self._finished:
            self._finished = status.finished
            after = format_seconds(status.elapsed_s)
            said = f"{status.finished} of {status.total} systems after {after}, {eta or 'time left unknown'}: {running}"
            self._console.print(said, markup=False, soft_wrap=True)


class SweepProgress:
    """Call it with a sweep's ``Status``. A bar on a terminal, elsewhere a line now and then."""

    LINE_EVERY_S = 15.0

    def __init__(self, title: str) -> None:
        self._console = err()
        self._bar = Progress(
            TextColumn(title),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("[dim]{task.fields[said]}"),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task: TaskID | None = None
        self._last = time.perf_counter()

    def __enter__(self) -> Self:
        self._bar.start()
        self._task = self._bar.add_task("sweep", total=None, said="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def __call__(self, status: SweepStatus) -> None:
        left = "" if status.eta_s is None else f"{format_seconds(status.eta_s)} left"
        kept = f"{status.reused} from before" if status.reused else ""
        bad = f"{status.invalid} invalid" if status.invalid else ""
        said = ", ".join(part for part in (kept, bad, left) if part)
        if self._task is not None and self._console.is_terminal:
            self._bar.update(self._task, completed=status.finished, total=status.total, said=said)
        elif time.perf_counter() - self._last > self.LINE_EVERY_S:
            self._last = time.perf_counter()
            text = f"{status.finished} of {status.total} runs" + (f" ({said})" if said else "")
            self._console.print(text, markup=False, soft_wrap=True)


class PlanProgress:
    """Call it with a plan's ``Status``. A bar on a terminal, elsewhere a line now and then."""

    LINE_EVERY_S = 15.0

    def __init__(self) -> None:
        self._console = err()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("[dim]{task.fields[said]}"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task: TaskID | None = None
        self._phase = ""
        self._last = time.perf_counter()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def tick(self, phase: str, finished: int, total: int) -> None:
        """Of an optimiser, which does not count runs."""
        self._show(phase, finished, total, "")

    def __call__(self, status: PlanStatus) -> None:
        self._show(status.phase, status.finished, status.total, f"{status.runs} runs")

    def _show(self, phase: str, finished: int, total: int, said: str) -> None:
        if self._console.is_terminal:
            if self._task is None or phase != self._phase:
                if self._task is not None:
                    self._bar.remove_task(self._task)
                self._task, self._phase = self._bar.add_task(phase, total=total, said=said), phase
            self._bar.update(self._task, completed=finished, total=total, said=said)
        elif time.perf_counter() - self._last > self.LINE_EVERY_S:
            self._last = time.perf_counter()
            text = f"{phase}: {finished} of {total}" + (f", {said}" if said else "")
            self._console.print(text, markup=False, soft_wrap=True)
