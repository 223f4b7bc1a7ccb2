"""transformers' Trainer as a run needs it: over the plan's batches, watched at every step."""

from collections.abc import Callable, Sequence
from typing import Any

from decant_distill.train.batches import BatchPlan
from decant_distill.train.encode import Example
from decant_distill.train.objective import Objective, RankBatches
from decant_distill.train.student import build_optimizer
from decant_distill.train.watch import Surroundings, Watch


def build_trainer(model: Any, examples: Sequence[Example], objective: Objective, watch: Watch) -> Any:
    """One that learns the examples' completions."""
    from transformers import Trainer, TrainingArguments

    def loss(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
        del num_items_in_batch  # a step is one batch, so its own mean is the mean
        mean = objective.loss(outputs.logits, labels)
        # Counting them makes a GPU wait, and alone there is nobody to weigh against.
        mass = objective.mass(labels) if watch.around.ranks.world > 1 else 1.0
        return watch.loss(mean, outputs.logits, mass=mass)

    batches = RankBatches(examples, watch.plan, objective, watch.around.ranks)
    nothing: Any = []  # the Trainer wants a dataset beside its loader
    trainer: Any = watched(Trainer, watch, batches)(
        model=model,
        args=TrainingArguments(**trainer_settings(watch.around, steps=watch.plan.steps)),
        train_dataset=nothing,
        callbacks=[watching(watch)],
        compute_loss_func=loss,
        optimizers=(build_optimizer(model, watch.around.config), None),
    )
    return without_printing(trainer)


def watched(trainer_class: Any, watch: Watch, batches: Any) -> Any:
    """The class with `batches`, a dataset whose item i is this process's part of batch i, to read."""
    from torch.utils.data import DataLoader

    class WatchedTrainer(trainer_class):
        def get_train_dataloader(self) -> Any:
            # Not prepared by accelerate, which would deal whole batches to the processes: ours deal rows.
            return DataLoader(
                batches, batch_size=1, collate_fn=_only_item, pin_memory=self.args.dataloader_pin_memory
            )

        def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
            scheduler: Any = super().create_scheduler(num_training_steps, optimizer)
            return _ramped(scheduler, watch.plan)

        def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
            norm: Any = super()._get_grad_norm(model, grad_norm=grad_norm)
            watch.gradient(float(norm))
            return norm

    return WatchedTrainer


def without_printing(trainer: Any) -> Any:
    """The trainer without what it prints by itself."""
    from transformers.trainer_callback import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    return trainer


def _ramped(scheduler: Any, plan: BatchPlan) -> Any:
    """The schedule with the learning rate of a smaller batch lower by the root of its share.

    Adam's square root rule (arXiv 2205.10287): the noise of a step is then that of a full batch's.
    """
    if max(plan.parts, default=1) == 1:
        return scheduler
    plain = list(scheduler.lr_lambdas)
    last = len(plan.parts) - 1

    def smaller(factor: Callable[[int], float]) -> Callable[[int], float]:
        return lambda step: factor(step) / plan.parts[min(step, last)] ** 0.5

    scheduler.lr_lambdas = [smaller(factor) for factor in plain]
    # The rate of the first step was set when the schedule was made.
    for group, base, factor in zip(
        scheduler.optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True
    ):
        group["lr"] = base * factor(0)
    return scheduler


def watching(watch: Watch) -> Any:
    """What tells the watch of steps and checkpoints, and the trainer when to stop."""
    from transformers import TrainerCallback

    class Hooks(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            del args, state, control
            self.rate = float(given["optimizer"].param_groups[0]["lr"])

        def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> Any:
            del args, state
            watch.step_done(given["model"], self.rate)
            if len(watch.series.rates) == 1:
                # A disk that is too small shows now, and an early spike has something to go back to.
                control.should_save = True
            if watch.should_stop():
                control.should_save = control.should_training_stop = True
            return control

        def on_save(self, *_args: Any, **_kwargs: Any) -> None:
            watch.saved()

    return Hooks()


def trainer_settings(around: Surroundings, *, steps: int) -> dict[str, Any]:
    """The arguments that every trainer of a run is given."""
    import torch

    config, on_gpu = around.config, torch.cuda.is_available()
    return {
        "output_dir": str(around.checkpoints.folder),
        "max_steps": steps,
        "per_device_train_batch_size": 1,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": "cosine",
        "optim": "paged_adamw_32bit" if config.optimizer == "paged_adamw" else "adamw_torch_fused",
        "warmup_steps": round(config.warmup_ratio * steps),
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm,
        "seed": config.seed,
        "bf16": config.method == "full" and config.compute_dtype == "bfloat16",
        "use_cpu": not on_gpu,
        "ddp_find_unused_parameters": False,
        "average_tokens_across_devices": False,
        "save_strategy": "steps",
        "save_steps": config.save_every_steps,
        "save_total_limit": None,
        "logging_strategy": "no",
        "logging_nan_inf_filter": False,
        "report_to": [],
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_pin_memory": on_gpu,
    }


def _only_item(items: list[Any]) -> Any:
    (batch,) = items
    return batch
