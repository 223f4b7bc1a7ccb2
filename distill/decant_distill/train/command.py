"""`decant train`: teaches a student, and records what it says afterwards for all later stages to repeat."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from decant.errors import TrainingError
from decant.files import sha256_file, sha256_path
from decant.golden import GoldenSet
from decant_distill.train.batches import BatchPlan, plan_batches
from decant_distill.train.checkpoints import Checkpoints, RunProgress
from decant_distill.train.config import TrainConfig
from decant_distill.train.encode import Example, encode
from decant_distill.train.failures import explained
from decant_distill.train.loop import fit
from decant_distill.train.lr_sweep import settle_learning_rate
from decant_distill.train.objective import objective_of
from decant_distill.train.observe import record_golden
from decant_distill.train.publish import publish_student
from decant_distill.train.rows import Lesson, read_lessons
from decant_distill.train.student import (
    build_student,
    check_vocabulary,
    context_length,
    device_name,
    is_encoder_decoder,
    load_tokenizer,
    require_training_stack,
)
from decant_distill.train.teacher_scores import TEACHER_FILE, open_scores

CONFIG = TrainConfig

_CURVE_POINTS = 100


@dataclass(frozen=True, slots=True)
class _Course:
    """What is settled before the first step: lessons and their examples, in one order, and the plan."""

    lessons: Sequence[Lesson]
    examples: Sequence[Example]
    plan: BatchPlan
    context: int
    dropped: Mapping[str, int]


def run(config: TrainConfig) -> None:
    """Trains the student and writes its artifact; a killed run goes on from its last checkpoint."""
    require_training_stack(quantized=config.method == "qlora")
    import torch

    if config.threads is not None:
        torch.set_num_threads(config.threads)
    tokenizer = load_tokenizer(config.base)
    course = _prepare(config, tokenizer)
    base_sha256 = sha256_path(config.base)
    checkpoints = Checkpoints.beside(config.output)
    checkpoints.claim(_identity(config, base_sha256))
    objective = objective_of(config)
    with explained(config.output.absolute().parent):
        config, sweep = settle_learning_rate(
            config, course.examples, objective, steps=len(course.plan.batches), folder=checkpoints.folder
        )
        model = build_student(config)
        outcome = fit(
            model,
            course.examples,
            course.plan,
            config=config,
            checkpoints=checkpoints,
            objective=objective,
        )
        publish_student(
            model,
            tokenizer,
            config=config,
            base_sha256=base_sha256,
            golden=_golden(model, tokenizer, course, config),
            training={**_training(model, course, outcome), **sweep},
        )
    checkpoints.remove()
    print(_summary(course, outcome, config.output))


def _prepare(config: TrainConfig, tokenizer: Any) -> _Course:
    lessons = read_lessons(
        config.data,
        task=config.task,
        placement=config.placement,
        gold=config.learn_from == "gold",
        weighing=config.weighing,
    )
    examples = _examples(config, tokenizer, lessons.kept)
    context = context_length(config.base, tokenizer)
    longest = min(config.max_length or context, context)
    short = [i for i, example in enumerate(examples) if len(example.ids) <= longest]
    overlong = len(examples) - len(short)
    if not short or overlong > config.max_overlong_share * len(examples):
        raise TrainingError(
            f"{config.data}: {overlong} of {len(examples)} rows are longer than {longest} tokens, more than"
            f" max_overlong_share allows ({config.max_overlong_share:g}); raise max_length or shorten rows"
        )
    dropped = {**lessons.dropped, **({f"more than {longest} tokens": overlong} if overlong else {})}
    lengths = [len(examples[i].ids) for i in short]
    plan = plan_batches(
        lengths,
        token_budget=config.token_budget or round(config.epochs * sum(lengths)),
        batch_tokens=config.batch_tokens,
        seed=config.seed,
        bucketing=config.length_bucketing,
    )
    return _Course(
        lessons=[lessons.kept[i] for i in short],
        examples=[examples[i] for i in short],
        plan=plan,
        context=context,
        dropped=dropped,
    )


def _examples(config: TrainConfig, tokenizer: Any, lessons: Sequence[Lesson]) -> list[Example]:
    """Every lesson's tokens with their weights, and the teacher's scores where there are some."""
    examples = encode(
        tokenizer,
        lessons,
        base=str(config.base),
        answer_weight=config.answer_weight,
        two_sides=is_encoder_decoder(config.base),
    )
    check_vocabulary(config.base, most=max(int(example.ids.max()) for example in examples))
    if config.teacher_scores is None:
        return examples
    scores = open_scores(config.teacher_scores)
    if scores.info.kind == "sampled" and config.teacher_temperature != 1:
        raise TrainingError(
            f"{config.teacher_scores}: samples say nothing about another temperature;"
            " leave teacher_temperature at 1, or store top-k scores"
        )
    return scores.attach(examples, lessons, tokenizer=tokenizer, data=config.data)


def _identity(config: TrainConfig, base_sha256: str) -> dict[str, Any]:
    """What decides the run: a checkpoint of another one is not gone on with."""
    scores = config.teacher_scores
    taught = {} if scores is None else {"teacher_scores": sha256_file(scores / TEACHER_FILE)}
    return {**config.identity(), "base": base_sha256, "data": sha256_file(config.data), **taught}


def _golden(model: Any, tokenizer: Any, course: _Course, config: TrainConfig) -> GoldenSet:
    """What the student says to prompts spread evenly over the lengths, shortest and longest among them."""
    by_length = sorted(range(len(course.lessons)), key=lambda i: (len(course.examples[i].ids), i))
    count = min(config.golden_rows, len(by_length))
    chosen = [by_length[round(k * (len(by_length) - 1) / max(count - 1, 1))] for k in range(count)]
    room = course.context - max(course.examples[i].prompt_tokens for i in chosen)
    return record_golden(
        model,
        tokenizer,
        [course.lessons[i].prompt for i in chosen],
        stage="trained",
        max_tokens=min(config.golden_tokens, room),
    )


def _training(model: Any, course: _Course, outcome: RunProgress) -> dict[str, Any]:
    import torch

    return {
        "tokens": course.plan.total_tokens,
        "padded_tokens": course.plan.padded_tokens,
        "steps": outcome.step,
        "wall_s": round(outcome.wall_s, 3),
        "resumed": outcome.resumed,
        "device": device_name(),
        "threads": torch.get_num_threads(),
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "rows": {"trained": len(course.lessons), "dropped": dict(course.dropped)},
        "loss_curve": _curve(course.plan, outcome.losses),
    }


def _curve(plan: BatchPlan, losses: Sequence[float]) -> list[dict[str, float]]:
    """The mean loss of each of about a hundred stretches of the run, with the tokens spent at its end."""
    stretch = max(1, -(-len(losses) // _CURVE_POINTS))
    points: list[dict[str, float]] = []
    for start in range(0, len(losses), stretch):
        part = losses[start : start + stretch]
        step = start + len(part)
        points.append({"step": step, "tokens": plan.tokens_before(step), "loss": sum(part) / len(part)})
    return points


def _summary(course: _Course, outcome: RunProgress, output: Path) -> str:
    curve = _curve(course.plan, outcome.losses)
    dropped = "".join(f"; dropped {count} rows with {reason}" for reason, count in course.dropped.items())
    return (
        f"{output}: {len(course.lessons)} rows, {outcome.step} steps, {course.plan.total_tokens:,} tokens in"
        f" {outcome.wall_s:.0f} s, loss {curve[0]['loss']:.3f} -> {curve[-1]['loss']:.3f}{dropped}"
    )
