"""Merging: the route that keeps the student's words wins, a merge that loses them is refused."""

import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")
pytest.importorskip("bitsandbytes")

import torch
from safetensors.torch import load_file, save_file

from decant.artifact import Manifest, read_manifest, verify_files, write_manifest
from decant.errors import ArtifactError, ParityError
from decant.files import sha256_path
from decant_distill.merge import MergeConfig, run
from decant_distill.merge_dev import judge
from decant_distill.train.config import TrainConfig
from decant_distill.train.dev_scores import DevScore
from decant_distill.train.observe import record_golden
from decant_distill.train.publish import publish_student
from decant_distill.train.student import build_student, load_tokenizer

QUESTIONS = ("It shows 7. It goes up by 2. What now?", "It shows 3. What now?")


def make_adapter(base: Path, output: Path, *, method: Any = "qlora") -> Path:
    """An adapter artifact whose deltas are large and random, as if it had been trained."""
    config = TrainConfig(base=base, data=base, output=output, method=method, compute_dtype="float32")
    model, tokenizer = build_student(config), load_tokenizer(base)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.copy_(0.02 * torch.randn(weight.shape, generator=generator))
    conversations = [[{"role": "user", "content": question}] for question in QUESTIONS]
    golden = record_golden(model, tokenizer, conversations, stage="trained", max_tokens=12)
    publish_student(
        model, tokenizer, config=config, base_sha256=sha256_path(base), golden=golden, training={"tokens": 0}
    )
    return output


@pytest.fixture(scope="module")
def workdir(student_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and an adapter over it, in one folder."""
    folder = tmp_path_factory.mktemp("work")
    shutil.copytree(student_base, folder / "base")
    make_adapter(folder / "base", folder / "adapter")
    return folder


@pytest.fixture
def copy(workdir: Path, tmp_path: Path) -> Path:
    """The same after it was moved, the original base out of reach."""
    moved = shutil.copytree(workdir, tmp_path / "moved")
    manifest = read_manifest(moved / "adapter")
    rewrite(moved / "adapter", manifest, base=str(tmp_path / "gone"))
    return moved


def rewrite(folder: Path, manifest: Manifest, **details: Any) -> None:
    fields = {
        name: dict(manifest)[name] for name in ("base", "base_sha256", "recipe", "training", "measurements")
    }
    write_manifest(
        folder,
        name=manifest.name,
        kind=manifest.kind,
        method=manifest.method,
        golden=manifest.golden,
        details={**fields, **details},
    )


def test_a_merged_model_is_a_plain_folder_that_says_what_the_adapter_said(
    workdir: Path, tmp_path: Path
) -> None:
    run(MergeConfig(adapter=workdir / "adapter", output=tmp_path / "m", dtype="float32"))
    adapter, merged = read_manifest(workdir / "adapter"), verify_files(tmp_path / "m")
    assert adapter.golden is not None
    assert merged.golden is not None
    assert [p.token_ids for p in merged.golden.prompts] == [p.token_ids for p in adapter.golden.prompts]
    assert (merged.kind, merged.parent and merged.parent.name) == ("hf", "adapter")
    assert merged.tokenizer_sha256 == adapter.tokenizer_sha256
    assert merged.chat_template_sha256 == adapter.chat_template_sha256


def test_an_adapter_learned_over_nf4_is_closest_to_the_dequantized_base(
    workdir: Path, tmp_path: Path
) -> None:
    run(MergeConfig(adapter=workdir / "adapter", output=tmp_path / "m", dtype="float32"))
    merge = read_manifest(tmp_path / "m").measurements["merge"]
    assert merge["route"] == "dequantized"
    assert merge["routes"]["dequantized"]["max_logprob_gap"] < 1e-3
    assert merge["routes"]["base"]["max_logprob_gap"] > merge["routes"]["dequantized"]["max_logprob_gap"]


def test_an_adapter_over_an_unquantized_base_has_one_route(student_base: Path, tmp_path: Path) -> None:
    make_adapter(student_base, tmp_path / "adapter", method="lora")
    run(MergeConfig(adapter=tmp_path / "adapter", output=tmp_path / "m"))
    merge = read_manifest(tmp_path / "m").measurements["merge"]
    assert list(merge["routes"]) == ["base"]


def test_every_route_is_scored_on_held_out_rows_beside_the_adapter(
    workdir: Path, curated: Path, tmp_path: Path
) -> None:
    run(
        MergeConfig(
            adapter=workdir / "adapter", output=tmp_path / "m", dtype="float32", dev=curated, dev_rows=20
        )
    )
    merge = read_manifest(tmp_path / "m").measurements["merge"]
    scores = merge["dev"]["routes"]
    assert (list(scores), merge["dev"]["rows"]) == (["unmerged", "base", "dequantized"], 20)
    assert scores["dequantized"]["loss"] == pytest.approx(scores["unmerged"]["loss"], abs=1e-3)
    assert merge["route"] == min(("base", "dequantized"), key=lambda route: scores[route]["loss"])


def test_a_merge_that_is_worse_on_held_out_rows_is_refused() -> None:
    adapter, merged = DevScore(1.0, (True, False)), DevScore(1.05, (True, True))
    judge(adapter, merged, most_loss=0.06).raise_if_worse(Path("student"), route="base")
    with pytest.raises(ParityError, match=r"\(base\) is worse than student on 2 held-out rows: loss \+0.05"):
        judge(adapter, merged, most_loss=0.02).raise_if_worse(Path("student"), route="base")


def test_fewer_right_answers_than_chance_explains_are_worse() -> None:
    adapter = DevScore(loss=1.0, correct=(True,) * 40)
    assert judge(adapter, DevScore(loss=1.0, correct=(True,) * 30 + (False,) * 10), most_loss=0.02).is_worse
    assert not judge(adapter, DevScore(loss=1.0, correct=(True,) * 39 + (False,)), most_loss=0.02).is_worse


def test_the_merged_model_stops_at_the_tokenizers_end_token(workdir: Path, tmp_path: Path) -> None:
    from transformers import GenerationConfig

    run(MergeConfig(adapter=workdir / "adapter", output=tmp_path / "m"))
    settings: Any = GenerationConfig.from_pretrained(tmp_path / "m")
    assert settings.eos_token_id == load_tokenizer(tmp_path / "m").eos_token_id


def test_a_merge_that_changes_the_answers_is_refused_and_leaves_nothing(copy: Path, tmp_path: Path) -> None:
    weights = load_file(copy / "adapter" / "adapter_model.safetensors")
    name = next(name for name in weights if "up_proj.lora_B" in name)
    weights[name] = weights[name].flip(0).contiguous() * 20
    save_file(weights, copy / "adapter" / "adapter_model.safetensors")
    rewrite(copy / "adapter", read_manifest(copy / "adapter"))
    with pytest.raises(ParityError, match="stage merged: weights broken"):
        run(MergeConfig(adapter=copy / "adapter", output=tmp_path / "m"))
    assert [path.name for path in tmp_path.iterdir()] == ["moved"]


def test_an_adapter_finds_its_base_when_both_were_moved(copy: Path, tmp_path: Path) -> None:
    run(MergeConfig(adapter=copy / "adapter", output=tmp_path / "m"))
    assert (tmp_path / "m" / "model.safetensors").is_file()


def test_a_missing_base_is_named(copy: Path, tmp_path: Path) -> None:
    shutil.move(copy / "base", copy / "elsewhere")
    with pytest.raises(ArtifactError, match=r"its base is not at .*gone nor at .*moved/base"):
        run(MergeConfig(adapter=copy / "adapter", output=tmp_path / "m"))
    run(MergeConfig(adapter=copy / "adapter", output=tmp_path / "m", base=copy / "elsewhere"))


def test_another_base_than_the_trained_one_is_refused(copy: Path, tmp_path: Path) -> None:
    (copy / "base" / "generation_config.json").write_text("{}")
    with pytest.raises(ArtifactError, match="differs from the base"):
        run(MergeConfig(adapter=copy / "adapter", output=tmp_path / "m"))


def test_an_adapter_with_an_altered_file_is_refused(copy: Path, tmp_path: Path) -> None:
    (copy / "adapter" / "chat_template.jinja").write_text("{{ messages }}")
    with pytest.raises(ArtifactError, match=r"chat_template\.jinja differs from the manifest"):
        run(MergeConfig(adapter=copy / "adapter", output=tmp_path / "m"))


def test_a_model_that_is_no_adapter_needs_no_merging(workdir: Path, tmp_path: Path) -> None:
    run(MergeConfig(adapter=workdir / "adapter", output=tmp_path / "m"))
    with pytest.raises(ArtifactError, match="is no adapter"):
        run(MergeConfig(adapter=tmp_path / "m", output=tmp_path / "n"))
