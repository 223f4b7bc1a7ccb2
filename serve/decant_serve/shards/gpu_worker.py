"""vLLM's GPU worker with its steps recorded: `--worker-cls decant_serve.shards.gpu_worker.GpuWorker`."""

from typing import Any

# Only vLLM's own processes import this module: the class has to stand at its top.
from vllm.v1.worker.gpu_worker import Worker  # pyright: ignore[reportMissingImports, reportUnknownVariableType]

from decant_serve.shards.cuda_events import event_method
from decant_serve.shards.recording import Method
from decant_serve.shards.worker import RecordingWorker


class GpuWorker(RecordingWorker, Worker):  # pyright: ignore[reportUntypedBaseClass]
    """CUDA events, read once the device has passed them; nothing is ever synchronised."""

    def decant_method(self) -> Method:
        """Collectives are told apart where Python issues each of them, in one thread and one stream."""
        vllm_worker: Any = self
        config = vllm_worker.vllm_config
        eager = bool(config.model_config.enforce_eager)
        return event_method(splits=eager and not config.parallel_config.use_ubatching)
