"""Rows held out from training, what the student makes of them, and when it has stopped getting better."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from decant.task import TaskConfig
from decant_distill.curate_split import Member, held_out
from decant_distill.train.checkpoints import Judgement, best_of
from decant_distill.train.dev_scores import mean_loss, score
from decant_distill.train.encode import Example
from decant_distill.train.objective import Objective, objective_of
from decant_distill.train.rows import Lesson

if TYPE_CHECKING:
    from decant_distill.train.config import TrainConfig


@dataclass(frozen=True, slots=True)
class DevSet:
    """Rows to judge a student by. `by_answer` asks for greedy answers too, where a lesson has one."""

    lessons: tuple[Lesson, ...]
    examples: tuple[Example, ...]
    objective: Objective
    task: TaskConfig
    tokenizer: Any
    by_answer: bool

    @classmethod
    def of(
        cls, lessons: Sequence[Lesson], examples: Sequence[Example], config: "TrainConfig", tokenizer: Any
    ) -> "DevSet":
        """At most `dev_rows` of these rows, spread evenly over the file."""
        count = min(config.dev_rows, len(examples))
        chosen = [round(k * (len(examples) - 1) / max(count - 1, 1)) for k in range(count)]
        return cls(
            lessons=tuple(lessons[i] for i in chosen),
            examples=tuple(examples[i] for i in chosen),
            # Judged by the labels alone: a teacher's scores are a means.
            objective=replace(objective_of(config), teacher_weight=0.0),
            task=config.task,
            tokenizer=tokenizer,
            by_answer=config.dev_metric == "accuracy",
        )

    def judge(self, model: Any, *, step: int) -> Judgement:
        """The mean loss of the completions' tokens, and the share of right greedy answers if asked for.

        The model is left in the mode it was in, and no random number is drawn: a run that is judged learns
        the same as one that is not.
        """
        mode = model.training
        right = self._right(model) if self.by_answer else ()
        loss = mean_loss(model, self.examples, self.objective)
        model.train(mode)
        return Judgement(step=step, loss=loss, accuracy=sum(right) / len(right) if right else None)

    def outcomes(self, model: Any) -> list[float]:
        """Of every row, higher being better: 1 for a right answer and else 0, or minus its mean loss."""
        if self.by_answer:
            return [float(right) for right in self._right(model)]
        return [-mean_loss(model, [example], self.objective) for example in self.examples]

    def _right(self, model: Any) -> tuple[bool, ...]:
        rows = [
            (lesson, example)
            for lesson, example in zip(self.lessons, self.examples, strict=True)
            if lesson.answer is not None
        ]
        lessons, examples = [lesson for lesson, _ in rows], [example for _, example in rows]
        found = score(model, self.tokenizer, lessons, examples, objective=self.objective, task=self.task)
        return found.correct


def hold_out(
    lessons: Sequence[Lesson], *, share: float, by: Literal["prompt", "group"], seed: int
) -> frozenset[int]:
    """The numbers of about `share` of the lessons; those of one prompt, or of one group, stay together."""
    # A row's first lesson has its own prompt; a rationale task asks another way.
    asked = {lesson.line: str(lesson.prompt) for lesson in reversed(lessons)}
    members = [
        Member(
            line=number,
            group=lesson.group if by == "group" and lesson.group is not None else asked[lesson.line],
            stratum="",
        )
        for number, lesson in enumerate(lessons)
    ]
    return held_out(members, share=share, seed=seed)


def has_stalled(judgements: Sequence[Judgement], stop_after: int | None) -> bool:
    """Whether the last `stop_after` judgements were all no better than one before them."""
    best = best_of(judgements)
    if best is None or stop_after is None:
        return False
    return sum(one.step > best.step for one in judgements) >= stop_after
