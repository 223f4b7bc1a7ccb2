"""What our workers add to vLLM's: the marks of a step around `execute_model` and `sample_tokens`."""

from typing import Any

from decant_serve.shards.recording import CLOCK, Method, Recording, start_recording


class RecordingWorker:
    """Stands before one of vLLM's worker classes; on a CPU it needs nothing else."""

    decant_recording: Recording | None = None

    def decant_method(self) -> Method:
        """How a step is timed on this device."""
        return CLOCK

    def compile_or_warm_up_model(self) -> Any:
        """The last call before requests come, and the one that captures CUDA graphs.

        Recording begins after it: on a device, asking an event whether it has passed (`query`), even from
        another thread, spoils a capture that is under way.
        """
        vllm_worker: Any = super()
        spent = vllm_worker.compile_or_warm_up_model()
        if self.decant_recording is None:
            self.decant_recording = start_recording(self.decant_method())
        return spent

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
