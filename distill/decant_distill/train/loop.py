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
from decant_distill.train.objective import Objective
from decant_distill.train.on_policy import OnPolicy, build_on_policy_trainer
from decant_distill.train.rewinds import Distances, Rewind, left_out, plan_rewind
from decant_distill.train.trackers import build_trackers
from decant_distill.train.trainer import build_trainer
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
    objective: Objective | OnPolicy,
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
            if isinstance(objective, OnPolicy):
                trainer_of = partial(build_on_policy_trainer, model, objective)
            else:
                trainer_of = partial(build_trainer, model, examples, objective)
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
