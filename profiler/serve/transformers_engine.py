"""The continuous batching of ``transformers``, fed over time: ``ContinuousBatchingManager.add_request`` as requests
fall due, token times from its own ``record_timestamps``, steps by watching its batch processor.

On the wall clock the manager's own thread serves. On the CPU clock this thread runs the manager's loop body itself:
the same code in the same order, without a second thread whose waits would count.

Its scheduler is first come first served with decodes first and prompts cut to the token budget, as vLLM's; attention on
SDPA packs all sequences of a step into one masked product (``packed_attention`` of the profiler). Weights are random.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Sequence
from typing import Any

import torch

from profiler.measure.clock import Clock
from profiler.measure.devices import Device
from profiler.measure.errors import CampaignError
from profiler.measure.models import DecoderShape
from profiler.serve.record import Served, Step
from profiler.serve.spec import EngineSettings
from profiler.serve.workload import Due

PATIENCE_S = 300.0  # without any finished request


class TransformersEngine:
    """One model, one manager per served list (its cache starts empty each time)."""

    name = "transformers"

    def __init__(self, shape: DecoderShape, device: Device, dtype: Any, settings: EngineSettings) -> None:
        try:
            import transformers
            from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig
            from transformers.generation.configuration_utils import ContinuousBatchingConfig
        except ImportError as error:
            raise CampaignError(
                f"no continuous batching here: {error}", where="engines", remedy="pip install 'transformers>=5'"
            ) from None
        transformers.logging.set_verbosity_error()
        self.settings, self.clock = settings, device.clock
        about = shape.config()
        config = AutoConfig.for_model(**{k: v for k, v in about.items() if k != "architectures"})
        torch.manual_seed(0)
        with device.device:
            self.model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa").eval()
        self.generation = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0, max_new_tokens=1)
        wanted = {
            "page_size": settings.block_size, "block_size": settings.block_size, "num_blocks": settings.num_blocks,
            "max_batch_tokens": settings.max_num_batched_tokens, "max_requests_per_batch": settings.max_num_seqs,
            "allow_block_sharing": False, "use_async_batching": False, "use_cuda_graph": False,
            "auto_switch_to_flash": False, "safety_margin": 0.0,
        }  # fmt: skip
        known = inspect.signature(ContinuousBatchingConfig).parameters
        if "page_size" in known:
            wanted.pop("block_size")
        self.arguments = {k: v for k, v in wanted.items() if k in known}
        self._config = ContinuousBatchingConfig
        self.version = str(transformers.__version__)

    def about(self) -> dict[str, Any]:
        return {
            "version": self.version, "attention": "sdpa, packed with a mask", "async_scheduling": False,
            "cuda_graphs": False, **self.arguments,
        }  # fmt: skip

    def serve(self, due: Sequence[Due]) -> tuple[list[Served], list[Step]]:
        """Requests in order of arrival, open loop."""
        manager = self.model.init_continuous_batching(
            generation_config=self.generation, continuous_batching_config=self._config(**self.arguments)
        )
        watch = _Watch(self.clock)
        times = (self._threaded if self.clock.name == "wall" else self._driven)(manager, watch, due)
        served = []
        for i, d in enumerate(due):
            found = times[str(i)]
            if len(found) != d.output_tokens:
                raise RuntimeError(f"request {i}: {len(found)} tokens instead of {d.output_tokens}")
            first, last = found[0] - watch.start, found[-1] - watch.start
            served.append(Served(d.arrival_s, len(d.prompt), d.output_tokens, first, last))
        return served, watch.steps

    def _threaded(self, manager: Any, watch: _Watch, due: Sequence[Due]) -> dict[str, list[float]]:
        """This thread hands requests in, the manager's thread serves."""
        manager.start()
        try:
            _ready(manager, watch)
            watch.start = start = self.clock.now()
            for i, d in enumerate(due):
                self.clock.wait_until(start + d.arrival_s)
                _add(manager, i, d)
            return _collect(manager, len(due))
        finally:
            manager.stop(block=True)

    def _driven(self, manager: Any, watch: _Watch, due: Sequence[Due]) -> dict[str, list[float]]:
        """This thread runs the loop body of the manager; it never lets it wait for work."""
        with torch.no_grad():
            processor = manager.batch_processor = manager._create_batch_processor()  # noqa: SLF001 - see above
            manager.current_batch = 0
            watch.attach(processor)
            watch.start = start = self.clock.now()
            coming = 0
            while coming < len(due) or processor.has_pending_requests():
                if not processor.has_pending_requests():
                    self.clock.wait_until(start + due[coming].arrival_s)
                while coming < len(due) and start + due[coming].arrival_s <= self.clock.now():
                    _add(manager, coming, due[coming])
                    coming += 1
                manager._generation_loop_body(processor, bootstrapping=False)  # noqa: SLF001 - see above
        return watch.times


def _add(manager: Any, index: int, due: Due) -> None:
    manager.add_request(
        due.prompt.tolist(), request_id=str(index), max_new_tokens=due.output_tokens, record_timestamps=True
    )


def _ready(manager: Any, watch: _Watch) -> None:
    """Until the thread has made its cache, then put the watch on."""
    limit = time.monotonic() + PATIENCE_S
    while manager.batch_processor is None:
        if not manager.is_running() or time.monotonic() > limit:
            raise RuntimeError("the continuous batching of transformers did not start")
        time.sleep(0.01)
    watch.attach(manager.batch_processor)


def _collect(manager: Any, count: int) -> dict[str, list[float]]:
    """Token times of every request, by the engine's own clock (``time.perf_counter``)."""
    found: dict[str, list[float]] = {}
    last = time.monotonic()
    while len(found) < count:
        result = manager.get_result(timeout=0.5)
        if result is not None:
            if result.error:
                raise RuntimeError(f"request {result.request_id} failed: {result.error}")
            found[result.request_id] = list(result.timestamps or [])
            last = time.monotonic()
        elif not manager.is_running() or time.monotonic() - last > PATIENCE_S:
            raise RuntimeError(f"the engine stopped with {count - len(found)} requests unserved")
    return found


class _Watch:
    """Times the batch processor's ``prepare_next_batch`` and ``update_batch``: a step lies between."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.start = clock, 0.0
        self.steps: list[Step] = []
        self.times: dict[str, list[float]] = {}  # of every token, when its step's bookkeeping ended
        self._began, self._prepared = 0.0, 0.0
        self._batch: tuple[int, int, list[tuple[int, int]]] = (0, 0, [])

    def attach(self, processor: Any) -> None:
        prepare, update = processor.prepare_next_batch, processor.update_batch

        def watched_prepare() -> bool:
            self._began = self.clock.now()
            found = bool(prepare())
            if found:
                self._batch = _composition(processor)
                self._prepared = self.clock.now()
            return found

        def watched_update() -> None:
            computed = self.clock.now()
            batch = [(f.state.request_id, f.has_new_token) for f in processor.inputs_and_outputs.requests_in_batch]
            update()
            now = self.clock.now()
            for request, sampled in batch:
                if sampled:
                    self.times.setdefault(request, []).append(now)
            forward = computed - self._prepared
            self.steps.append(Step(self._began - self.start, now - self.start, *self._batch, forward))

        processor.prepare_next_batch, processor.update_batch = watched_prepare, watched_update


def _composition(processor: Any) -> tuple[int, int, list[tuple[int, int]]]:
    """(decodes, their context, chunks) of the batch just prepared; positions are already moved on by then."""
    decodes, context, chunks = 0, 0, []
    for future in processor.inputs_and_outputs.requests_in_batch:
        new, end = future.query_length, future.state.position_offset
        if new == 1 and end > len(future.state.initial_tokens):
            decodes, context = decodes + 1, context + end
        else:
            chunks.append((new, end - new))
    return decodes, context, chunks
