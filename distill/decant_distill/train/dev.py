"""Rows held out from training, what the student makes of them, and when it has stopped getting better."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from decant.task import parse_response
from decant_distill.curate_split import Member, held_out
from decant_distill.train.batches import plan_batches
from decant_distill.train.checkpoints import Judgement, best_of
from decant_distill.train.encode import Example
from decant_distill.train.objective import completion_loss, pad_batch
from decant_distill.train.observe import greedy_ids
from decant_distill.train.rows import Lesson

if TYPE_CHECKING:
    from decant_distill.train.config import TrainConfig

_IGNORED = -100


@dataclass(frozen=True, slots=True)
class DevSet:
    """Rows to judge a student by: batches of examples for its loss, and what it should answer."""

    batches: tuple[tuple[Example, ...], ...]
    answers: tuple[tuple[Example, str], ...]
    marker: str
    tokenizer: Any

    @classmethod
    def of(
        cls, lessons: Sequence[Lesson], examples: Sequence[Example], config: "TrainConfig", tokenizer: Any
    ) -> "DevSet":
        """At most `dev_rows` of these rows, spread evenly over the file."""
        count = min(config.dev_rows, len(examples))
        chosen = [round(k * (len(examples) - 1) / max(count - 1, 1)) for k in range(count)]
        rows = [examples[i] for i in chosen]
        lengths = [len(row.ids) for row in rows]
        plan = plan_batches(
            lengths, token_budget=sum(lengths), batch_tokens=config.batch_tokens, seed=config.seed
        )
        marker = config.task.answer_marker
        expected = [parse_response(lessons[i].completion, marker=marker).answer or "" for i in chosen]
        return cls(
            batches=tuple(tuple(rows[row] for row in batch) for batch in plan.batches),
            answers=tuple(zip(rows, expected, strict=True)) if config.dev_metric == "accuracy" else (),
            marker=marker,
            tokenizer=tokenizer,
        )

    def judge(self, model: Any, *, step: int) -> Judgement:
        """The mean loss of the completions' tokens, and the share of right greedy answers if asked for.

        The model is left in the mode it was in, and no random number is drawn: a run that is judged learns
        the same as one that is not.
        """
        import torch

        mode = model.training
        model.eval()
        with torch.no_grad():
            loss = self._loss(model)
            right = [self._is_right(model, example, answer) for example, answer in self.answers]
        model.train(mode)
        return Judgement(step=step, loss=loss, accuracy=sum(right) / len(right) if right else None)

    def outcomes(self, model: Any) -> list[float]:
        """Of every row, higher being better: 1 for a right answer and else 0, or minus its mean loss."""
        import torch

        model.eval()
        with torch.no_grad():
            if self.answers:
                return [float(self._is_right(model, *row)) for row in self.answers]
            rows = [example for batch in self.batches for example in batch]
            return [-_loss_of(model, [row])[0] for row in rows]

    def _loss(self, model: Any) -> float:
        found = [_loss_of(model, rows) for rows in self.batches]
        return sum(loss * tokens for loss, tokens in found) / sum(tokens for _, tokens in found)

    def _is_right(self, model: Any, example: Example, answer: str) -> bool:
        """Whether the answer read from at most twice the label's tokens is the label's."""
        prompt = example.ids[: example.prompt_tokens].tolist()
        room = 2 * (len(example.ids) - example.prompt_tokens)
        ids = greedy_ids(model, prompt, end=self.tokenizer.eos_token_id, max_tokens=room)
        said = parse_response(self.tokenizer.decode(ids, skip_special_tokens=True), marker=self.marker).answer
        return said is not None and said.strip() == answer.strip()


def _loss_of(model: Any, rows: Sequence[Example]) -> tuple[float, int]:
    """The mean loss of a batch's completions, and how many tokens they have."""
    batch = {
        name: value.to(model.device) if name != "logits_to_keep" else value
        for name, value in pad_batch(rows).items()
    }
    labels = batch.pop("labels")
    loss = completion_loss(model(**batch).logits, labels).item()
    return loss, int((labels != _IGNORED).sum())


def hold_out(
    lessons: Sequence[Lesson], *, share: float, by: Literal["prompt", "group"], seed: int
) -> frozenset[int]:
    """The numbers of about `share` of the lessons; those of one prompt, or of one group, stay together."""
    members = [
        Member(
            line=number,
            group=lesson.group if by == "group" and lesson.group is not None else str(lesson.prompt),
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
