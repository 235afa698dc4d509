"""Runs on a Ray cluster: this package travels there, results stream back to the process that asked for them."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import simulator
import traces
from simulator.core.errors import UserError
from simulator.planning.pool import TICK_S, Executor, Processes

T = TypeVar("T")
R = TypeVar("R")

AHEAD = 2  # runs asked for per processor: the next one waits on its node while a result travels
CONNECT_S = 10.0
ATTEMPTS = 4  # of a run whose process or node dies: it is pure, so it may be made again
_END: Any = object()


@dataclass(frozen=True)
class Ray:
    """``address``: of a cluster (``host:6379``, ``ray://host:10001``, ``auto``); None: that of ``RAY_ADDRESS``, else
    one that lives in this machine as long as it is needed. ``jobs``: runs at the same time, None: one per processor.

    A cluster that is connected to already (``ray.init``) is used as it is, if it can import this package.
    """

    address: str | None = None
    jobs: int | None = None

    def spread(
        self, work: Callable[[T], R], tasks: Iterable[T], *, tick: Callable[[], None] = lambda: None
    ) -> Iterator[tuple[T, R]]:
        """``(task, work(task))`` as they finish, and drawn as places become free, as in ``pool.spread``.

        A run whose node dies is made again elsewhere. Raises what ``work`` raises, and UserError without Ray, without
        the cluster, or when a run's process dies again and again.
        """
        ray = _ray()
        with redirect_stdout(sys.stderr), self._connected(ray):  # what Ray says is not our output
            yield from self._spread(ray, work, tasks, tick)

    @contextmanager
    def _connected(self, ray: Any) -> Iterator[None]:
        if ray.is_initialized():
            yield
            return
        address = self.address or os.environ.get("RAY_ADDRESS")
        here = None if address else self.jobs
        try:
            _answers(address)
            ray.init(
                address or "local",
                num_cpus=here,
                log_to_driver=False,
                logging_level="ERROR",
                runtime_env={"py_modules": [str(Path(str(m.__file__)).parent) for m in (simulator, traces)]},
            )
        except (ConnectionError, OSError, RuntimeError, ValueError) as error:
            where = f"--on ray:{address}" if address else "--on ray"
            remedy = "Is the cluster running, with the versions of Python and Ray of this machine?"
            raise UserError(f"cannot be reached or started: {error}.", where=where, remedy=remedy) from error
        try:
            yield
        finally:
            ray.shutdown()

    def _spread(
        self, ray: Any, work: Callable[[T], R], tasks: Iterable[T], tick: Callable[[], None]
    ) -> Iterator[tuple[T, R]]:
        remote = ray.remote(num_cpus=1, max_retries=ATTEMPTS - 1)(work)
        waiting: dict[Any, T] = {}
        source, more = iter(tasks), True
        try:
            while more or waiting:
                most = self.jobs or AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)))  # nodes come and go
                while more and len(waiting) < most:
                    task = next(source, _END)
                    if task is _END:
                        more = False
                    else:
                        waiting[remote.remote(task)] = task
                tick()
                done, _ = ray.wait(list(waiting), timeout=TICK_S) if waiting else ([], [])
                for reference in done:
                    yield waiting.pop(reference), _result(ray, reference)
        finally:
            for reference in waiting:
                ray.cancel(reference, force=True)


def executor(on: str, jobs: int | None) -> Executor:
    """``processes``, ``ray`` or ``ray:ADDRESS``. jobs: at the same time; None: one, or all that the cluster has.

    Raises UserError when it is none of these.
    """
    kind, colon, address = on.partition(":")
    if kind == "ray" and bool(address) == bool(colon):
        return Ray(address or None, jobs)
    if on != "processes":
        remedy = "Give processes, ray, or ray:ADDRESS as in ray:auto, ray:host:6379 or ray:ray://host:10001."
        raise UserError(f"{on!r} is no place to run on.", where="--on", remedy=remedy)
    return Processes(jobs or 1)


def _answers(address: str | None) -> None:
    """Raises OSError, ValueError where nobody listens: Ray itself would wait for minutes."""
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if colon:
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # what Ray 2.5x asks for; no run sees a GPU
    try:
        import ray
    except ImportError:
        remedy = "pip install 'windtunnel[ray]'"
        raise UserError("Ray is not installed.", where="--on ray", remedy=remedy) from None
    return ray


def _result(ray: Any, reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise
    except ray.exceptions.RayError as error:
        raise UserError(
            f"a run ended without a result: {str(error).strip().splitlines()[0]}",
            where="--on ray",
            remedy="Run again: what has finished is kept. With fewer --jobs, if memory was short.",
        ) from None
