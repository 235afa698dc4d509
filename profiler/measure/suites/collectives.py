"""Collectives of torch.distributed: one process per GPU (nccl), or a few on the CPU (gloo)."""

from __future__ import annotations

import os
import socket
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from profiler.measure.devices import Effort, Timing
from profiler.measure.errors import Unmeasurable
from profiler.measure.suites.case import Case, Context


def build(point: Mapping[str, Any], ctx: Context) -> Case:
    """The timing spawns ``ranks`` processes; rank 0's clock counts, each repeat as slow as its slowest rank."""
    ranks, size = point["ranks"], point["size_bytes"]
    if ctx.device.is_cuda and torch.cuda.device_count() < ranks:
        raise Unmeasurable(f"{torch.cuda.device_count()} GPU here, {ranks} needed")
    if not ctx.device.is_cuda and point["op"] in ("reduce_scatter", "all_to_all"):
        raise Unmeasurable("gloo has no such collective on the CPU")

    def measure(effort: Effort) -> Timing:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "seconds.npy"
            arguments = (ranks, ctx.device.kind, point["op"], size, effort, str(file), _free_port())
            torch.multiprocessing.spawn(_rank, arguments, nprocs=ranks)
            found = np.load(file)
        p10, p90 = np.percentile(found, [10, 90])
        return Timing(statistics.median(found.tolist()), float(p10), float(p90), len(found), "perf_counter")

    return Case(lambda _: None, None, bytes=float(size), time=measure)


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def _rank(rank: int, ranks: int, kind: str, op: str, size: int, effort: Effort, file: str, port: int) -> None:  # noqa: PLR0917 - what spawn passes
    os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})
    torch.distributed.init_process_group("nccl" if kind == "cuda" else "gloo", rank=rank, world_size=ranks)
    device = torch.device(kind, rank) if kind == "cuda" else torch.device("cpu")
    if kind == "cuda":
        torch.cuda.set_device(rank)
    dtype, width = (torch.bfloat16, 2) if kind == "cuda" else (torch.float32, 4)
    elements = max(ranks, size // width // ranks * ranks)
    whole = torch.full((elements,), float(rank + 1), device=device, dtype=dtype)
    part = torch.full((elements // ranks,), float(rank + 1), device=device, dtype=dtype)
    calls = {
        "all_reduce": lambda: torch.distributed.all_reduce(whole),
        "all_gather": lambda: torch.distributed.all_gather_into_tensor(whole, part),
        "reduce_scatter": lambda: torch.distributed.reduce_scatter_tensor(part, whole),
        "all_to_all": lambda: torch.distributed.all_to_all_single(whole, whole.clone()),
    }
    _check(op, calls[op], whole, part, ranks)
    found = []
    for i in range(effort.warmup + max(effort.min_repeats, 20)):
        torch.distributed.barrier()
        start = time.perf_counter()
        calls[op]()
        if kind == "cuda":
            torch.cuda.synchronize()
        took = torch.tensor([time.perf_counter() - start], device=device)
        torch.distributed.all_reduce(took, op=torch.distributed.ReduceOp.MAX)
        if i >= effort.warmup:
            found.append(float(took))
    if rank == 0:
        np.save(file, np.array(found))
    torch.distributed.destroy_process_group()


def _check(op: str, call: Any, whole: Any, part: Any, ranks: int) -> None:
    """A wrong sum or order stops the point."""
    call()
    total = ranks * (ranks + 1) / 2
    wrong = (
        (op == "all_reduce" and float(whole[0]) != total)
        or (op == "all_gather" and float(whole[-1]) != ranks)
        or (op == "reduce_scatter" and float(part[0]) != total)
        or (op == "all_to_all" and float(whole[-1]) != ranks)
    )
    if wrong:
        raise RuntimeError(f"{op} gave a wrong result")
    whole.fill_(0.0)
