"""`decant train`: teaches a student, and records what it says afterwards for all later stages to repeat."""

from typing import Any

from decant.errors import TrainingError
from decant.files import sha256_file, sha256_path, write_text
from decant.golden import GoldenSet
from decant_distill.train.batches import BatchPlan
from decant_distill.train.checkpoints import Checkpoints, RunProgress
from decant_distill.train.config import TrainConfig
from decant_distill.train.course import Course, plan_course
from decant_distill.train.events import EventLog
from decant_distill.train.failures import explained
from decant_distill.train.loop import Outcome, fit
from decant_distill.train.lr_sweep import settle_learning_rate
from decant_distill.train.memory import dry_run
from decant_distill.train.objective import objective_of
from decant_distill.train.observe import record_golden
from decant_distill.train.on_policy import OnPolicy, load_on_policy
from decant_distill.train.publish import publish_student
from decant_distill.train.ranks import Ranks
from decant_distill.train.student import (
    build_student,
    device_name,
    load_tokenizer,
    require_training_stack,
)
from decant_distill.train.teacher_scores import TEACHER_FILE
from decant_distill.train.trackers import require_trackers
from decant_distill.train.training_page import training_page
from decant_distill.train.watch import StopRequest, Surroundings, heeding_sigterm, peak_bytes
from decant_distill.train.weights import (
    best_weights,
    drop_weights,
    keep_weights,
    learned_weights,
    put_weights,
)

CONFIG = TrainConfig

_CURVE_POINTS = 100
_EVENTS = "events.jsonl"
_PAGE = "training.html"


def run(config: TrainConfig) -> None:
    """Trains the student and writes its artifact; a killed run goes on from its last checkpoint."""
    require_training_stack(quantized=config.method == "qlora")
    if config.dry_run:
        print(dry_run(config))
        return
    require_trackers(config.report_to)
    _set_threads(config.threads)
    ranks = _ranks()
    tokenizer = load_tokenizer(config.base)
    course = plan_course(config, tokenizer)
    base_sha256 = sha256_path(config.base)
    checkpoints = Checkpoints.beside(config.output)
    if ranks.writes:
        checkpoints.claim(_identity(config, base_sha256, ranks))
    with explained(config.output.absolute().parent):
        objective = objective_of(config)
        config, sweep = settle_learning_rate(
            config, course.examples, objective, steps=course.plan().steps, folder=checkpoints.folder
        )
        model = build_student(config)
        with heeding_sigterm() as request:
            around = _surroundings(config, course, checkpoints, ranks, request)
            learned = _on_policy(config, tokenizer, course) or objective
            outcome = fit(model, course.examples, course.plan, objective=learned, around=around)
        model = _final(model, outcome, around)
        if not ranks.writes:
            return
        around.events.add("done", step=outcome.progress.step)
        publish_student(
            model,
            tokenizer,
            config=config,
            base_sha256=base_sha256,
            golden=_golden(model, tokenizer, course, config),
            training={**_training(model, course, outcome), **sweep},
            beside=_beside(outcome, around),
        )
    checkpoints.remove()
    print(_summary(course, outcome, config))


def _ranks() -> Ranks:
    """This process's place; TrainingError where accelerate would not do what its config says."""
    import torch

    ranks = Ranks.from_environment()
    if ranks.sharded and not torch.cuda.is_available():
        raise TrainingError(
            "accelerate spreads weights over GPUs only; on a CPU each process would hold all of them: use the"
            " DDP config there"
        )
    return ranks


def _set_threads(threads: int | None) -> None:
    import torch

    if threads is not None:
        torch.set_num_threads(threads)


def _on_policy(config: TrainConfig, tokenizer: Any, course: Course) -> OnPolicy | None:
    if config.objective != "on-policy":
        return None
    return load_on_policy(config, tokenizer, course.lessons)


def _identity(config: TrainConfig, base_sha256: str, ranks: Ranks) -> dict[str, Any]:
    """What must be equal for a checkpoint to be gone on from."""
    identity = {**config.identity(), "base": base_sha256, "data": sha256_file(config.data)}
    if config.dev_data is not None:
        identity["dev_data"] = sha256_file(config.dev_data)
    if config.teacher_scores is not None:
        identity["teacher_scores"] = sha256_file(config.teacher_scores / TEACHER_FILE)
    if config.teacher is not None:
        identity["teacher"] = sha256_path(config.teacher)
    if ranks.world > 1:
        identity["processes"] = ranks.world
    return identity


def _beside(outcome: Outcome, around: Surroundings) -> dict[str, str]:
    """The page and the events of the run, by file name."""
    return {
        _PAGE: _page(around.config, outcome.progress, outcome.plan, around.events),
        _EVENTS: (around.checkpoints.folder / _EVENTS).read_text(encoding="utf-8"),
    }


def _surroundings(
    config: TrainConfig, course: Course, checkpoints: Checkpoints, ranks: Ranks, request: StopRequest
) -> Surroundings:
    events = EventLog(checkpoints.folder / _EVENTS if ranks.writes else None)
    dev = course.dev

    def keep_best(model: Any, step: int) -> None:
        weights = learned_weights(model)
        if ranks.writes:
            keep_weights(checkpoints.folder, step, weights)

    def report(progress: RunProgress, plan: BatchPlan) -> None:
        if progress.judgements:
            drop_weights(checkpoints.folder, keep=checkpoints.best_steps(progress))
        write_text(checkpoints.folder / _PAGE, _page(config, progress, plan, events))

    return Surroundings(
        config=config,
        checkpoints=checkpoints,
        ranks=ranks,
        events=events,
        request=request,
        judge=None if dev is None else (lambda model, step: dev.judge(model, step=step)),
        keep_best=keep_best,
        report=report,
    )


def _final(model: Any, outcome: Outcome, around: Surroundings) -> Any:
    """The student as it is published: with its best weights, and in one piece."""
    if around.ranks.sharded:
        weights = learned_weights(model)
        if not around.ranks.writes:
            return model
        model = build_student(around.config)
        put_weights(model, weights)
    if outcome.best_step is not None and around.ranks.writes:
        put_weights(model, best_weights(around.checkpoints.folder, outcome.best_step))
    return model


def _golden(model: Any, tokenizer: Any, course: Course, config: TrainConfig) -> GoldenSet:
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


def _training(model: Any, course: Course, outcome: Outcome) -> dict[str, Any]:
    import torch

    progress, plan = outcome.progress, outcome.plan
    record: dict[str, Any] = {
        "tokens": plan.tokens_before(progress.step),
        "padded_tokens": sum(plan.padded[: progress.step]),
        "steps": progress.step,
        "wall_s": round(progress.wall_s, 3),
        "resumed": progress.resumed,
        "device": device_name(),
        "processes": Ranks.from_environment().world,
        "threads": torch.get_num_threads(),
        "peak_memory_bytes": peak_bytes(),
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "rows": {
            "trained": len(course.lessons),
            "held_out": course.dev_rows,
            "dropped": dict(course.dropped),
        },
        "loss_curve": _curve(outcome),
        "rewinds": [rewind.model_dump() for rewind in outcome.rewinds],
    }
    if progress.judgements:
        record["judgements"] = [one.model_dump(exclude_none=True) for one in progress.judgements]
        record["best_step"] = outcome.best_step
        record["stopped_early"] = outcome.stalled
    return record


def _curve(outcome: Outcome) -> list[dict[str, float]]:
    """The mean loss of each of about a hundred stretches of the run, with the tokens spent at its end."""
    losses = outcome.progress.losses
    stretch = max(1, -(-len(losses) // _CURVE_POINTS))
    points: list[dict[str, float]] = []
    for start in range(0, len(losses), stretch):
        part = losses[start : start + stretch]
        step = start + len(part)
        points.append(
            {"step": step, "tokens": outcome.plan.tokens_before(step), "loss": sum(part) / len(part)}
        )
    return points


def _page(config: TrainConfig, progress: RunProgress, plan: BatchPlan, events: EventLog) -> str:
    return training_page(config.output.name, progress, tokens=plan.tokens, events=events.read())


def _summary(course: Course, outcome: Outcome, config: TrainConfig) -> str:
    curve, progress = _curve(outcome), outcome.progress
    dropped = "".join(f"; dropped {count} rows with {reason}" for reason, count in course.dropped.items())
    went_back = f"; went back before {len(outcome.rewinds)} spike(s)" if outcome.rewinds else ""
    best = f"; the weights are those of step {outcome.best_step}, the best" if outcome.best_step else ""
    return (
        f"{config.output}: {len(course.lessons)} rows, {progress.step} steps,"
        f" {outcome.plan.tokens_before(progress.step):,} tokens in {progress.wall_s:.0f} s,"
        f" loss {curve[0]['loss']:.3f} -> {curve[-1]['loss']:.3f}{best}{went_back}{dropped}"
    )
