"""`decant learning-curve`: students from nested parts of the labels, and whether more labels would pay."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from decant.artifact import read_manifest
from decant.errors import TrainingError
from decant.files import write_json, write_jsonl
from decant.stats import PairedDifference, paired_difference
from decant_distill.train.command import run as train
from decant_distill.train.config import TrainConfig
from decant_distill.train.course import plan_course
from decant_distill.train.dev import DevSet
from decant_distill.train.student import load_base, load_tokenizer, require_training_stack


class LearningCurveConfig(TrainConfig):
    """The options of `decant train`, and which parts of the labels to learn from; all lies in `output`."""

    dev_share: float = Field(
        default=0.2, ge=0, lt=1, description="share of the rows held out from all students; 0 with dev_data"
    )
    shares: tuple[float, ...] = Field(
        default=(0.25, 0.5, 1.0), description="parts of the labels, rising to 1, each within the next"
    )
    usd_per_label: float | None = Field(default=None, ge=0, description="what one more label costs")
    worth: float = Field(
        default=0.01, ge=0, description="least gain for which twice the labels pay: accuracy, or nats of loss"
    )

    @field_validator("shares")
    @classmethod
    def _rise_to_one(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if len(value) < 2 or value[-1] != 1.0 or sorted(set(value)) != list(value) or value[0] <= 0:
            raise ValueError("must be two or more rising parts that end with 1.0")
        return value


CONFIG = LearningCurveConfig


@dataclass(frozen=True, slots=True)
class Point:
    """One student: how many labels it had, and its outcome on each held-out row (higher is better)."""

    share: float
    labels: int
    outcomes: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Its mean outcome."""
        return sum(self.outcomes) / len(self.outcomes)


def run(config: LearningCurveConfig) -> None:
    """Trains and judges a student per part, and prints the curve with its verdict; what is done is kept."""
    require_training_stack(quantized=config.method == "qlora")
    tokenizer = load_tokenizer(config.base)
    plain = _train_config(config)
    course = plan_course(plain, tokenizer)
    if course.dev is None:
        raise TrainingError(f"{config.data}: nothing to judge by; give dev_share or dev_data")
    lines = config.data.read_text(encoding="utf-8").splitlines()
    rows = [lines[lesson.line - 1] for lesson in course.lessons]
    order = sorted(range(len(rows)), key=lambda i: _rank(str(course.lessons[i].prompt), config.seed))
    points: list[Point] = []
    for share in config.shares:
        chosen = sorted(order[: max(1, round(share * len(order)))])
        student = plain.with_changes(
            data=_write(config.output / f"labels-{share:g}.jsonl", [rows[i] for i in chosen]),
            output=config.output / f"student-{share:g}",
            dev_share=0.0,
            stop_after=None,
        )
        if not (student.output / "manifest.json").is_file():
            train(student)
        points.append(Point(share, len(chosen), tuple(_outcomes(student, course.dev))))
    steps = [_gain(before, after, seed=config.seed) for before, after in pairwise(points)]
    write_json(config.output / "learning-curve.json", _record(config, points, steps))
    print("\n".join(described(config, points, steps)))


def verdict(gain: PairedDifference, *, worth: float) -> str:
    """Whether twice the labels pay, as far as the last step tells: the interval against the least gain."""
    if gain.interval.low >= worth:
        return "more labels pay: the whole interval of the last step lies above what is worth it"
    if gain.interval.high < worth:
        return "more labels do not pay: the whole interval of the last step lies below what is worth it"
    return "undecided: the interval of the last step holds what is worth it; hold out more rows, or try"


def described(
    config: LearningCurveConfig, points: Sequence[Point], steps: Sequence[PairedDifference]
) -> list[str]:
    """The curve as lines, with the price of going on where a label's price is known."""
    unit = "accuracy" if config.dev_metric == "accuracy" else "loss"
    sign = 1 if config.dev_metric == "accuracy" else -1
    said = [f"{points[0].labels} labels: {unit} {sign * points[0].mean:.4f}"]
    for point, gain in zip(points[1:], steps, strict=True):
        said.append(
            f"{point.labels} labels: {unit} {sign * point.mean:.4f}, better by {gain.mean:+.4f}"
            f" ({gain.interval.low:+.4f} to {gain.interval.high:+.4f}, {gain.n} rows, {gain.method})"
        )
    price = ""
    if config.usd_per_label is not None:
        price = f" ({points[-1].labels} more cost ${points[-1].labels * config.usd_per_label:.2f})"
    return [*said, verdict(steps[-1], worth=config.worth) + price]


def _train_config(config: LearningCurveConfig) -> TrainConfig:
    share = 0.0 if config.dev_data else config.dev_share
    given = {name: dict(config)[name] for name in TrainConfig.model_fields}
    return TrainConfig.model_validate({**given, "dev_share": share})


def _rank(prompt: str, seed: int) -> bytes:
    return hashlib.blake2b(f"{seed}\0{prompt}".encode("utf-8", "surrogatepass"), digest_size=8).digest()


def _write(path: Path, lines: Sequence[str]) -> Path:
    import json

    write_jsonl(path, (json.loads(line) for line in lines))
    return path


def _outcomes(config: TrainConfig, dev: DevSet) -> list[float]:
    return dev.outcomes(_trained(config))


def _trained(config: TrainConfig) -> Any:
    if config.method == "full":
        return load_base(config.output, dtype="float32", nf4=False)
    from peft import PeftModel

    base = load_base(config.base, dtype=config.compute_dtype, nf4=config.method == "qlora")
    return PeftModel.from_pretrained(base, str(config.output))


def _gain(before: Point, after: Point, *, seed: int) -> PairedDifference:
    return paired_difference(before.outcomes, after.outcomes, seed=seed)


def _record(
    config: LearningCurveConfig, points: Sequence[Point], steps: Sequence[PairedDifference]
) -> dict[str, Any]:
    return {
        "metric": config.dev_metric,
        "points": [
            {
                "share": point.share,
                "labels": point.labels,
                "mean": point.mean,
                "tokens": (read_manifest(config.output / f"student-{point.share:g}").training or {})[
                    "tokens"
                ],
                "outcomes": point.outcomes,
            }
            for point in points
        ],
        "gains": [
            {"mean": gain.mean, "low": gain.interval.low, "high": gain.interval.high, "rows": gain.n}
            for gain in steps
        ],
        "verdict": verdict(steps[-1], worth=config.worth),
    }
