"""vLLM's GPU worker with its steps recorded: `--worker-cls decant_serve.shards.gpu_worker.GpuWorker`."""

from typing import Any

# Only vLLM's own processes import this module: the class has to stand at its top.
from vllm.v1.worker.gpu_worker import Worker  # pyright: ignore[reportMissingImports, reportUnknownVariableType]

from decant_serve.shards.cuda_events import event_recorder
from decant_serve.shards.recording import MakeRecorder
from decant_serve.shards.worker import RecordingWorker


class GpuWorker(RecordingWorker, Worker):  # pyright: ignore[reportUntypedBaseClass]
    """CUDA events, read once the device has passed them; nothing is ever synchronised."""

    def decant_recorder(self) -> tuple[MakeRecorder, str]:
        """Graphs replay without Python, so that under them only whole steps can be timed."""
        vllm_worker: Any = self
        eager = bool(vllm_worker.vllm_config.model_config.enforce_eager)
        return event_recorder, "cuda_events" if eager else "cuda_events_whole_step"
