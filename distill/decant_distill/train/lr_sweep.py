"""Three short runs before a long one: a third of, once and three times the learning rate, judged on rows held
out of all three.

Which adapter is used matters less than its learning rate (arXiv 2602.04998). A rate that somebody chose is
kept; one that nobody chose is tried first where the run is long enough that the trials cost little of it.
"""

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

from decant.errors import TrainingError
from decant.files import write_text
from decant_distill.train.batches import plan_batches
from decant_distill.train.checkpoints import Checkpoints
from decant_distill.train.config import TrainConfig
from decant_distill.train.dev_scores import mean_loss
from decant_distill.train.encode import Example
from decant_distill.train.loop import fit
from decant_distill.train.objective import Objective
from decant_distill.train.ranks import Ranks
from decant_distill.train.student import build_student
from decant_distill.train.watch import Surroundings

FACTORS = (1 / 3, 1.0, 3.0)

# Three trials of a twentieth each add 15 % to a run; below this many steps a trial would see mere noise.
_LONG_RUN_STEPS = 400
_TRIAL_SHARE = 0.05
_LEAST_TRIAL_STEPS = 10
_HELD_OUT_SHARE = 0.05
_MOST_HELD_OUT = 256
_FILE = "lr-sweep.json"


class Trial(BaseModel, frozen=True):
    """One learning rate and the loss, in nats a token, that it left on held-out rows; None: it diverged."""

    learning_rate: float
    loss: float | None


class Sweep(BaseModel, frozen=True):
    """All trials of a sweep."""

    trials: tuple[Trial, ...]

    @property
    def best(self) -> Trial:
        """The trial with the lowest loss."""
        return min(self.trials, key=lambda trial: math.inf if trial.loss is None else trial.loss)


def is_swept(config: TrainConfig, *, steps: int) -> bool:
    """Whether a run of so many steps tries learning rates first."""
    if Ranks.from_environment().world > 1:
        if config.lr_sweep:
            raise TrainingError("lr_sweep runs in one process; find the rate there, then name it to them all")
        return False
    if config.objective == "on-policy":
        return False
    if config.lr_sweep is not None:
        return config.lr_sweep
    return "learning_rate" not in config.model_fields_set and steps >= _LONG_RUN_STEPS


def settle_learning_rate(
    config: TrainConfig, examples: Sequence[Example], objective: Objective, *, steps: int, folder: Path
) -> tuple[TrainConfig, dict[str, Any]]:
    """The config with its final learning rate, and the sweep for the record (empty where there was none).

    The outcome is kept in `folder`: a resumed run goes on with it.
    """
    if not is_swept(config, steps=steps):
        return config, {}
    kept = folder / _FILE
    if kept.is_file():
        sweep = Sweep.model_validate_json(kept.read_bytes())
    else:
        sweep = _sweep(config, examples, objective, steps=steps)
        write_text(kept, sweep.model_dump_json())
    best = sweep.best
    if best.loss is None:
        rates = ", ".join(f"{trial.learning_rate:g}" for trial in sweep.trials)
        raise TrainingError(f"every learning rate tried ({rates}) diverged; set a lower learning_rate")
    record = {"lr_sweep": [trial.model_dump() for trial in sweep.trials]}
    return config.with_changes(learning_rate=best.learning_rate, lr_sweep=False), record


def _sweep(config: TrainConfig, examples: Sequence[Example], objective: Objective, *, steps: int) -> Sweep:
    order = np.random.default_rng([config.seed, len(examples)]).permutation(len(examples))
    count = min(_MOST_HELD_OUT, max(1, round(_HELD_OUT_SHARE * len(examples))))
    held_out = [examples[i] for i in order[:count]]
    learned = [examples[i] for i in order[count:]]
    if not learned:
        raise TrainingError(f"{config.data}: too few rows for lr_sweep; switch it off")
    trial_steps = max(_LEAST_TRIAL_STEPS, round(_TRIAL_SHARE * steps))
    mean_length = sum(len(example.ids) for example in learned) / len(learned)
    rows_per_batch = max(1.0, config.batch_tokens / mean_length)
    plan = plan_batches(
        [len(example.ids) for example in learned],
        token_budget=round(trial_steps * rows_per_batch * mean_length),
        batch_tokens=config.batch_tokens,
        seed=config.seed,
        bucketing=config.length_bucketing,
    )
    trials: list[Trial] = []
    for factor in FACTORS:
        rate = config.learning_rate * factor
        with tempfile.TemporaryDirectory(prefix="decant-lr-") as folder:
            trial = config.with_changes(
                learning_rate=rate,
                output=Path(folder) / "student",
                save_every_steps=2**31,
                lr_sweep=False,
                spike_rewind=False,
                stop_after=None,
                report_to=(),
            )
            around = Surroundings.quiet(trial, Checkpoints.beside(trial.output))
            model = build_student(trial)
            try:
                fit(model, learned, lambda _spares: plan, objective=objective, around=around)
            except TrainingError:  # it diverged, which is what a trial is for
                trials.append(Trial(learning_rate=rate, loss=None))
                continue
            trials.append(Trial(learning_rate=rate, loss=_finite(mean_loss(model, held_out, objective))))
    return Sweep(trials=tuple(trials))


def _finite(loss: float) -> float | None:
    return loss if math.isfinite(loss) else None
