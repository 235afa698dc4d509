"""The device under test: what it is, how it is timed, what it draws."""

from __future__ import annotations

import contextlib
import gc
import os
import platform
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from profiler.measure.clock import CLOCKS, Clock
from profiler.measure.errors import CampaignError

LEFT_BEHIND_BYTES = 1 << 30
NVML_CLOCK_SM, NVML_CLOCK_MEMORY = 1, 2  # nvml.h


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one call: median, 10th and 90th percentile over ``repeats``."""

    median_s: float
    p10_s: float
    p90_s: float
    repeats: int
    method: str


@dataclass(frozen=True, slots=True)
class Effort:
    """How long a point is timed: at least ``min_repeats`` calls, then until ``target_s`` or ``max_repeats``."""

    warmup: int = 2
    min_repeats: int = 7
    max_repeats: int = 100
    target_s: float = 0.2


class Device:
    """A CUDA GPU or the CPU."""

    def __init__(self, kind: str, *, threads: int | None = None, clock: str = "wall") -> None:
        if kind == "cuda" and not torch.cuda.is_available():
            raise CampaignError("torch sees no CUDA GPU here", where="device", remedy="Use --device cpu --quick.")
        if threads is not None:
            torch.set_num_threads(threads)
        if clock == "cpu" and (kind != "cpu" or threads != 1):
            raise CampaignError(
                "the cpu clock counts one core", where="clock", remedy="Use it with device: cpu and threads: 1."
            )
        self.clock: Clock = CLOCKS[clock]()
        self._method = {"wall": "perf_counter", "cpu": "cpu_time"}[clock]
        self.kind, self.device = kind, torch.device(kind)
        self.meter = Meter(kind)

    @property
    def is_cuda(self) -> bool:
        return self.kind == "cuda"

    @property
    def cache_bytes(self) -> int:
        """L2 of the GPU; on the CPU two megabytes stand for a core's own caches."""
        if self.is_cuda:
            return int(getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 0)) or 64 << 20
        return 2 << 20

    def synchronize(self) -> None:
        if self.is_cuda:
            torch.cuda.synchronize()

    def free(self) -> None:
        if self.is_cuda:
            with contextlib.suppress(Exception):  # a device that is lost says so in ``alive``
                torch.cuda.empty_cache()

    def tidy(self) -> None:
        """Collects what the point before left in reference cycles, where that is much."""
        if self.is_cuda and torch.cuda.memory_allocated() > LEFT_BEHIND_BYTES:
            gc.collect()

    def alive(self) -> bool:
        """Whether it still computes: after an illegal access, say, a CUDA process never does again."""
        try:
            self.synchronize()
            return float(torch.ones(2, device=self.device).sum()) == 2.0
        except Exception:  # noqa: BLE001 - whatever it says, it is no use any more
            return False

    def yardstick(self) -> float:
        """Seconds of one small fixed product over 64 MiB of weights in turn: how fast this machine is just now.

        Written beside measurements taken at different times, so that a machine that others slowed down shows. A
        reading, never a correction.
        """
        x = torch.ones(16, 1024, device=self.device)
        weights = [torch.ones(4096, 1024, device=self.device) for _ in range(4)]
        effort = Effort(warmup=4, min_repeats=24, max_repeats=24, target_s=0.0)
        return self.time(lambda i: torch.nn.functional.linear(x, weights[i % 4]), effort).median_s

    def describe(self) -> dict[str, Any]:
        if not self.is_cuda:
            return {
                "type": "cpu", "name": cpu_name(), "count": 1, "memory_bytes": _host_memory(),
                "threads": torch.get_num_threads(), "cores": os.cpu_count(), "capability": cpu_capability(),
            }  # fmt: skip
        p = torch.cuda.get_device_properties(0)
        return {
            "type": "cuda", "name": p.name, "count": torch.cuda.device_count(), "memory_bytes": p.total_memory,
            "multiprocessors": p.multi_processor_count, "capability": f"{p.major}.{p.minor}",
            "l2_bytes": self.cache_bytes, "driver": self.meter.driver(),
        }  # fmt: skip

    def versions(self) -> dict[str, Any]:
        cudnn = torch.backends.cudnn.version() if self.is_cuda else None
        return {
            "python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__,
            "cuda": torch.version.cuda, "cudnn": cudnn, "system": f"{platform.system()} {platform.release()}",
        }  # fmt: skip

    def time(self, call: Callable[[int], object], effort: Effort) -> Timing:
        """Time ``call(i)``; ``i`` counts up, so that the call can rotate its buffers."""
        for i in range(effort.warmup):
            call(i)
        self.synchronize()
        return self._time_cuda(call, effort) if self.is_cuda else self._time_cpu(call, effort)

    def _time_cpu(self, call: Callable[[int], object], effort: Effort) -> Timing:
        found: list[float] = []
        spent = 0.0
        while len(found) < effort.max_repeats and (len(found) < effort.min_repeats or spent < effort.target_s):
            start = self.clock.now()
            call(len(found))
            found.append(self.clock.now() - start)
            spent += found[-1]
        return summary(found, self._method)

    def _time_cuda(self, call: Callable[[int], object], effort: Effort) -> Timing:
        """Events around every call. A sleep kernel goes first, so that the queue is full and launches are hidden."""
        found: list[float] = []
        batch = effort.min_repeats
        while len(found) < effort.max_repeats:
            events = [tuple(torch.cuda.Event(enable_timing=True) for _ in range(2)) for _ in range(batch)]
            torch.cuda._sleep(int(2e9 * min(0.05, 150e-6 * batch)))  # noqa: SLF001 - torch's own tests hide launches so
            for start, end in events:
                start.record()
                call(len(found))
                end.record()
                found.append(0.0)
            torch.cuda.synchronize()
            found[-batch:] = [start.elapsed_time(end) * 1e-3 for start, end in events]
            if sum(found) >= effort.target_s:
                break
            mean = max(sum(found) / len(found), 1e-6)
            batch = max(1, min(effort.max_repeats - len(found), int((effort.target_s - sum(found)) / mean) + 1, 200))
        return summary(found, "events")

    def wall(self, call: Callable[[int], object], effort: Effort) -> Timing:
        """Seconds on the host's clock until the device has finished: what an engine's loop sees."""
        for i in range(effort.warmup):
            call(i)
        self.synchronize()
        found: list[float] = []
        while len(found) < effort.max_repeats and (len(found) < effort.min_repeats or sum(found) < effort.target_s):
            start = self.clock.now()
            call(len(found))
            self.synchronize()
            found.append(self.clock.now() - start)
        return summary(found, self._method)

    @contextlib.contextmanager
    def peak_memory(self) -> Iterator[Callable[[], int | None]]:
        """Yields a function: bytes allocated at the peak above what there was; None on the CPU."""
        if not self.is_cuda:
            yield lambda: None
            return
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        yield lambda: int(torch.cuda.max_memory_allocated() - before)


def summary(seconds: list[float], method: str) -> Timing:
    if len(seconds) < 2:
        return Timing(seconds[0], seconds[0], seconds[0], 1, method)
    p10, p90 = np.percentile(seconds, [10, 90])
    return Timing(statistics.median(seconds), float(p10), float(p90), len(seconds), method)


class Meter:
    """Clock, temperature, power and energy through NVML where it answers; None elsewhere."""

    def __init__(self, kind: str) -> None:
        self._nvml: Any = None
        self._handle: Any = None
        if kind == "cuda":
            with contextlib.suppress(Exception):  # no pynvml, no driver library, no permission: no readings
                import pynvml

                pynvml.nvmlInit()
                self._nvml, self._handle = pynvml, pynvml.nvmlDeviceGetHandleByIndex(torch.cuda.current_device())

    def _ask(self, name: str, *args: Any) -> Any:
        if self._nvml is None:
            return None
        try:
            return getattr(self._nvml, name)(*args)
        except Exception:  # noqa: BLE001 - a reading this GPU does not give
            return None

    def driver(self) -> str | None:
        text = self._ask("nvmlSystemGetDriverVersion")
        return text.decode() if isinstance(text, bytes) else text

    def clock_mhz(self) -> Any:
        return self._ask("nvmlDeviceGetClockInfo", self._handle, NVML_CLOCK_SM)

    def temperature_c(self) -> Any:
        return self._ask("nvmlDeviceGetTemperature", self._handle, 0)

    def energy_j(self) -> float | None:
        """Since the driver was loaded."""
        found = self._ask("nvmlDeviceGetTotalEnergyConsumption", self._handle)
        return None if found is None else found / 1000

    def state(self) -> dict[str, Any]:
        memory = self._ask("nvmlDeviceGetClockInfo", self._handle, NVML_CLOCK_MEMORY)
        load = os.getloadavg()[0] if sys.platform != "win32" else None
        return {
            "sm_mhz": self.clock_mhz(), "memory_mhz": memory, "temperature_c": self.temperature_c(),
            "host_load": None if load is None else round(load, 2),
        }  # fmt: skip


def cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def cpu_capability() -> str:
    get = getattr(getattr(torch.backends, "cpu", None), "get_cpu_capability", None)
    return str(get()) if get else "unknown"


def _host_memory() -> int | None:
    with contextlib.suppress(ValueError, OSError, AttributeError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None
