"""What is settled before the first step: which rows are learned from, which are held out, in what batches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from decant.errors import TrainingError
from decant_distill.train.batches import BatchPlan, Ramp, plan_batches
from decant_distill.train.config import TrainConfig
from decant_distill.train.dev import DevSet, hold_out
from decant_distill.train.encode import Example, encode
from decant_distill.train.on_policy import check_on_policy, prompts_with_room
from decant_distill.train.rows import Lesson, Lessons, read_lessons
from decant_distill.train.student import check_vocabulary, context_length, is_encoder_decoder
from decant_distill.train.teacher_scores import open_scores


@dataclass(frozen=True, slots=True)
class Course:
    """Lessons and their examples, in one order; what was dropped; rows to judge by, if any are held out."""

    lessons: Sequence[Lesson]
    examples: Sequence[Example]
    context: int
    dropped: Mapping[str, int]
    dev: DevSet | None
    dev_rows: int
    config: TrainConfig

    @property
    def lengths(self) -> list[int]:
        """The tokens of each row in a batch; on-policy those of its prompt and the longest answer to it."""
        if self.config.objective == "on-policy":
            return prompts_with_room(self.examples, self.config, context=self.context)
        return [len(example.ids) for example in self.examples]

    def plan(self, spares: int = 0) -> BatchPlan:
        """The run's batches, and so many more behind them."""
        config = self.config
        lengths = self.lengths
        budget = config.token_budget or round(config.epochs * sum(lengths))
        return plan_batches(
            lengths,
            token_budget=budget,
            batch_tokens=config.batch_tokens,
            seed=config.seed,
            bucketing=config.length_bucketing,
            ramp=Ramp(config.batch_ramp, round(config.batch_ramp_share * budget)),
            spares=spares,
        )


def plan_course(config: TrainConfig, tokenizer: Any) -> Course:
    """Reads, renders and checks all rows; TrainingError when they cannot be learned from."""
    if config.objective == "on-policy":
        check_on_policy(config, tokenizer)
    context = context_length(config.base, tokenizer)
    lessons, examples, dropped = _readable(config.data, config, tokenizer, context)
    if config.teacher_scores is not None:
        examples = _scored(examples, lessons, config, tokenizer)
    dev: DevSet | None = None
    held: frozenset[int] = frozenset()
    if config.dev_data is not None:
        apart = _readable(config.dev_data, config, tokenizer, context)
        dev = DevSet.of(apart[0], apart[1], config, tokenizer)
    elif config.dev_share:
        held = hold_out(lessons, share=config.dev_share, by=config.dev_by, seed=config.seed)
        if not held or len(held) == len(lessons):
            raise TrainingError(
                f"{config.data}: dev_share {config.dev_share:g} by {config.dev_by} holds out {len(held)} of"
                f" {len(lessons)} rows; choose another share, or name a file with dev_data"
            )
        chosen = sorted(held)
        dev = DevSet.of([lessons[i] for i in chosen], [examples[i] for i in chosen], config, tokenizer)
    kept = [i for i in range(len(lessons)) if i not in held]
    return Course(
        lessons=[lessons[i] for i in kept],
        examples=[examples[i] for i in kept],
        context=context,
        dropped=dropped,
        dev=dev,
        dev_rows=len(dev.examples) if dev else 0,
        config=config,
    )


def _readable(
    path: Path, config: TrainConfig, tokenizer: Any, context: int
) -> tuple[list[Lesson], list[Example], dict[str, int]]:
    """The lessons of a file that fit the context, their examples, and how many were dropped for what."""
    found: Lessons = read_lessons(
        path,
        task=config.task,
        placement=config.placement,
        gold=config.learn_from == "gold",
        weighing=config.weighing,
    )
    examples = encode(
        tokenizer,
        found.kept,
        base=str(config.base),
        answer_weight=config.answer_weight,
        two_sides=is_encoder_decoder(config.base),
    )
    check_vocabulary(config.base, most=max(int(example.ids.max()) for example in examples))
    longest = min(config.max_length or context, context)
    short = [i for i, example in enumerate(examples) if len(example.ids) <= longest]
    overlong = len(examples) - len(short)
    if not short or overlong > config.max_overlong_share * len(examples):
        raise TrainingError(
            f"{path}: {overlong} of {len(examples)} rows are longer than {longest} tokens, more than"
            f" max_overlong_share allows ({config.max_overlong_share:g}); raise max_length or shorten rows"
        )
    dropped = {**found.dropped, **({f"more than {longest} tokens": overlong} if overlong else {})}
    return [found.kept[i] for i in short], [examples[i] for i in short], dropped


def _scored(
    examples: Sequence[Example], lessons: Sequence[Lesson], config: TrainConfig, tokenizer: Any
) -> list[Example]:
    """The examples with what the teacher gave each of their completions' tokens."""
    assert config.teacher_scores is not None
    scores = open_scores(config.teacher_scores)
    if scores.info.kind == "sampled" and config.teacher_temperature != 1:
        raise TrainingError(
            f"{config.teacher_scores}: samples say nothing about another temperature;"
            " leave teacher_temperature at 1, or store top-k scores"
        )
    return scores.attach(examples, lessons, tokenizer=tokenizer, data=config.data)
