"""A student that is corrected on its own answers: what it learns and survives, and which teacher it takes."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")

import torch
from safetensors.torch import load_file

from decant.artifact import read_manifest
from decant.errors import ConfigError, TrainingError
from decant_distill.train.command import run
from decant_distill.train.config import TrainConfig
from decant_distill.train.on_policy import check_on_policy
from decant_distill.train.student import load_base, load_tokenizer


def config(base: Path, data: Path, output: Path, **changes: Any) -> TrainConfig:
    settings: dict[str, Any] = {
        "objective": "on-policy",
        "teacher": base,
        "method": "lora",
        "compute_dtype": "float32",
        "learning_rate": 1e-2,
        "token_budget": 2500,
        "batch_tokens": 640,
        "max_new_tokens": 16,
        "golden_rows": 1,
        "golden_tokens": 4,
        "save_every_steps": 2,
        "threads": 1,
    }
    return TrainConfig(base=base, data=data, output=output, **{**settings, **changes})


@pytest.fixture
def other(student_base: Path, tmp_path: Path) -> Path:
    """The base with other weights: a teacher that the student does not agree with yet."""
    folder = tmp_path / "other"
    shutil.copytree(student_base, folder)
    model = load_base(student_base, dtype="float32", nf4=False)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.down_proj.weight.mul_(0.3)
    model.save_pretrained(folder)
    return folder


def needs_trl() -> None:
    pytest.importorskip("trl", reason="needs the extra trl")
    pytest.importorskip("datasets", reason="needs the extra trl")


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_a_student_comes_closer_to_its_teacher_on_what_it_says_itself(
    method: str, student_base: Path, other: Path, curated: Path, tmp_path: Path
) -> None:
    needs_trl()
    run(config(student_base, curated, tmp_path / "s", teacher=other, method=method, token_budget=9000))
    training = read_manifest(tmp_path / "s").training or {}
    losses = [point["loss"] for point in training["loss_curve"]]
    assert sum(losses[-4:]) < 0.8 * sum(losses[:4])
    weights = load_file(tmp_path / "s" / "adapter_model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}


def test_a_student_that_is_its_teacher_has_nothing_to_learn(
    student_base: Path, curated: Path, tmp_path: Path
) -> None:
    needs_trl()
    run(config(student_base, curated, tmp_path / "s", token_budget=1000))
    (first, *_) = (read_manifest(tmp_path / "s").training or {})["loss_curve"]
    assert first["loss"] == pytest.approx(0.0, abs=1e-5)


def test_a_resumed_run_samples_and_learns_what_an_uninterrupted_one_does(
    student_base: Path, other: Path, curated: Path, tmp_path: Path
) -> None:
    needs_trl()
    whole = config(student_base, curated, tmp_path / "whole", teacher=other)
    run(whole)
    part = whole.with_changes(output=tmp_path / "part")
    broken = tmp_path / "part.checkpoints"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("decant_distill.train.command.publish_student", _dies)
        with pytest.raises(KeyboardInterrupt):
            run(part)
    last = max(broken.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    shutil.rmtree(last)
    run(part)
    left, right = (load_file(tmp_path / n / "adapter_model.safetensors") for n in ("whole", "part"))
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert (read_manifest(tmp_path / "part").training or {})["resumed"] == 1


def _dies(*_args: Any, **_given: Any) -> None:
    raise KeyboardInterrupt


def test_a_teacher_with_another_tokenizer_or_a_padded_output_is_refused_by_name(
    student_base: Path, curated: Path, tmp_path: Path
) -> None:
    needs_trl()
    tokenizer = load_tokenizer(student_base)
    padded = tmp_path / "padded"
    shutil.copytree(student_base, padded)
    described = json.loads((padded / "config.json").read_text())
    (padded / "config.json").write_text(json.dumps({**described, "vocab_size": described["vocab_size"] + 64}))
    with pytest.raises(TrainingError, match="output layer"):
        check_on_policy(config(student_base, curated, tmp_path / "s", teacher=padded), tokenizer)
    stranger = load_tokenizer(student_base)
    stranger.add_tokens(["another"])
    with pytest.raises(TrainingError, match="another tokenizer"):
        check_on_policy(config(student_base, curated, tmp_path / "s"), stranger)


def test_prompts_that_leave_no_room_for_an_answer_are_refused(
    student_base: Path, curated: Path, tmp_path: Path
) -> None:
    needs_trl()
    with pytest.raises(TrainingError, match="no room for max_new_tokens"):
        run(config(student_base, curated, tmp_path / "s", max_new_tokens=250))


def test_settings_that_contradict_each_other_are_refused(student_base: Path, tmp_path: Path) -> None:
    for changes in (
        {"teacher": None},
        {"objective": "labels"},
        {"placement": "multitask"},
        {"lr_sweep": True},
    ):
        with pytest.raises((ConfigError, ValueError)):
            config(student_base, tmp_path, tmp_path / "s", **changes)


def test_a_missing_trl_is_an_error_that_names_the_extra(student_base: Path, tmp_path: Path) -> None:
    import importlib.util

    if importlib.util.find_spec("trl") is not None:
        pytest.skip("trl is installed")
    from decant.errors import MissingExtraError

    with pytest.raises(MissingExtraError, match=r"decant\[trl\]"):
        check_on_policy(config(student_base, tmp_path, tmp_path / "s"), None)
