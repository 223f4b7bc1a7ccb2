"""The run itself: transformers' Trainer over a fixed batch plan, resumed where a killed run left off.

An attempt ends at the last step, at a request to stop, or at a spike. After a spike the next attempt starts
from an earlier checkpoint, on a plan that leaves the spike's batches out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from decant.errors import TrainingError
from decant.progress import Progress
from decant_distill.train.batches import BatchPlan
from decant_distill.train.checkpoints import FRESH, RunProgress, best_of
from decant_distill.train.config import TrainConfig
from decant_distill.train.dev import has_stalled
from decant_distill.train.encode import Example
from decant_distill.train.objective import Objective, RankBatches
from decant_distill.train.rewinds import Distances, Rewind, left_out, plan_rewind
from decant_distill.train.student import build_optimizer
from decant_distill.train.trackers import build_trackers
from decant_distill.train.watch import RunStopped, Series, SpikeFound, Surroundings, Watch


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended: what it had seen, around what it went, and the step whose weights it leaves."""

    progress: RunProgress
    rewinds: tuple[Rewind, ...]
    plan: BatchPlan
    best_step: int | None
    stalled: bool


def fit(
    model: Any,
    examples: Sequence[Example],
    plan_with: Callable[[int], BatchPlan],
    *,
    objective: Objective,
    around: Surroundings,
) -> Outcome:
    """Trains `model` in place, from the newest whole checkpoint if there is one.

    `plan_with` gives the run's plan with that many spare batches. RunStopped when the run was asked to end;
    TrainingError when spikes come back more often than `max_rewinds`.
    """
    before: RunProgress | None = None
    while True:
        rewinds = around.checkpoints.rewinds()
        stretches = left_out(rewinds)
        plan = plan_with(sum(stop - start for start, stop in stretches)).without(stretches)
        try:
            trainer_of = partial(_trainer, model, examples, objective)
            progress = _attempt(trainer_of, plan, around=around, rewinds=rewinds, before=before)
        except SpikeFound as found:
            _rewind(found, rewinds, plan, around)
            before = found.so_far
            continue
        best = best_of(progress.judgements)
        stalled = has_stalled(progress.judgements, around.config.stop_after)
        return Outcome(progress, rewinds, plan, best.step if best else None, stalled)


def _attempt(
    trainer_of: Callable[[Watch], Any],
    plan: BatchPlan,
    *,
    around: Surroundings,
    rewinds: Sequence[Rewind],
    before: RunProgress | None,
) -> RunProgress:
    """Trains until the run ends or a spike is found; `before` is how far this process came last time."""
    found = around.checkpoints.latest()
    earlier = _begun(None if found is None else found[1], plan, around, before)
    if has_stalled(earlier.judgements, around.config.stop_after):
        return earlier
    distances = _distances(around.config, plan)
    trackers = build_trackers(
        around.config.report_to if around.ranks.writes else (),
        around.config.output,
        first_step=earlier.step,
        config=around.config.identity(),
    )
    done_tokens = plan.tokens_before(earlier.step)
    with Progress(plan.total_tokens, unit="tokens", label="train", start=done_tokens) as progress:
        watch = Watch(
            around, plan, progress, trackers, earlier, len(rewinds), distances.back, Series.of(earlier)
        )
        try:
            trainer_of(watch).train(resume_from_checkpoint=str(found[0]) if found else None)
        finally:
            for tracker in trackers:
                tracker.close()
    if watch.stopped and len(watch.series.rates) < plan.steps:
        around.events.add("stopped", step=len(watch.series.rates))
        raise RunStopped(
            f"stopped by SIGTERM at step {len(watch.series.rates)} of {plan.steps}, which is saved;"
            " run the same command again to go on"
        )
    return watch.so_far()


def _begun(
    found: RunProgress | None, plan: BatchPlan, around: Surroundings, before: RunProgress | None
) -> RunProgress:
    """Where the attempt starts from, and the event that says so."""
    earlier = found or FRESH
    if before is not None:
        return earlier.model_copy(update={"wall_s": before.wall_s, "resumed": before.resumed})
    if found is None:
        around.events.add("started", step=0, steps=plan.steps, tokens=plan.total_tokens)
        return earlier
    around.events.add("resumed", step=earlier.step)
    return earlier.model_copy(update={"resumed": earlier.resumed + 1})


def _rewind(found: SpikeFound, rewinds: Sequence[Rewind], plan: BatchPlan, around: Surroundings) -> None:
    """Makes the rewind last; TrainingError when there were enough, or there is nothing to go back to."""
    spike, config = found.spike, around.config
    what = f"{spike.reason} at step {spike.step + 1} of {plan.steps}"
    around.events.add("spike", step=spike.step, reason=spike.reason)
    if len(rewinds) >= config.max_rewinds:
        raise TrainingError(
            f"{what}, after {len(rewinds)} rewinds, the most that max_rewinds allows;"
            " lower learning_rate, or look at the rows (the events name their batches)"
        )
    distances = _distances(config, plan)
    to = around.checkpoints.latest(before=spike.step - distances.back)
    to = to or around.checkpoints.latest(before=spike.step)
    if to is None:
        raise TrainingError(f"{what}, with no checkpoint before it; lower learning_rate or save_every_steps")
    rewind = plan_rewind(spike, to_step=to[1].step, earlier=rewinds, distances=distances)
    around.ranks.wait()
    if around.ranks.writes:
        around.checkpoints.record([*rewinds, rewind])
        around.events.add("rewind", step=spike.step, **rewind.model_dump(exclude={"spike_step"}))
    around.ranks.wait()
    if around.ranks.sharded:
        # Weights that are spread over processes cannot be loaded into a model that is spread already.
        raise TrainingError(
            f"{what}: the batches from {rewind.skip_start} to {rewind.skip_stop} will be left out; run the"
            f" same command again to go on from step {rewind.to_step} (accelerate launch --max_restarts does)"
        )


def _distances(config: TrainConfig, plan: BatchPlan) -> Distances:
    return Distances.for_run(plan.steps, back=config.rewind_steps, skipped=config.rewind_batches)


def _trainer(model: Any, examples: Sequence[Example], objective: Objective, watch: Watch) -> Any:
    from torch.utils.data import DataLoader
    from transformers import Trainer
    from transformers.trainer_callback import PrinterCallback

    ranks, plan = watch.around.ranks, watch.plan

    class WatchedTrainer(Trainer):
        def get_train_dataloader(self) -> Any:
            # Not prepared by accelerate, which would deal whole batches to the processes: ours deal rows.
            dataset: Any = RankBatches(examples, plan, objective, ranks)
            return DataLoader(
                dataset, batch_size=1, collate_fn=_only_item, pin_memory=self.args.dataloader_pin_memory
            )

        def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
            scheduler: Any = super().create_scheduler(num_training_steps, optimizer)
            return _ramped(scheduler, plan)

        def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
            norm: Any = super()._get_grad_norm(model, grad_norm=grad_norm)
            watch.gradient(float(norm))
            return norm

    def loss(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
        del num_items_in_batch  # a step is one batch, so its own mean is the mean
        mean = objective.loss(outputs.logits, labels)
        return watch.loss(mean, outputs.logits, mass=objective.mass(labels))

    nothing: Any = []  # the Trainer wants a dataset beside its loader
    trainer: Any = WatchedTrainer(
        model=model,
        args=_arguments(watch.around, steps=plan.steps),
        train_dataset=nothing,
        callbacks=[_callback(watch)],
        compute_loss_func=loss,
        optimizers=(build_optimizer(model, watch.around.config), None),
    )
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


def _callback(watch: Watch) -> Any:
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


def _arguments(around: Surroundings, *, steps: int) -> Any:
    import torch
    from transformers import TrainingArguments

    config, on_gpu = around.config, torch.cuda.is_available()
    return TrainingArguments(
        output_dir=str(around.checkpoints.folder),
        max_steps=steps,
        per_device_train_batch_size=1,
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine",
        optim="paged_adamw_32bit" if config.optimizer == "paged_adamw" else "adamw_torch_fused",
        warmup_steps=round(config.warmup_ratio * steps),
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        seed=config.seed,
        bf16=config.method == "full" and config.compute_dtype == "bfloat16",
        use_cpu=not on_gpu,
        ddp_find_unused_parameters=False,
        average_tokens_across_devices=False,
        save_strategy="steps",
        save_steps=config.save_every_steps,
        save_total_limit=None,
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
