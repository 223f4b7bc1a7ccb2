"""Held-out rows for merging: how much worse than its adapter a merged model is, and when that is too much."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from decant.errors import ArtifactError, ParityError
from decant.stats import PairedDifference, paired_difference
from decant.task import TaskConfig
from decant_distill.train.config import TrainConfig
from decant_distill.train.dev_scores import DevScore
from decant_distill.train.encode import Example, encode
from decant_distill.train.objective import Objective
from decant_distill.train.rows import Lesson, read_lessons
from decant_distill.train.student import decoder_start, is_encoder_decoder


@dataclass(frozen=True, slots=True)
class DevRows:
    """Held-out rows as the adapter was taught its own, ready for a model to be scored on."""

    lessons: Sequence[Lesson]
    examples: Sequence[Example]
    tokenizer: Any
    objective: Objective
    task: TaskConfig


@dataclass(frozen=True, slots=True)
class DevVerdict:
    """A merged model against its adapter, row by row; `loss` is how much higher its own is, in nats."""

    loss: float
    accuracy: PairedDifference
    most_loss: float

    @property
    def is_worse(self) -> bool:
        """Whether its loss rose by more than may be, or it is shown to answer fewer rows right."""
        return self.loss > self.most_loss or self.accuracy.interval.high < 0

    def raise_if_worse(self, adapter: Path, *, route: str) -> None:
        """ParityError with the numbers."""
        if self.is_worse:
            raise ParityError(
                f"stage merged: its best route ({route}) is worse than {adapter} on {self.accuracy.n}"
                f" held-out rows: loss {self.loss:+.4f} nats (at most {self.most_loss:g}), accuracy"
                f" {100 * self.accuracy.mean:+.1f} points; serve the adapter as it is, merge with"
                " a wider dtype, or raise max_dev_loss"
            )

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {"loss": self.loss, "accuracy": asdict(self.accuracy)}


def load_dev_rows(path: Path, *, base: Path, tokenizer: Any, recipe: Mapping[str, Any], most: int) -> DevRows:
    """The first `most` rows of a curated file, composed as the adapter's recipe says."""
    try:
        trained = TrainConfig.model_validate(recipe)
    except ValidationError:
        raise ArtifactError("the adapter's manifest has no readable recipe; train it again") from None
    # Of multitask the answer's task is what is served.
    placement = "answer_only" if trained.placement == "multitask" else trained.placement
    lessons = read_lessons(path, task=trained.task, placement=placement).kept[:most]
    two_sides = is_encoder_decoder(base)
    return DevRows(
        lessons=lessons,
        examples=encode(tokenizer, lessons, base=str(base), two_sides=two_sides),
        tokenizer=tokenizer,
        objective=Objective(decoder_start=decoder_start(base)),
        task=trained.task,
    )


def judge(adapter: DevScore, merged: DevScore, *, most_loss: float) -> DevVerdict:
    """Compares the two on the same rows."""
    before, after = ([float(right) for right in scored.correct] for scored in (adapter, merged))
    return DevVerdict(
        loss=merged.loss - adapter.loss,
        accuracy=paired_difference(before, after, seed=0),
        most_loss=most_loss,
    )
