"""The run itself: transformers' Trainer over a fixed batch plan, resumed where a killed run left off."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from decant.errors import TrainingError
from decant.progress import Progress
from decant_distill.train.batches import BatchPlan
from decant_distill.train.checkpoints import FRESH, Checkpoints, RunProgress
from decant_distill.train.config import TrainConfig
from decant_distill.train.encode import Example
from decant_distill.train.objective import BatchDataset, Objective
from decant_distill.train.student import build_optimizer

if TYPE_CHECKING:
    from torch import Tensor

_KEPT_CHECKPOINTS = 2


@dataclass(slots=True)
class _Watch:
    """Shows progress, keeps the losses, stops at one that is not a number, and seals checkpoints."""

    plan: BatchPlan
    progress: Progress
    checkpoints: Checkpoints
    earlier: RunProgress
    losses: list[float]
    objective: Objective
    started_s: float = field(default_factory=time.monotonic)

    def loss(self, outputs: Any, labels: Any, num_items_in_batch: Any = None) -> "Tensor":
        """What the Trainer minimises; TrainingError before a loss that is not finite reaches a weight."""
        del num_items_in_batch  # a step is one batch, so its own mean is the mean
        loss = self.objective.loss(outputs.logits, labels)
        value = loss.item()
        if not math.isfinite(value):
            raise TrainingError(
                f"the loss became {value} at step {len(self.losses) + 1} of {len(self.plan.batches)};"
                " lower learning_rate or raise warmup_ratio"
            )
        self.losses.append(value)
        return loss

    def step_done(self) -> None:
        """Counts the tokens of the last step."""
        self.progress.advance(self.plan.tokens[len(self.losses) - 1], loss=f"{self.losses[-1]:.3f}")

    def saved(self) -> None:
        """Declares the checkpoint that was just written whole."""
        self.checkpoints.seal(self.so_far())

    def so_far(self) -> RunProgress:
        """The run up to the last step taken."""
        return RunProgress(
            step=len(self.losses),
            wall_s=self.earlier.wall_s + time.monotonic() - self.started_s,
            losses=tuple(self.losses),
            resumed=self.earlier.resumed,
        )


def fit(
    model: Any,
    examples: Sequence[Example],
    plan: BatchPlan,
    *,
    config: TrainConfig,
    checkpoints: Checkpoints,
    objective: Objective | None = None,
) -> RunProgress:
    """Trains `model` in place along the plan, from the newest whole checkpoint if there is one."""
    from transformers import Trainer
    from transformers.trainer_callback import PrinterCallback

    found = checkpoints.latest()
    earlier = FRESH if found is None else found[1].model_copy(update={"resumed": found[1].resumed + 1})
    done_tokens = plan.tokens_before(earlier.step)
    with Progress(plan.total_tokens, unit="tokens", label="train", start=done_tokens) as progress:
        objective = objective or Objective()
        watch = _Watch(plan, progress, checkpoints, earlier, list(earlier.losses), objective)
        dataset: Any = BatchDataset(examples, plan, objective)
        trainer: Any = Trainer(
            model=model,
            args=_arguments(config, steps=len(plan.batches), checkpoints=checkpoints),
            train_dataset=dataset,
            data_collator=_only_item,
            callbacks=[_callback(watch)],
            compute_loss_func=watch.loss,
            optimizers=(build_optimizer(model, config), None),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train(resume_from_checkpoint=str(found[0]) if found else None)
    return watch.so_far()


def _callback(watch: _Watch) -> Any:
    from transformers import TrainerCallback

    class Hooks(TrainerCallback):
        def on_step_end(self, *_args: Any, **_kwargs: Any) -> None:
            watch.step_done()

        def on_save(self, *_args: Any, **_kwargs: Any) -> None:
            watch.saved()

    return Hooks()


def _arguments(config: TrainConfig, *, steps: int, checkpoints: Checkpoints) -> Any:
    import torch
    from transformers import TrainingArguments

    on_gpu = torch.cuda.is_available()
    return TrainingArguments(
        output_dir=str(checkpoints.folder),
        max_steps=steps,
        per_device_train_batch_size=1,
        train_sampling_strategy="sequential",
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine",
        optim="paged_adamw_32bit" if config.optimizer == "paged_adamw" else "adamw_torch_fused",
        warmup_steps=round(config.warmup_ratio * steps),
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        seed=config.seed,
        bf16=config.method == "full" and config.compute_dtype == "bfloat16",
        use_cpu=not on_gpu,
        save_strategy="steps",
        save_steps=config.save_every_steps,
        save_total_limit=_KEPT_CHECKPOINTS,
        logging_strategy="no",
        logging_nan_inf_filter=False,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=on_gpu,
    )


def _only_item(items: list[dict[str, Any]]) -> dict[str, Any]:
    (batch,) = items
    return batch
