"""What our workers add to vLLM's: the marks of a step around `execute_model` and `sample_tokens`."""

from typing import Any

from decant_serve.shards.recording import MakeRecorder, Recording, clock_recorder, start_recording


class RecordingWorker:
    """Stands before one of vLLM's worker classes; on a CPU it needs nothing else."""

    decant_recording: Recording | None = None

    def decant_recorder(self) -> tuple[MakeRecorder, str]:
        """How a step is timed on this device, and the name of that method."""
        return clock_recorder, "clock"

    def init_device(self) -> None:
        """The parallel groups exist from here on."""
        vllm_worker: Any = super()
        vllm_worker.init_device()
        make, method = self.decant_recorder()
        self.decant_recording = start_recording(make, method=method)

    def execute_model(self, scheduler_output: Any) -> Any:
        """One engine step, up to its logits."""
        recording = self.decant_recording
        vllm_worker: Any = super()
        if recording is None:
            return vllm_worker.execute_model(scheduler_output)
        recording.begin(scheduler_output)
        try:
            output = vllm_worker.execute_model(scheduler_output)
        except BaseException:
            recording.abandon()
            raise
        recording.executed(is_over=output is not None)
        return output

    def sample_tokens(self, grammar_output: Any) -> Any:
        """The rest of the step."""
        recording = self.decant_recording
        vllm_worker: Any = super()
        if recording is None:
            return vllm_worker.sample_tokens(grammar_output)
        recording.resume()
        try:
            output = vllm_worker.sample_tokens(grammar_output)
        except BaseException:
            recording.abandon()
            raise
        recording.sampled()
        return output
