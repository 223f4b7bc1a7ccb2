"""What may be served: folders and files are looked at, verified, and refused with what is wrong."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from decant.artifact import write_manifest
from decant.errors import ArtifactError
from decant.files import sha256_path
from decant_serve.engines.protocol import EngineSettings, build_engine
from decant_serve.golden_check import tolerance_for
from decant_serve.target import find_target


def checkpoint(folder: Path, *, config: str = "config.json", weights: str = "model.safetensors") -> Path:
    """A folder with the files of a model, empty ones."""
    folder.mkdir(parents=True)
    for name in (config, weights, "tokenizer.json"):
        (folder / name).write_text("{}")
    return folder


def adapter(folder: Path, **config: Any) -> Path:
    checkpoint(folder, config="adapter_config.json", weights="adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_an_artifact_is_served_under_its_manifests_name(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "folder")
    write_manifest(folder, name="student", kind="hf", method="full")
    target = find_target(folder)
    assert (target.name, target.kind, target.method, target.size_bytes) == ("student", "hf", "full", 2)


def test_a_folder_without_a_manifest_is_served_under_its_own_name(tmp_path: Path) -> None:
    target = find_target(checkpoint(tmp_path / "plain"))
    assert (target.name, target.kind, target.manifest) == ("plain", "hf", None)


def test_an_encoder_decoder_is_refused_with_what_scores_it(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "t5")
    (folder / "config.json").write_text(json.dumps({"model_type": "t5", "is_encoder_decoder": True}))
    with pytest.raises(ArtifactError, match=r"encoder-decoder, which no engine serves.*merge --dev"):
        find_target(folder)
    over = adapter(tmp_path / "adapter", base_model_name_or_path=str(folder))
    with pytest.raises(ArtifactError, match="encoder-decoder"):
        find_target(over)


def test_an_altered_file_is_refused(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "folder")
    write_manifest(folder, name="student", kind="hf", method="full")
    (folder / "config.json").write_text("[]")
    with pytest.raises(ArtifactError, match=r"config\.json differs from the manifest"):
        find_target(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_folder_that_misses_a_file_is_refused(name: str, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "folder")
    (folder / name).unlink()
    with pytest.raises(ArtifactError, match="is missing"):
        find_target(folder)


def test_a_file_that_the_manifest_lists_and_is_gone_is_named(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "folder")
    write_manifest(folder, name="student", kind="hf", method="full")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ArtifactError, match=r"tokenizer\.json is missing"):
        find_target(folder)


@pytest.mark.parametrize("name", ["nothing", "notes.txt", "empty", "fake.gguf"])
def test_what_is_no_model_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "fake.gguf").write_text("hello")
    with pytest.raises(ArtifactError, match=name):
        find_target(tmp_path / name)


def test_an_adapter_finds_its_base_beside_it(tmp_path: Path) -> None:
    base = checkpoint(tmp_path / "base")
    folder = adapter(tmp_path / "adapter", base_model_name_or_path="../base")
    assert find_target(folder).base == base.resolve()


def test_an_adapter_follows_a_base_that_moved_with_it(tmp_path: Path) -> None:
    base = checkpoint(tmp_path / "base")
    folder = adapter(tmp_path / "adapter")
    details = {
        "base": "/gone",
        "measurements": {"base_relative": "../base"},
        "base_sha256": sha256_path(base),
    }
    write_manifest(folder, name="student", kind="adapter", method="qlora", details=details)
    assert find_target(folder).base == base.resolve()


def test_an_adapter_over_another_base_is_refused(tmp_path: Path) -> None:
    base = checkpoint(tmp_path / "base")
    folder = adapter(tmp_path / "adapter")
    details = {"base": str(base), "base_sha256": "0" * 64}
    write_manifest(folder, name="student", kind="adapter", method="qlora", details=details)
    with pytest.raises(ArtifactError, match="differs from the base"):
        find_target(folder)


def test_an_adapter_without_its_base_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="its base checkpoint is not at"):
        find_target(adapter(tmp_path / "adapter", base_model_name_or_path="gone"))


def test_coarser_methods_may_drift_further() -> None:
    allowed = [
        tolerance_for(method).mean_logprob_gap for method in ("full", "gguf:F16", "gguf:Q8_0", "gguf:Q4_0")
    ]
    assert allowed == sorted(allowed)
    assert allowed[0] < allowed[2] < allowed[3]


def test_the_gptq_format_is_refused_where_its_libraries_are_missing(tmp_path: Path) -> None:
    if all(importlib.util.find_spec(name) for name in ("gptqmodel", "optimum")):
        pytest.skip("transformers can load it here")
    folder = checkpoint(tmp_path / "gptq")
    (folder / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "gptq"}}))
    settings = EngineSettings(find_target(folder), tmp_path / "socket", 1, 512, 1)
    with pytest.raises(
        ArtifactError, match=r"gptq format, .*serve it with vLLM, or restore .*--method dequantize:F16"
    ):
        build_engine("transformers", settings)
