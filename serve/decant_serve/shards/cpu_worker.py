"""vLLM's CPU worker with its steps recorded: `--worker-cls decant_serve.shards.cpu_worker.CpuWorker`."""

# Only vLLM's own processes import this module: the class has to stand at its top.
from vllm.v1.worker.cpu_worker import CPUWorker  # pyright: ignore[reportMissingImports, reportUnknownVariableType]

from decant_serve.shards.worker import RecordingWorker


class CpuWorker(RecordingWorker, CPUWorker):  # pyright: ignore[reportUntypedBaseClass]
    """Exact: the host computes, so its clock is right around the forward and every collective."""
