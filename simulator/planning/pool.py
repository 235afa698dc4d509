"""Where many runs are made: processes of this machine. One job runs in this process, so that a debugger and Ctrl-C see
it. ``on_ray.py`` is the same on a Ray cluster."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from simulator.core.errors import UserError

T = TypeVar("T")
R = TypeVar("R")

TICK_S = 0.5


class Executor(Protocol):
    """Makes runs somewhere."""

    def spread(
        self, work: Callable[[T], R], tasks: Iterable[T], *, tick: Callable[[], None] = lambda: None
    ) -> Iterator[tuple[T, R]]:
        """As the function of that name."""
        ...


@dataclass(frozen=True)
class Processes:
    """``jobs`` processes of this machine."""

    jobs: int

    def spread(
        self, work: Callable[[T], R], tasks: Iterable[T], *, tick: Callable[[], None] = lambda: None
    ) -> Iterator[tuple[T, R]]:
        return spread(work, tasks, self.jobs, tick=tick)


def processors() -> int:
    """Those this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def spread(
    work: Callable[[T], R], tasks: Iterable[T], jobs: int, *, tick: Callable[[], None] = lambda: None
) -> Iterator[tuple[T, R]]:
    """``(task, work(task))`` as they finish. Tasks are drawn only as processes become free, so that a generator of
    tasks may look at the results so far.

    work: a function of a module, and tasks and results picklable, when jobs > 1. tick: called now and then.
    Raises what ``work`` raises; tasks in flight are then given up. Raises UserError when a process dies.
    """
    if jobs <= 1:
        for task in tasks:
            tick()
            yield task, work(task)
        return
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(jobs, mp_context=context, initializer=_start, initargs=(os.getpid(),))
    waiting: dict[Future[R], T] = {}
    source, more = iter(tasks), True
    try:
        while more or waiting:
            while more and len(waiting) < jobs:
                task = next(source, _END)
                if task is _END:
                    more = False
                else:
                    waiting[executor.submit(work, task)] = task
            tick()
            done, _ = wait(waiting, timeout=TICK_S, return_when=FIRST_COMPLETED)
            for future in done:
                yield waiting.pop(future), future.result()
    except BrokenProcessPool:
        raise UserError(
            "a process ended without a result (out of memory, or killed).",
            remedy="Run again, with fewer --jobs if memory was short.",
        ) from None
    finally:
        for process in list((getattr(executor, "_processes", None) or {}).values()) if waiting else ():
            process.terminate()
        executor.shutdown(wait=True, cancel_futures=True)


_END: Any = object()


def _start(parent: int) -> None:
    """In a new process: Ctrl-C is the parent's business, and nobody outlives the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class Eta:
    """Time left, from the pace of what has been done here."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self._begin = total, 0, time.perf_counter()

    @property
    def elapsed_s(self) -> float:
        return time.perf_counter() - self._begin

    @property
    def left_s(self) -> float | None:
        """None: nothing to tell it from yet."""
        return self.elapsed_s / self.done * (self.total - self.done) if self.done else None
