"""Learning from the student's own answers: it writes, and a teacher with the same vocabulary corrects it.

TRL's DistillationTrainer (on-policy distillation, arXiv 2306.13649) computes the step, a generalised
Jensen-Shannon divergence over what the student sampled; order, checkpoints, rewinds and stops are ours.
"""

import importlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from decant.errors import MissingExtraError, TrainingError
from decant.task import Message
from decant_distill.train.batches import BatchPlan
from decant_distill.train.config import TrainConfig
from decant_distill.train.encode import Example
from decant_distill.train.ranks import Ranks
from decant_distill.train.rows import Lesson
from decant_distill.train.student import (
    build_optimizer,
    is_encoder_decoder,
    load_base,
    load_tokenizer,
    vocabulary_size,
)
from decant_distill.train.teacher_scores import tokenizer_sha256
from decant_distill.train.trainer import trainer_settings, watched, watching, without_printing
from decant_distill.train.watch import Watch


@dataclass(frozen=True, slots=True)
class OnPolicy:
    """The teacher in memory, and the prompts that the student answers."""

    teacher: Any
    tokenizer: Any
    prompts: Sequence[tuple[Message, ...]]


@dataclass(frozen=True, slots=True)
class _PromptBatches:
    """A dataset whose item i is the prompts of batch i, in TRL's form."""

    prompts: Sequence[tuple[Message, ...]]
    plan: BatchPlan

    def __len__(self) -> int:
        return len(self.plan.batches)

    def __getitem__(self, index: int) -> list[dict[str, Any]]:
        return [
            {"prompt": [dict(message) for message in self.prompts[row]]} for row in self.plan.batches[index]
        ]


def check_on_policy(config: TrainConfig, tokenizer: Any) -> None:
    """MissingExtraError without TRL, TrainingError for a pair that cannot be compared token by token."""
    assert config.teacher is not None
    for package in ("trl", "datasets"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, "trl")
    if Ranks.from_environment().world > 1:
        raise TrainingError("objective on-policy runs in one process; start it without accelerate launch")
    for folder in (config.base, config.teacher):
        if is_encoder_decoder(folder):
            raise TrainingError(f"{folder}: is an encoder-decoder, which objective on-policy does not take")
    theirs = load_tokenizer(config.teacher)
    if tokenizer_sha256(theirs) != tokenizer_sha256(tokenizer):
        raise TrainingError(
            f"{config.teacher}: has another tokenizer than {config.base}; objective on-policy compares whole"
            " distributions, so that teacher and student must share one"
        )
    sizes = [vocabulary_size(folder) for folder in (config.base, config.teacher)]
    if sizes[0] != sizes[1]:
        raise TrainingError(
            f"{config.teacher}: its output layer has {sizes[1]} rows and that of {config.base} {sizes[0]};"
            " objective on-policy needs as many (decant logits and teacher_scores do not)"
        )


def prompts_with_room(examples: Sequence[Example], config: TrainConfig, *, context: int) -> list[int]:
    """The tokens of each prompt and its longest answer; TrainingError where the context is shorter."""
    lengths = [example.prompt_tokens + config.max_new_tokens for example in examples]
    if max(lengths) > context:
        raise TrainingError(
            f"{config.data}: prompts of up to {max(lengths) - config.max_new_tokens} tokens leave no room for"
            f" max_new_tokens = {config.max_new_tokens} in a context of {context}; lower it"
        )
    return lengths


def load_on_policy(config: TrainConfig, tokenizer: Any, lessons: Sequence[Lesson]) -> OnPolicy:
    """Loads the teacher in the student's compute type; its weights never change."""
    assert config.teacher is not None
    teacher = load_base(config.teacher, dtype=config.compute_dtype, nf4=False).eval()
    return OnPolicy(teacher, tokenizer, [lesson.prompt for lesson in lessons])


def build_on_policy_trainer(model: Any, objective: OnPolicy, watch: Watch) -> Any:
    """TRL's trainer over the plan's prompts, watched as every other."""
    # By name: it is an extra of its own, which the type checker does not see.
    trl: Any = importlib.import_module("trl")
    around = watch.around

    class Step(trl.DistillationTrainer):
        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            mean = super().compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
            self._metrics["train"].clear()  # it collects them for a log that we do not write
            loss = watch.loss(mean, mean, mass=1.0)
            return (loss, None) if return_outputs else loss

        def _save_checkpoint(self, model: Any, trial: Any) -> None:
            # TRL's own writes a model card beside it.
            super(trl.DistillationTrainer, self)._save_checkpoint(model, trial)

    trainer: Any = watched(Step, watch, _PromptBatches(objective.prompts, watch.plan))(
        model=model,
        teacher_model=objective.teacher,
        args=trl.DistillationConfig(
            **trainer_settings(around, steps=watch.plan.steps),
            gradient_checkpointing=around.config.gradient_checkpointing,
            max_completion_length=around.config.max_new_tokens,
            temperature=around.config.sampling_temperature,
            beta=around.config.divergence,
        ),
        train_dataset=[],
        processing_class=objective.tokenizer,
        callbacks=[watching(watch)],
        optimizers=(build_optimizer(model, around.config), None),
    )
    for weight in model.parameters():
        if weight.requires_grad:
            # TRL rounds a quantized base's adapters to bf16, where small updates are lost.
            weight.data = weight.data.float()
    return without_printing(trainer)
