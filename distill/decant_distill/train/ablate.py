"""`decant ablate`: where should the rationale stand for your task?

Every placement is trained on one slice of your own rows for the same tokens, and answers the same rows
held out.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import Field, field_validator

from decant.artifact import has_manifest, read_manifest, verify_files
from decant.config import Config, InputPath, OutputPath, validate
from decant.dataset import Row, read_rows
from decant.errors import TrainingError
from decant.files import write_json, write_jsonl
from decant.stats import PairedDifference, paired_difference, wilson
from decant.task import Placement, TaskConfig
from decant_distill.train.command import run as train
from decant_distill.train.config import TrainConfig
from decant_distill.train.dev_scores import DevScore, score
from decant_distill.train.encode import encode
from decant_distill.train.objective import Objective
from decant_distill.train.rows import Teaching, read_lessons
from decant_distill.train.student import (
    decoder_start,
    is_encoder_decoder,
    load_adapter,
    load_base,
    load_tokenizer,
    require_training_stack,
)

_OWN_KEYS = ("base", "data", "output", "placement", "seed", "token_budget", "task")


class AblateConfig(Config):
    """Rows, a student, and how much each placement may spend."""

    base: InputPath = Field(description="Hugging Face folder of the student before training")
    data: InputPath = Field(description="curated rows, JSONL with prompt, answer and reasoning")
    output: OutputPath = Field(description="folder for the students, their scores and the report")
    placements: tuple[Teaching, ...] = Field(
        default=get_args(Teaching), description="placements to compare, two or more"
    )
    token_budget: int = Field(default=300_000, ge=1, description="tokens that each student is trained on")
    most_rows: int = Field(default=2000, ge=1, description="most rows that they learn from")
    dev_rows: int = Field(default=300, ge=2, description="most held-out rows that they answer")
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1, description="a student for each, averaged")
    train: dict[str, Any] = Field(default={}, description="further options of decant train, for all students")
    task: TaskConfig = Field(default_factory=TaskConfig, description="how answers are marked")

    @field_validator("placements")
    @classmethod
    def _several(cls, value: tuple[Teaching, ...]) -> tuple[Teaching, ...]:
        if len(set(value)) < 2 or len(set(value)) != len(value):
            raise ValueError("name two or more placements, each once")
        return value

    @field_validator("train")
    @classmethod
    def _leaves_the_rest(cls, value: dict[str, Any]) -> dict[str, Any]:
        if clash := sorted(set(value) & set(_OWN_KEYS)):
            raise ValueError(f"{', '.join(clash)}: set here, not in train")
        return value


CONFIG = AblateConfig


@dataclass(frozen=True, slots=True)
class Arm:
    """One placement's students: the share of seeds that answered each held-out row right, in file order."""

    placement: Teaching
    outcomes: tuple[float, ...]
    losses: tuple[float, ...]

    @property
    def accuracy(self) -> float:
        """Over rows and seeds."""
        return sum(self.outcomes) / len(self.outcomes)


def run(config: AblateConfig) -> None:
    """Trains and scores every placement and says which won; what is done already is not done again."""
    configs = {
        (placement, seed): _train_config(config, placement, seed)
        for seed in config.seeds
        for placement in config.placements
    }
    dev = _write_slices(config)
    for one in configs.values():
        if not _is_trained(one):
            train(one)
    scores = {key: _score(one, dev, base=config.base) for key, one in configs.items()}
    arms = [
        _arm(placement, [scores[placement, seed] for seed in config.seeds]) for placement in config.placements
    ]
    best = max(arms, key=lambda arm: arm.accuracy)
    differences = {arm.placement: _difference(arm, best) for arm in arms if arm is not best}
    write_json(config.output / "ablate.json", _document(config, arms, best, differences))
    print(report(arms, best, differences))


def _train_config(config: AblateConfig, placement: Teaching, seed: int) -> TrainConfig:
    own = {
        "base": config.base,
        "data": config.output / "train.jsonl",
        "output": config.output / f"{placement}-{seed}",
        "placement": placement,
        "seed": seed,
        "token_budget": config.token_budget,
        "task": config.task,
    }
    return validate(TrainConfig, {**config.train, **own}, where="train")


def _write_slices(config: AblateConfig) -> Path:
    """Writes the rows that every placement can use, split by a hash of their prompts: those to learn from,
    and those held out, whose path is returned. All rows of a prompt are on one side.
    """
    usable = read_lessons(config.data, task=config.task, placement="rationale_then_answer").kept
    lines = {lesson.line: hashlib.sha256(json.dumps(lesson.prompt).encode()).digest() for lesson in usable}
    found = [row for row in read_rows(config.data) if isinstance(row, Row) and row.line in lines]
    found.sort(key=lambda row: (lines[row.line], row.line))
    count = min(config.dev_rows, len(found) // 4)
    while 0 < count < len(found) and lines[found[count].line] == lines[found[count - 1].line]:
        count += 1
    dev, learned = found[:count], found[count : count + config.most_rows]
    if not dev or not learned:
        raise TrainingError(f"{config.data}: {len(found)} usable rows are too few to hold some out; add rows")
    write_jsonl(config.output / "train.jsonl", (row.fields for row in learned))
    write_jsonl(config.output / "dev.jsonl", (row.fields for row in dev))
    return config.output / "dev.jsonl"


def _is_trained(config: TrainConfig) -> bool:
    if not has_manifest(config.output):
        return False
    done = TrainConfig.model_validate(read_manifest(config.output).recipe)
    # A sweep leaves the rate that it chose, whether it was asked for or came with a long run.
    chosen = config.lr_sweep is not True and "learning_rate" in config.model_fields_set
    swept = set[str]() if chosen else {"learning_rate", "lr_sweep"}
    known = (one.model_dump(mode="json", exclude=swept) for one in (done, config))
    if len({json.dumps(fields, sort_keys=True) for fields in known}) > 1:
        raise TrainingError(
            f"{config.output}: was trained with other settings; delete it, or name another output"
        )
    return True


def _score(config: TrainConfig, dev: Path, *, base: Path) -> DevScore:
    """The student's score on the held-out rows."""
    manifest = verify_files(config.output)
    require_training_stack(quantized=config.method == "qlora")
    if config.method == "full":
        model = load_base(config.output, dtype="float32", nf4=False)
    else:
        model = load_adapter(config.output, base, dtype=config.compute_dtype, nf4=manifest.method == "qlora")
    tokenizer = load_tokenizer(config.output)
    placement: Placement = "answer_only" if config.placement == "multitask" else config.placement
    lessons = read_lessons(dev, task=config.task, placement=placement).kept
    examples = encode(tokenizer, lessons, base=str(base), two_sides=is_encoder_decoder(base))
    objective = Objective(decoder_start=decoder_start(base))
    return score(model, tokenizer, lessons, examples, objective=objective, task=config.task)


def _arm(placement: Teaching, scores: Sequence[DevScore]) -> Arm:
    columns = zip(*(one.correct for one in scores), strict=True)
    return Arm(
        placement=placement,
        outcomes=tuple(sum(rights) / len(rights) for rights in columns),
        losses=tuple(one.loss for one in scores),
    )


def _difference(arm: Arm, best: Arm) -> PairedDifference:
    return paired_difference(best.outcomes, arm.outcomes, seed=0)


def _document(
    config: AblateConfig, arms: Sequence[Arm], best: Arm, differences: Mapping[str, PairedDifference]
) -> dict[str, Any]:
    return {
        "settings": config.model_dump(mode="json"),
        "arms": [{"accuracy": arm.accuracy, **asdict(arm)} for arm in arms],
        "best": best.placement,
        "differences_to_best": {name: asdict(found) for name, found in differences.items()},
        "verdict": verdict(best, differences),
    }


def report(arms: Sequence[Arm], best: Arm, differences: Mapping[str, PairedDifference]) -> str:
    """A line for each placement, best first, and the verdict."""
    lines = [f"{'placement':<23} {'accuracy, %':>20}   paired with the best, points"]
    for arm in sorted(arms, key=lambda arm: -arm.accuracy):
        # Over several seeds a row's outcome is a share: the interval takes rows, not answers, as the sample.
        interval = wilson(round(sum(arm.outcomes)), len(arm.outcomes))
        accuracy = f"{100 * arm.accuracy:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"
        found = differences.get(arm.placement)
        paired = "best"
        if found is not None:
            low, high = found.interval.low, found.interval.high
            paired = f"{100 * found.mean:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
        lines.append(f"{arm.placement:<23} {accuracy:>20}   {paired}")
    return "\n".join(
        [*lines, f"{len(best.outcomes)} held-out rows, 95 % intervals", verdict(best, differences)]
    )


def verdict(best: Arm, differences: Mapping[str, PairedDifference]) -> str:
    """Which placement won, or which ones these rows cannot tell from it."""
    level = [name for name, found in differences.items() if found.interval.high >= 0]
    if not level:
        return f"{best.placement} won: all others are shown to be worse"
    others = ", ".join(level)
    return f"{best.placement} is ahead, but not shown to be better than {others}: take the cheaper to serve"
