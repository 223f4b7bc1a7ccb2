"""Every family of students goes the whole way: encoded, trained, published, merged, its words unchanged."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")
pytest.importorskip("bitsandbytes")

import torch

from decant.artifact import read_manifest, verify_files
from decant.errors import ArtifactError, TrainingError
from decant_distill.merge import MergeConfig
from decant_distill.merge import run as merge
from decant_distill.train.command import run
from decant_distill.train.config import TrainConfig
from decant_distill.train.lr_sweep import is_swept
from decant_distill.train.student import build_optimizer, build_student, load_base, nf4_layers


def config(base: Path, data: Path, output: Path, **changes: Any) -> TrainConfig:
    settings: dict[str, Any] = {
        "learning_rate": 1e-3,
        "batch_tokens": 512,
        "token_budget": 600,
        "golden_rows": 2,
        "golden_tokens": 8,
        "compute_dtype": "float32",
        "threads": 1,
    }
    return TrainConfig(base=base, data=data, output=output, **{**settings, **changes})


def trained_and_merged(given: TrainConfig, output: Path) -> tuple[Any, Any]:
    run(given)
    merge(MergeConfig(adapter=given.output, output=output, dtype="float32", threads=1))
    return verify_files(given.output), verify_files(output)


def test_a_decoder_of_each_family_is_taught_and_merged(
    family_base: Path, curated: Path, tmp_path: Path
) -> None:
    adapter, merged = trained_and_merged(config(family_base, curated, tmp_path / "s"), tmp_path / "m")
    assert adapter.golden is not None
    assert merged.golden is not None
    assert (adapter.training or {})["steps"] == 2
    assert [p.token_ids for p in merged.golden.prompts] == [p.token_ids for p in adapter.golden.prompts]


@pytest.mark.parametrize(("method", "dtype"), [("qlora", "bfloat16"), ("lora", "float32")])
def test_an_encoder_decoder_is_taught_and_merged(
    method: str, dtype: str, t5_base: Path, curated: Path, tmp_path: Path
) -> None:
    given = config(t5_base, curated, tmp_path / "s", method=method, compute_dtype=dtype)
    adapter, merged = trained_and_merged(given, tmp_path / "m")
    assert adapter.golden is not None
    assert merged.golden is not None
    assert adapter.golden.prompts[0].rendered.endswith("<|end|>")
    merge = merged.measurements["merge"]
    assert merge["routes"][merge["route"]]["breaks"] == []
    assert adapter.chat_template_sha256 == merged.chat_template_sha256 is not None


def test_an_encoder_decoder_says_what_generate_says(t5_base: Path, curated: Path, tmp_path: Path) -> None:
    run(config(t5_base, curated, tmp_path / "s", method="full"))
    golden = read_manifest(tmp_path / "s").golden
    assert golden is not None
    model = load_base(tmp_path / "s", dtype="float32", nf4=False)
    ids = torch.tensor([golden.prompts[0].prompt_ids])
    said = model.generate(input_ids=ids, max_new_tokens=golden.max_tokens, do_sample=False)[0, 1:].tolist()
    assert said[: len(golden.prompts[0].token_ids)] == list(golden.prompts[0].token_ids)


def test_every_linear_layer_of_a_t5_learns(t5_base: Path, tmp_path: Path) -> None:
    student = build_student(config(t5_base, tmp_path, tmp_path / "s"))
    learning = {name.rpartition(".lora_")[0] for name, p in student.named_parameters() if p.requires_grad}
    assert {name.rpartition(".")[2] for name in learning} == {"q", "k", "v", "o", "wi_0", "wi_1", "wo"}
    assert len(learning) == 2 * (4 + 3) + 2 * (8 + 3)
    assert nf4_layers(student)
    assert {p.dtype for p in student.parameters() if p.requires_grad} == {torch.float32}


def test_an_encoder_decoder_in_float16_is_refused(t5_base: Path, curated: Path, tmp_path: Path) -> None:
    run(config(t5_base, curated, tmp_path / "s", method="lora"))
    with pytest.raises(ArtifactError, match="float16 overflows; use bfloat16"):
        merge(MergeConfig(adapter=tmp_path / "s", output=tmp_path / "m", dtype="float16"))


@pytest.mark.parametrize(
    "variant",
    [
        {"adapter": "rslora"},
        {"adapter": "dora"},
        {"adapter": "pissa", "method": "lora"},
        {"lora_plus_ratio": 8.0},
        {"gradient_checkpointing": True},
        {"placement": "multitask"},
    ],
    ids=lambda variant: "-".join(map(str, next(iter(variant.items())))),
)
def test_each_variant_is_taught_and_merged(
    variant: dict[str, Any], student_base: Path, curated: Path, tmp_path: Path
) -> None:
    given = config(student_base, curated, tmp_path / "s", lora_r=8, lora_alpha=8, **variant)
    adapter, merged = trained_and_merged(given, tmp_path / "m")
    assert adapter.golden is not None
    assert merged.measurements["merge"]["routes"][merged.measurements["merge"]["route"]]["breaks"] == []


def test_lora_plus_teaches_b_faster_than_a(student_base: Path, tmp_path: Path) -> None:
    given = config(student_base, tmp_path, tmp_path / "s", lora_plus_ratio=8.0)
    student = build_student(given)
    rates = {group["lr"] for group in build_optimizer(student, given).param_groups if group["params"]}
    assert rates == {1e-3, 8e-3}


def test_checkpointed_gradients_are_those_of_a_plain_run(
    student_base: Path, curated: Path, tmp_path: Path
) -> None:
    losses = []
    for name, checkpointing in (("a", False), ("b", True)):
        given = config(student_base, curated, tmp_path / name, gradient_checkpointing=checkpointing)
        run(given)
        losses.append((read_manifest(tmp_path / name).training or {})["loss_curve"])
    assert losses[0] == losses[1]


def test_a_sweep_keeps_the_rate_that_left_the_lowest_loss(
    student_base: Path, curated: Path, tmp_path: Path
) -> None:
    run(config(student_base, curated, tmp_path / "s", lr_sweep=True))
    manifest = read_manifest(tmp_path / "s")
    trials = (manifest.training or {})["lr_sweep"]
    assert [round(trial["learning_rate"] / 1e-3, 2) for trial in trials] == [0.33, 1.0, 3.0]
    best = min(trials, key=lambda trial: trial["loss"])
    assert manifest.recipe["learning_rate"] == best["learning_rate"]


def test_only_a_long_run_whose_rate_nobody_chose_is_swept(tmp_path: Path) -> None:
    named = TrainConfig(base=tmp_path, data=tmp_path, output=tmp_path, learning_rate=1e-4)
    unnamed = TrainConfig(base=tmp_path, data=tmp_path, output=tmp_path)
    assert [is_swept(named, steps=5000), is_swept(unnamed, steps=50), is_swept(unnamed, steps=5000)] == [
        False,
        False,
        True,
    ]


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(
    student_base: Path, curated: Path, tmp_path: Path
) -> None:
    import json
    import shutil

    base = shutil.copytree(student_base, tmp_path / "base")
    described = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**described, "vocab_size": 10}))
    with pytest.raises(TrainingError, match=r"writes token \d+, but the model has 10 only"):
        run(config(base, curated, tmp_path / "s"))
