"""A dry run: memory from config.json alone, beside what torch's allocator really gives out."""

import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")

import torch

from decant.errors import ArtifactError, TrainingError
from decant_distill.train.command import run
from decant_distill.train.config import TrainConfig
from decant_distill.train.memory import find_needs
from decant_distill.train.student import build_student, load_base

ROWS, LENGTH = 16, 128


def config(base: Path, **changes: Any) -> TrainConfig:
    settings: dict[str, Any] = {
        "method": "lora",
        "compute_dtype": "float32",
        "max_length": LENGTH,
        "lora_r": 16,
    }
    return TrainConfig(base=base, data=base, output=base / "s", **{**settings, **changes})


def loss_of(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """The loss alone: as in a run, nobody holds the logits when the backward pass begins."""
    logits = model(input_ids=ids, use_cache=False).logits
    wanted = logits[:, :-1].reshape(-1, logits.shape[-1]).float()
    return torch.nn.functional.cross_entropy(wanted, ids[:, 1:].reshape(-1))


def measured_peak(config: TrainConfig, *, checkpointed: bool) -> int:
    """The most bytes that torch's CPU allocator had given out during two steps, the loaded weights aside."""
    from torch.profiler import profile

    model = build_student(config).train()
    if checkpointed:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    ids = torch.zeros(ROWS, LENGTH, dtype=torch.long)
    with profile(profile_memory=True) as profiled:
        for _ in range(2):
            loss_of(model, ids).backward()
            optimizer.step()
            optimizer.zero_grad()
    held = peak = 0
    profiler: Any = profiled.profiler
    for event in profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


@pytest.mark.parametrize("checkpointed", [False, True])
def test_what_a_step_is_said_to_need_is_what_it_takes(student_base: Path, checkpointed: bool) -> None:
    needs = find_needs(config(student_base))
    standing = needs.standing
    said = needs.step_bytes(ROWS, checkpointed=checkpointed) - standing.weights - standing.adapters
    assert said == pytest.approx(measured_peak(config(student_base), checkpointed=checkpointed), rel=0.15)


def test_nothing_but_the_config_is_read(
    student_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(student_base / "config.json", tmp_path / "config.json")
    run(config(tmp_path, method="qlora", compute_dtype="bfloat16", dry_run=True, device_memory_gb=24))
    said = capsys.readouterr().out
    assert "largest batch on 24.00 GB per device" in said
    assert "each of 8 (FSDP2)" in said
    assert not (tmp_path / "s.checkpoints").exists()


def test_nf4_weights_are_said_to_take_a_little_over_half_a_byte_each(student_base: Path) -> None:
    plain, packed = (find_needs(config(student_base, method=method)).standing for method in ("lora", "qlora"))
    linear = 2 * (4 * 64 * 64 + 3 * 64 * 128)
    assert plain.weights - packed.weights == pytest.approx(linear * (4 - 0.5159), rel=1e-3)


def test_an_on_policy_runs_teacher_is_counted(student_base: Path) -> None:
    plain = config(student_base)
    both = plain.with_changes(objective="on-policy", teacher=student_base)
    weights = sum(p.numel() for p in load_base(student_base, dtype="float32", nf4=False).parameters())
    assert find_needs(both).standing.total - find_needs(plain).standing.total == 4 * weights


def test_a_device_that_not_one_row_fits_is_an_error(student_base: Path) -> None:
    with pytest.raises(TrainingError, match="not one row of 128 tokens fits"):
        run(config(student_base, dry_run=True, device_memory_gb=1e-4))


def test_a_folder_that_describes_no_decoder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ArtifactError, match="describes no decoder"):
        find_needs(config(tmp_path))
