"""A model folder is what its manifest says, or it is refused."""

from pathlib import Path

import pytest

from decant.artifact import read_manifest, verify_files, write_manifest
from decant.errors import ArtifactError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = tmp_path / "student"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"12345")
    (model / "tokenizer.json").write_text("{}")
    write_manifest(model, name="student", kind="hf", method="merge", details={"measurements": {"x": 1}})
    return model


def test_a_manifest_reads_back(folder: Path) -> None:
    manifest = verify_files(folder)
    assert manifest == read_manifest(folder)
    assert (manifest.size_bytes, manifest.kind, manifest.measurements) == (5, "hf", {"x": 1})
    assert manifest.tokenizer_sha256 == manifest.files["tokenizer.json"].sha256


def test_a_child_names_its_parent(folder: Path, tmp_path: Path) -> None:
    child = tmp_path / "child"
    child.mkdir()
    manifest = write_manifest(child, name="child", kind="gguf", method="gguf:Q8_0", parent=folder)
    assert manifest.parent is not None
    assert manifest.parent.name == "student"
    assert manifest.parent.manifest_sha256 is not None


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"model\.safetensors is missing"):
        verify_files(folder)


@pytest.mark.parametrize("content", [b"12346", b"1234"])
def test_an_altered_file_is_named(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"sha256 of model\.safetensors differs"):
        verify_files(folder)


def test_a_folder_without_manifest_and_a_broken_manifest_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"has no manifest\.json"):
        read_manifest(tmp_path)
    (folder / "manifest.json").write_text("{}")
    with pytest.raises(ArtifactError, match="Field required"):
        read_manifest(folder)
