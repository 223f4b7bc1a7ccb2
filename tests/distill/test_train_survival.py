"""A run that survives: spikes gone around, ramps, held-out rows, requests to stop, kills in between."""

import json
import math
import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")
pytest.importorskip("bitsandbytes")

import torch
from safetensors.torch import load_file

from decant.artifact import read_manifest
from decant.errors import ConfigError, MissingExtraError, TrainingError
from decant_distill.train.batches import Ramp, plan_batches
from decant_distill.train.checkpoints import Checkpoints, Judgement, RunProgress, best_of
from decant_distill.train.command import run
from decant_distill.train.config import TrainConfig
from decant_distill.train.course import plan_course
from decant_distill.train.dev import has_stalled, hold_out
from decant_distill.train.rewinds import Distances, Rewind, batch_at, left_out, plan_rewind
from decant_distill.train.rows import Lesson
from decant_distill.train.spikes import Spike, find_spike
from decant_distill.train.student import load_tokenizer
from decant_distill.train.trackers import require_trackers
from decant_distill.train.watch import RunStopped
from tests.distill.killed_training import killed_at

LENGTHS = [10 + (i * 37) % 90 for i in range(500)]


def noisy(count: int, level: float, seed: int = 0) -> list[float]:
    rng = random.Random(seed)
    return [level * math.exp(rng.gauss(0, 0.15)) for _ in range(count)]


def test_three_high_losses_in_a_row_are_a_spike_that_began_with_the_first() -> None:
    losses = [*noisy(60, 0.5), 2.0, 2.4, 2.2]
    spike = find_spike(losses, noisy(63, 1.0))
    assert spike is not None
    assert spike.step == 60
    assert spike.reason.startswith("loss 2 after a median of 0.")


def test_one_hard_batch_is_no_spike() -> None:
    losses = noisy(80, 0.5)
    losses[70] = 9.0
    assert not any(find_spike(losses[:n], noisy(n, 1.0)) for n in range(1, 81))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_a_spike_at_once(bad: float) -> None:
    assert find_spike([1.0, bad], [1.0]) == Spike(1, f"loss {bad}")
    assert find_spike([1.0, 1.0], [1.0, bad]) == Spike(1, f"gradient norm {bad}")


def test_large_gradients_are_a_spike_only_where_the_loss_rises_too() -> None:
    norms = [*noisy(60, 0.5), 40.0, 50.0, 60.0]
    falling, rising = [*noisy(60, 0.5), 0.3, 0.2, 0.1], [*noisy(60, 0.5), 0.95, 1.0, 1.0]
    assert find_spike(falling, norms) is None
    assert find_spike(rising, noisy(63, 0.5)) is None
    assert find_spike(rising, norms) is not None


def test_a_loss_that_falls_fast_from_the_start_or_lies_near_nothing_is_healthy() -> None:
    early = [5.0 * math.exp(-step / 15) + 0.1 for step in range(120)]
    late = [abs(value) for value in noisy(300, 0.004)]
    for losses in (early, late):
        assert not any(find_spike(losses[:n], noisy(n, 1.0)) for n in range(1, len(losses) + 1))


def test_a_rewind_starts_before_the_spike_and_leaves_out_more_than_lies_behind_it() -> None:
    rewind = plan_rewind(
        Spike(500, "loss"), to_step=450, earlier=(), distances=Distances(back=20, skipped=100)
    )
    assert (rewind.skip_start, rewind.skip_stop) == (480, 580)


def test_the_distances_are_those_of_palm_scaled_to_the_run() -> None:
    assert Distances.for_run(200_000) == Distances(back=100, skipped=500)
    assert Distances.for_run(500) == Distances(back=10, skipped=50)
    assert Distances.for_run(500, back=3) == Distances(back=3, skipped=15)


def test_a_spike_that_comes_right_back_has_more_left_out() -> None:
    distances = Distances(back=10, skipped=50)
    first = plan_rewind(Spike(100, "a"), to_step=80, earlier=(), distances=distances)
    again = plan_rewind(Spike(90, "b"), to_step=80, earlier=(first,), distances=distances)
    assert first.skip_stop == 140
    assert again.skip_stop == 140 + 80
    assert left_out((first, again)) == [(80, 220)]
    assert [batch_at(step, (first, again)) for step in (79, 80)] == [79, 220]


def test_a_plan_without_some_batches_takes_as_many_steps() -> None:
    whole = plan_batches(LENGTHS, token_budget=9000, batch_tokens=800, seed=1)
    spared = plan_batches(LENGTHS, token_budget=9000, batch_tokens=800, seed=1, spares=4).without([(2, 6)])
    assert len(spared.batches) == spared.steps == whole.steps
    assert spared.batches[:2] == whole.batches[:2]
    assert spared.batches[2 : whole.steps - 4] == whole.batches[6:]


def test_a_ramp_cuts_the_first_batches_and_leaves_the_order_of_rows() -> None:
    plain, ramped = (
        plan_batches(LENGTHS, token_budget=20000, batch_tokens=800, seed=1, ramp=ramp)
        for ramp in (Ramp(), Ramp(parts=4, tokens=8000))
    )
    rows = [[row for batch in plan.batches for row in batch] for plan in (plain, ramped)]
    assert rows[0] == rows[1]
    assert [ramped.parts.count(parts) > 0 for parts in (4, 2, 1)] == [True, True, True]
    assert list(ramped.parts) == sorted(ramped.parts, reverse=True)
    assert max(ramped.padded[:4]) <= 800 / 3


def progress(step: int, *, rewinds: int = 0) -> RunProgress:
    return RunProgress(step=step, wall_s=1.0, losses=(1.0,) * step, resumed=0, rewinds=rewinds)


def sealed(folder: Path, *steps: int, rewinds: int = 0, back: int = 0) -> Checkpoints:
    checkpoints = Checkpoints(folder)
    for step in steps:
        (folder / f"checkpoint-{step}").mkdir(parents=True, exist_ok=True)
        checkpoints.seal(progress(step, rewinds=rewinds), back=back)
    return checkpoints


def steps_in(folder: Path) -> list[int]:
    return sorted(int(path.name.rpartition("-")[2]) for path in folder.glob("checkpoint-*"))


def test_the_newest_checkpoints_stay_and_one_far_enough_back(tmp_path: Path) -> None:
    sealed(tmp_path, 10, 20, 30, 40, 50, back=25)
    assert steps_in(tmp_path) == [20, 30, 40, 50]


def test_checkpoints_that_a_rewind_undid_are_passed_over(tmp_path: Path) -> None:
    checkpoints = sealed(tmp_path, 10, 20, 30, back=25)
    undoing = Rewind(spike_step=32, to_step=20, skip_start=22, skip_stop=60, reason="loss")
    checkpoints.record([undoing])
    found = checkpoints.latest()
    assert found is not None
    assert found[1].step == 20
    sealed(tmp_path, 25, rewinds=1)
    assert steps_in(tmp_path) == [20, 25]


def judged(*losses: float) -> list[Judgement]:
    return [Judgement(step=10 * n, loss=loss) for n, loss in enumerate(losses, start=1)]


def test_a_student_has_stalled_when_so_many_judgements_brought_no_better_one() -> None:
    assert not has_stalled(judged(3.0, 2.0, 2.1), 2)
    assert has_stalled(judged(3.0, 2.0, 2.1, 2.0), 2)
    assert not has_stalled(judged(3.0, 2.0, 2.1, 2.0), None)


def test_the_best_student_has_the_most_right_answers_then_the_lowest_loss() -> None:
    found = [Judgement(step=1, loss=1.0, accuracy=0.5), Judgement(step=2, loss=2.0, accuracy=0.7)]
    assert best_of(found) == found[1]
    assert best_of(judged(2.0, 1.0, 1.0)) == judged(2.0, 1.0)[1]


def test_rows_of_one_group_are_held_out_together() -> None:
    lessons = [
        Lesson(line=n, prompt=({"role": "user", "content": str(n)},), completion="x", group=f"g{n // 10}")
        for n in range(100)
    ]
    held = hold_out(lessons, share=0.2, by="group", seed=1)
    assert len(held) == 20
    assert len({lessons[n].group for n in held}) == 2


def test_stopping_early_without_rows_to_judge_by_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give dev_share or dev_data"):
        TrainConfig(base=tmp_path, data=tmp_path, output=tmp_path / "s", stop_after=2)


def test_a_tracker_that_is_not_installed_is_named_with_its_extra() -> None:
    with pytest.raises(MissingExtraError, match=r"decant\[no_such_tracker\]"):
        require_trackers(["no_such_tracker"])


def config(base: Path, data: Path, output: Path, **changes: Any) -> TrainConfig:
    settings: dict[str, Any] = {
        "learning_rate": 3e-3,
        "batch_tokens": 512,
        "token_budget": 24000,
        "save_every_steps": 10,
        "method": "lora",
        "compute_dtype": "float32",
        "golden_rows": 1,
        "golden_tokens": 4,
        "threads": 1,
    }
    return TrainConfig(base=base, data=data, output=output, **{**settings, **changes})


def garbage(row: dict[str, Any]) -> dict[str, Any]:
    """The row with two words of its reasoning exchanged throughout: as long as it was, but never seen so."""
    exchanged = {"plus": "is", "is": "plus"}
    words = [exchanged.get(word, word) for word in str(row["reasoning"]).split(" ")]
    return {**row, "reasoning": " ".join(words)}


def with_garbage(config: TrainConfig, target: Path, *, batches: range) -> TrainConfig:
    """The run over rows of which those in some batches are garbage."""
    course = plan_course(config, load_tokenizer(config.base))
    lines = {course.lessons[row].line for n in batches for row in course.plan().batches[n]}
    rows = [json.loads(line) for line in config.data.read_text().splitlines()]
    rows = [garbage(row) if number in lines else row for number, row in enumerate(rows, start=1)]
    target.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return config.with_changes(data=target)


def events_of(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "events.jsonl").read_text().splitlines()]


def test_a_run_goes_back_before_a_spike_says_so_and_leaves_a_page(
    student_base: Path, many_rows: Path, tmp_path: Path
) -> None:
    plain = config(student_base, many_rows, tmp_path / "s", token_budget=50000)
    run(with_garbage(plain, tmp_path / "garbage.jsonl", batches=range(85, 91)))
    training = read_manifest(tmp_path / "s").training or {}
    (rewind,) = training["rewinds"]
    assert rewind["to_step"] < 85 <= rewind["spike_step"] <= 87
    assert rewind["skip_start"] <= 85
    assert rewind["skip_stop"] >= 91
    assert training["steps"] == plan_course(plain, load_tokenizer(student_base)).plan().steps
    kinds = [event["event"] for event in events_of(tmp_path / "s")]
    assert kinds == ["started", "spike", "rewind", "done"]
    page = (tmp_path / "s" / "training.html").read_text()
    assert "rewind at step" in page
    assert "http" not in page


def test_a_run_without_the_rewind_learns_from_the_garbage_too(
    student_base: Path, many_rows: Path, tmp_path: Path
) -> None:
    plain = config(student_base, many_rows, tmp_path / "s", token_budget=45000, spike_rewind=False)
    run(with_garbage(plain, tmp_path / "garbage.jsonl", batches=range(85, 91)))
    assert (read_manifest(tmp_path / "s").training or {})["rewinds"] == []


def test_spikes_that_do_not_end_end_the_run(student_base: Path, many_rows: Path, tmp_path: Path) -> None:
    plain = config(student_base, many_rows, tmp_path / "s", max_rewinds=0, token_budget=50000)
    spoiled = with_garbage(plain, tmp_path / "garbage.jsonl", batches=range(85, 91))
    with pytest.raises(TrainingError, match=r"loss .* at step 8\d of .* after 0 rewinds, the most that"):
        run(spoiled)


def test_the_best_student_is_the_one_that_is_published(
    student_base: Path, curated: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.jsonl"
    rows = [json.loads(line) for line in curated.read_text().splitlines()]
    other.write_text("".join(json.dumps(garbage(row)) + "\n" for row in rows[:40]))
    settings = {"dev_data": other, "eval_every_steps": 3, "stop_after": 2, "spike_rewind": False}
    run(config(student_base, curated, tmp_path / "s", token_budget=40000, **settings))
    training = read_manifest(tmp_path / "s").training or {}
    assert training["stopped_early"]
    assert training["best_step"] == min(training["judgements"], key=lambda one: one["loss"])["step"]
    assert training["steps"] == training["best_step"] + 6
    assert training["rows"]["held_out"] == 40


def test_answers_can_be_what_makes_a_student_the_best(
    student_base: Path, curated: Path, tmp_path: Path
) -> None:
    settings = {"dev_share": 0.2, "dev_rows": 4, "dev_metric": "accuracy", "token_budget": 1500}
    run(config(student_base, curated, tmp_path / "s", **settings))
    (judgement,) = (read_manifest(tmp_path / "s").training or {})["judgements"]
    assert 0.0 <= judgement["accuracy"] <= 1.0


def test_sigterm_ends_a_run_with_a_checkpoint_and_the_command_goes_on(
    student_base: Path, curated: Path, tmp_path: Path
) -> None:
    settings = {"token_budget": 40000, "save_every_steps": 1000}
    saved = tmp_path / "s.checkpoints" / "checkpoint-1" / "progress.json"

    def end_when_under_way() -> None:
        while not saved.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=end_when_under_way, daemon=True).start()
    with pytest.raises(RunStopped, match=r"stopped by SIGTERM at step \d+ of .*the same command") as stopped:
        run(config(student_base, curated, tmp_path / "s", **settings))
    assert stopped.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    run(config(student_base, curated, tmp_path / "s", **settings))
    assert (read_manifest(tmp_path / "s").training or {})["resumed"] == 1


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    "moment", ["rewinds.json", "checkpoint-120/progress.json", "checkpoint-100/optimizer.pt"]
)
def test_a_run_killed_around_a_rewind_ends_bitwise_like_one_that_was_not(
    moment: str, student_base: Path, many_rows: Path, tmp_path: Path
) -> None:
    settings = {
        "token_budget": 60000,
        "method": "qlora",
        "lora_dropout": 0.1,
        "batch_ramp": 2,
        "dev_share": 0.1,
        "eval_every_steps": 7,
    }
    plain = config(student_base, many_rows, tmp_path / "whole", **settings)
    whole = with_garbage(plain, tmp_path / "garbage.jsonl", batches=range(105, 112))
    broken = whole.with_changes(output=tmp_path / "broken")
    killed_at(broken, (tmp_path / "broken.checkpoints" / moment).exists, tmp_path)
    assert not (tmp_path / "broken").exists()
    run(whole)
    run(broken)
    left, right = weights_of(tmp_path / "whole"), weights_of(tmp_path / "broken")
    assert all(torch.equal(left[name], right[name]) for name in left)
    records = [read_manifest(tmp_path / name).training or {} for name in ("whole", "broken")]
    for key in ("loss_curve", "rewinds", "judgements", "best_step"):
        assert records[0][key] == records[1][key]
    assert len(records[0]["rewinds"]) >= 1
    assert records[1]["resumed"] == 1


def test_unknown_ramps_are_refused_by_their_values(tmp_path: Path) -> None:
    from decant.config import validate

    given = {"base": tmp_path, "data": tmp_path, "output": tmp_path / "s", "batch_ramp": 3}
    with pytest.raises(ConfigError, match="batch_ramp"):
        validate(TrainConfig, given, where="here")


def test_curves_go_to_tensorboard_by_name_and_step(student_base: Path, curated: Path, tmp_path: Path) -> None:
    accumulator: Any = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="the extra `tensorboard` is not installed",
    )
    settings = {"report_to": ("tensorboard",), "token_budget": 1500, "dev_share": 0.1}
    run(config(student_base, curated, tmp_path / "s", **settings))
    found = accumulator.EventAccumulator(str(tmp_path / "s.curves" / "tensorboard")).Reload()
    assert set(found.Tags()["scalars"]) == {
        "loss",
        "gradient_norm",
        "learning_rate",
        "tokens_per_s",
        "dev_loss",
    }
    losses = (read_manifest(tmp_path / "s").training or {})["loss_curve"]
    assert [event.step for event in found.Scalars("loss")] == [point["step"] for point in losses]
    assert [event.value for event in found.Scalars("loss")] == pytest.approx([p["loss"] for p in losses])


def test_curves_go_to_weights_and_biases_offline(
    student_base: Path, curated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="the extra `wandb` is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run(config(student_base, curated, tmp_path / "s", report_to=("wandb",), token_budget=1500))
    assert list((tmp_path / "s.curves" / "wandb").rglob("run-*.wandb"))
