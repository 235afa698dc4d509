"""What of a model and its KV cache lies outside the GPU's memory: the shares, and where they fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from simulator.core.errors import HardwareError, ModelError
from simulator.core.units import format_bytes
from simulator.hardware.host import Host
from simulator.model.architecture import Model

Attender = Literal["gpu", "cpu", "cpu_fp32"]


@dataclass(frozen=True, slots=True)
class Offload:
    """Shares of the layers' weights and of the KV cache in the host's memory and on its disk; the rest is on the GPU.

    attention: who decodes over KV in the host's memory: the GPU, to which it is copied, or the CPU beside it, which may
    have to widen keys and values to fp32 first.
    cpu_share: of the weights in the host's memory, those that the CPU multiplies where they lie; the others are copied.
    overlap: copies and the CPU's products run beside the GPU's work, else one after the other.
    activated: neurons of the MLPs that a token needs, as a share; hot: those of them that are not the CPU's (None: as
    many as chance puts there). MLPs are then what leaves the GPU first, and neurons of several tokens are taken to be
    independent.
    """

    host: Host | None = None
    weights_host: float = 0.0
    weights_disk: float = 0.0
    kv_host: float = 0.0
    kv_disk: float = 0.0
    attention: Attender = "gpu"
    cpu_share: float = 0.0
    overlap: bool = True
    activated: float = 1.0
    hot: float | None = None

    @property
    def streamed(self) -> float:
        """Share of the weights that a step copies to the GPU."""
        return self.weights_host * (1.0 - self.cpu_share) + self.weights_disk

    @property
    def on_cpu(self) -> float:
        """Share of the weights that the CPU multiplies."""
        return self.weights_host * self.cpu_share

    @property
    def sparse(self) -> bool:
        """Whether neurons are skipped."""
        return self.activated < 1.0

    def by_gpu(self, tokens: int, on_cpu: float) -> float:
        """Share of weights that the GPU multiplies for so many tokens: its neurons that one of them needs.

        on_cpu: share of those weights that are the CPU's.
        """
        hot = 1.0 - on_cpu if self.hot is None else self.hot
        return _touched(1.0 - on_cpu, self.activated * hot, tokens)

    def by_cpu(self, tokens: int, on_cpu: float) -> float:
        """The same of the CPU."""
        hot = 1.0 - on_cpu if self.hot is None else self.hot
        return _touched(on_cpu, self.activated * (1.0 - hot), tokens)

    def weights_saved(self, layer_bytes: float, num_layers: int) -> float:
        """Bytes of GPU memory that offloaded weights free: all of them, less two layers of what is copied in turn."""
        away = (self.weights_host + self.weights_disk) * layer_bytes
        return max(away - 2.0 * self.streamed * layer_bytes / num_layers, 0.0)

    def kv_on_gpu(self, index_share: float) -> float:
        """Share of a block's bytes in GPU memory. index_share: of its bytes, those that stay there."""
        return 1.0 - (self.kv_host + self.kv_disk) * (1.0 - index_share)

    def blocks(self, block_bytes: float, layer_bytes: float, index_share: float) -> int | None:
        """KV blocks that host and disk hold beside the weights of one rank; None: they hold none, and set no limit.

        block_bytes, layer_bytes: of one rank. Raises HardwareError where the weights alone do not fit.
        """
        found: list[int] = []
        host = self.host
        memory, disk = (0, 0.0) if host is None else (host.memory_bytes, host.disk_bytes)
        for name, room, weights, kv in (
            ("memory", float(memory), self.weights_host, self.kv_host),
            ("disk", disk, self.weights_disk, self.kv_disk),
        ):
            if host is None and name == "memory" and not kv:
                continue  # nobody said how much there is
            left = room - weights * layer_bytes
            if left < 0:
                asked = format_bytes(weights * layer_bytes)
                raise HardwareError(
                    f"{asked} of weights exceed the {format_bytes(room)} of the host's {name}",
                    where="offload",
                    remedy="Offload less, or name another hardware.host.",
                )
            if kv:
                found.append(int(left // (block_bytes * kv * (1.0 - index_share))))
        return min(found, default=None)


def _touched(share: float, needed: float, tokens: int) -> float:
    """Of ``share`` of the neurons, those that at least one of ``tokens`` needs, each needing ``needed`` of all."""
    if share <= 0.0:
        return 0.0
    each = min(needed / share, 1.0)
    return share * (1.0 - (1.0 - each) ** tokens)


def check_offload(model: Model, o: Offload, *, ranks: int, tp: int) -> None:
    """ranks: GPUs of the replica, tp of which share each layer. Raises ModelError where it does not fit the model."""
    for name, shares in (("weights", (o.weights_host, o.weights_disk)), ("kv", (o.kv_host, o.kv_disk))):
        if sum(shares) > 1.0 + 1e-9:
            raise ModelError(
                f"{name}_host and {name}_disk are {sum(shares):g} of the whole",
                where="offload",
                remedy="Give shares that leave the GPU 0 or more.",
            )
    needs_host = o.kv_host or o.cpu_share or o.attention != "gpu" or o.weights_disk or o.kv_disk
    if needs_host and o.host is None:
        raise ModelError("its host is not known", where="offload", remedy="Name it: hardware.host.")
    if (o.weights_disk or o.kv_disk) and o.host is not None and not o.host.disk_bytes:
        raise ModelError(f"{o.host.name} has no disk", where="offload", remedy="Name another hardware.host.")
    if o.activated < 1.0 and (o.cpu_share < 1.0 or o.weights_disk):
        raise ModelError(
            "copied weights are copied whole, whichever neurons are activated",
            where="offload",
            remedy="Set cpu_share: 1 and weights_disk: 0, or leave activated out.",
        )
    if model.is_moe or ranks != tp:
        raise ModelError(
            "offloading is of dense layers on tensor-parallel ranks",
            where="offload",
            remedy="Use engine.experts for experts in host memory; leave pipeline and data-parallel sizes at 1.",
        )
