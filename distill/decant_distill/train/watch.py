"""What is looked at while a run goes on: its loss and gradients, held-out rows, and a request to stop."""

import contextlib
import math
import signal
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import TYPE_CHECKING, Any

from decant.errors import TrainingError
from decant.progress import Progress
from decant_distill.train.batches import BatchPlan
from decant_distill.train.checkpoints import Checkpoints, Judgement, RunProgress, best_of
from decant_distill.train.dev import has_stalled
from decant_distill.train.events import EventLog
from decant_distill.train.ranks import Ranks
from decant_distill.train.spikes import Spike, find_spike
from decant_distill.train.trackers import Tracker

if TYPE_CHECKING:
    from torch import Tensor

    from decant_distill.train.config import TrainConfig


class SpikeFound(Exception):
    """Ends an attempt whose last steps are a spike."""

    def __init__(self, spike: Spike, so_far: RunProgress) -> None:
        super().__init__(spike.reason)
        self.spike = spike
        self.so_far = so_far


class RunStopped(TrainingError):
    """A run that was asked to stop (SIGTERM) and did, with a checkpoint to go on from: exit code 143."""

    exit_code = 128 + signal.SIGTERM


@dataclass(slots=True)
class StopRequest:
    """Whether the process was asked to end."""

    asked: bool = False


@contextlib.contextmanager
def heeding_sigterm() -> Generator[StopRequest]:
    """Within it SIGTERM is noted instead of ending the process; a second one ends it at once."""
    request = StopRequest()

    def note(number: int, frame: FrameType | None) -> None:
        del frame
        request.asked = True
        signal.signal(number, signal.SIG_DFL)

    before = signal.signal(signal.SIGTERM, note)
    try:
        yield request
    finally:
        signal.signal(signal.SIGTERM, before)


@dataclass(slots=True)
class Series:
    """One value per step taken: loss, gradient norm, learning rate, seconds; and the judgements."""

    losses: list[float]
    norms: list[float]
    rates: list[float]
    seconds: list[float]
    judgements: list[Judgement]

    @classmethod
    def of(cls, progress: RunProgress) -> "Series":
        """The series as a checkpoint knew them."""
        return cls(
            list(progress.losses),
            list(progress.norms),
            list(progress.rates),
            list(progress.seconds),
            list(progress.judgements),
        )


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What an attempt reports to and asks: all of it outlives the attempt."""

    config: "TrainConfig"
    checkpoints: Checkpoints
    ranks: Ranks
    events: EventLog
    request: StopRequest
    judge: Callable[[Any, int], Judgement] | None
    keep_best: Callable[[Any, int], None]
    report: Callable[[RunProgress, BatchPlan], None]

    @classmethod
    def quiet(cls, config: "TrainConfig", checkpoints: Checkpoints) -> "Surroundings":
        """Those of a trial in this process alone, which nobody watches, judges or stops."""
        return cls(
            config=config,
            checkpoints=checkpoints,
            ranks=Ranks(),
            events=EventLog(None),
            request=StopRequest(),
            judge=None,
            keep_best=lambda _model, _step: None,
            report=lambda _progress, _plan: None,
        )


@dataclass(slots=True)
class Watch:
    """Follows one attempt: shows progress, finds spikes, judges, seals checkpoints, and says when to stop."""

    around: Surroundings
    plan: BatchPlan
    progress: Progress
    trackers: Sequence[Tracker]
    earlier: RunProgress
    rewinds: int
    back: int
    series: Series
    started_s: float = field(default_factory=time.monotonic)
    step_began_s: float = field(default_factory=time.monotonic)
    stopped: bool = False
    unread: "Tensor | None" = None

    def loss(self, mean: "Tensor", logits: "Tensor", *, mass: float) -> "Tensor":
        """This process's part of the batch's loss, of weight `mass`."""
        loss = self.around.ranks.share(mean, logits, mass=mass)
        # Read with the gradient: a GPU would wait for it here, before its backward pass has begun.
        self.unread = loss.detach()
        return loss

    def gradient(self, norm: float) -> None:
        """Takes the loss and gradient norm of a step before a weight moves; both must be finite."""
        assert self.unread is not None
        ranks = self.around.ranks
        value = ranks.total(self.unread.item()) / ranks.world
        self.series.losses.append(value)
        if not math.isfinite(value):
            self._found(Spike(len(self.series.losses) - 1, f"loss {value}"))
        self.series.norms.append(norm)
        if not math.isfinite(norm):
            self._found(Spike(len(self.series.norms) - 1, f"gradient norm {norm}"))

    def step_done(self, model: Any, rate: float) -> None:
        """Counts the step, looks for a spike, and judges the student when that is due."""
        series = self.series
        series.rates.append(rate)
        now_s = time.monotonic()
        series.seconds.append(now_s - self.step_began_s)
        self.step_began_s = now_s
        step = len(series.losses)
        assert len(series.norms) == len(series.rates) == step
        if self.around.config.spike_rewind and (spike := find_spike(series.losses, series.norms)):
            self._found(spike)
        self._show(step)
        if self.around.judge is not None and self._is_due(step):
            self._judge(model, step)
            self.step_began_s = time.monotonic()

    def should_stop(self) -> bool:
        """Whether the attempt ends behind this step: the student has stalled, or somebody asked."""
        if has_stalled(self.series.judgements, self.around.config.stop_after):
            return True
        self.stopped = self.around.ranks.total(float(self.around.request.asked)) > 0
        return self.stopped

    def saved(self) -> None:
        """Declares the checkpoint that was just written whole."""
        self.around.ranks.wait()
        if self.around.ranks.writes:
            progress = self.so_far()
            self.around.checkpoints.seal(progress, back=self.back)
            self.around.report(progress, self.plan)
        self.around.ranks.wait()
        self.step_began_s = time.monotonic()

    def so_far(self) -> RunProgress:
        """The run up to the last step taken."""
        series = self.series
        return RunProgress(
            step=len(series.rates),
            wall_s=self.earlier.wall_s + time.monotonic() - self.started_s,
            losses=tuple(series.losses),
            norms=tuple(series.norms),
            rates=tuple(series.rates),
            seconds=tuple(round(value, 5) for value in series.seconds),
            judgements=tuple(series.judgements),
            resumed=self.earlier.resumed,
            rewinds=self.rewinds,
        )

    def _found(self, spike: Spike) -> None:
        if not self.around.config.spike_rewind or (spike.step == 0 and self.rewinds == 0):
            raise TrainingError(
                f"the {spike.reason.rpartition(' ')[0]} became {spike.reason.rpartition(' ')[2]} at step"
                f" {spike.step + 1} of {self.plan.steps}; lower learning_rate or raise warmup_ratio"
            )
        raise SpikeFound(spike, self.so_far())

    def _is_due(self, step: int) -> bool:
        return step % self.around.config.eval_every_steps == 0 or step == self.plan.steps

    def _judge(self, model: Any, step: int) -> None:
        assert self.around.judge is not None
        judgement = self.around.judge(model, step)
        self.series.judgements.append(judgement)
        self.around.events.add("judged", **judgement.model_dump(exclude_none=True))
        if best_of(self.series.judgements) == judgement:
            self.around.keep_best(model, step)
        values = {"dev_loss": judgement.loss}
        if judgement.accuracy is not None:
            values["dev_accuracy"] = judgement.accuracy
        for tracker in self.trackers:
            tracker.log(step, values)

    def _show(self, step: int) -> None:
        series, tokens = self.series, self.plan.tokens[step - 1]
        self.progress.advance(tokens, loss=f"{series.losses[-1]:.3f}", memory=_memory())
        values = {
            "loss": series.losses[-1],
            "gradient_norm": series.norms[-1],
            "learning_rate": series.rates[-1],
            "tokens_per_s": tokens / max(series.seconds[-1], 1e-9),
        }
        for tracker in self.trackers:
            tracker.log(step, values)


def peak_bytes() -> int:
    """The most memory in use so far: of the GPU where there is one, else of the process."""
    import resource

    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _memory() -> str:
    return f"{peak_bytes() / 1e9:.2f} GB"
