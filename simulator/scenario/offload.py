"""Weights and KV outside the GPU's memory: the fields."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from simulator.cost.hosted import Offload
from simulator.cost.offload import balanced_cpu_share
from simulator.hardware.gpu import Gpu
from simulator.hardware.host import Host
from simulator.scenario.spec import Bool, Fraction, spec


@spec
class OffloadSpec:
    """Weights and KV in the host's memory and on its disk, copied over PCIe or used by the CPU; the rest is on the GPU.

    A step goes through the layers once for all its requests (FlexGen's block schedule); with small batches that is the
    row schedule of ZeRO-Inference.
    """

    weights_host: Fraction = 0.0
    """Share of the layers' weights in the host's memory."""
    weights_disk: Fraction = 0.0
    """Share of them on its disk."""
    kv_host: Fraction = 0.0
    """Share of the KV cache in the host's memory."""
    kv_disk: Fraction = 0.0
    """Share of it on its disk."""
    attention: Literal["gpu", "cpu", "cpu_fp32"] = "gpu"
    """Who decodes over the KV in the host's memory: the GPU, to which it is copied, or the CPU; cpu_fp32: which widens
    keys and values first, as FlexGen's does."""
    cpu_share: Fraction | Literal["balanced"] = 0.0
    """Share of the host's weights that the CPU multiplies; the rest is copied. balanced: both take as long."""
    overlap: Bool = True
    """Copies and the CPU's products run beside the GPU's work, else one after the other."""
    activated: Annotated[float, Field(strict=True, gt=0, le=1, allow_inf_nan=False)] = 1.0
    """Share of the neurons that a token needs (PowerInfer); the others are not computed."""
    hot: Fraction | None = None
    """Of those, the share that the GPU computes; null: as many as chance puts there."""

    def build(self, server: Host | None = None, gpu: Gpu | None = None, ranks: int = 1) -> Offload:
        given = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "cpu_share"}
        share = self.cpu_share
        if share == "balanced":
            share = 0.0 if server is None or gpu is None else balanced_cpu_share(server, gpu, ranks)
        return Offload(host=server, cpu_share=share, **given)
