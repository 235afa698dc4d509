"""Engine policies, one file each; importing this package registers those that ship."""

from simulator.scheduling import (  # noqa: F401 - imported to register them
    aging,
    andes,
    drr,
    edf,
    exegpt,
    fastgen,
    fastserve,
    infercept,
    loongserve,
    ltr,
    microbatches,
    orca,
    ragcache,
    response_length,
    s3,
    sarathi,
    sglang,
    sjf,
    slices,
    srpt,
    static,
    vllm,
    vllm_v0,
    vtc,
)
from simulator.scheduling.args import EngineArgs
from simulator.scheduling.policy import POLICIES, Policy, resolve
from simulator.scheduling.request import Request
from simulator.scheduling.state import EngineState
from simulator.scheduling.step import DECODE, Step

__all__ = ["DECODE", "POLICIES", "EngineArgs", "EngineState", "Policy", "Request", "Step", "resolve"]
