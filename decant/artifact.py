"""A model folder and its manifest.json: what it is, what it came from, its hashes, its golden prompts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from decant import __version__
from decant.errors import ArtifactError
from decant.files import sha256_file, write_text
from decant.golden import GoldenSet

MANIFEST = "manifest.json"
TOKENIZER_FILE = "tokenizer.json"
TEMPLATE_FILE = "chat_template.jinja"
WEIGHT_SUFFIXES = (".safetensors", ".gguf", ".bin")

Kind = Literal["hf", "adapter", "gguf"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class FileRecord(_Frozen):
    """One file of an artifact."""

    sha256: str
    size_bytes: int


class Parent(_Frozen):
    """The artifact that this one was made from."""

    name: str
    path: str
    manifest_sha256: str | None


class Manifest(_Frozen):
    """What manifest.json holds. `size_bytes` counts the weight files only."""

    format_version: Literal[1] = 1
    name: str
    kind: Kind
    method: str
    base: str | None = None
    base_sha256: str | None = None
    parent: Parent | None = None
    recipe: dict[str, Any] = {}
    tokenizer_sha256: str | None = None
    chat_template_sha256: str | None = None
    files: dict[str, FileRecord]
    size_bytes: int
    golden: GoldenSet | None = None
    training: dict[str, Any] | None = None
    measurements: dict[str, Any] = {}
    decant_version: str = __version__


def write_manifest(
    folder: Path,
    *,
    name: str,
    kind: Kind,
    method: str,
    parent: Path | None = None,
    golden: GoldenSet | None = None,
    details: Mapping[str, Any] | None = None,
) -> Manifest:
    """Hashes every file in `folder` and writes its manifest, last of all.

    `details` fills the manifest's other fields: base, base_sha256, recipe, training, measurements.
    """
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    files = {
        path.relative_to(folder).as_posix(): FileRecord(
            sha256=sha256_file(path), size_bytes=path.stat().st_size
        )
        for path in paths
    }
    weights = [record.size_bytes for file, record in files.items() if file.endswith(WEIGHT_SUFFIXES)]
    manifest = Manifest(
        name=name,
        kind=kind,
        method=method,
        parent=_parent(parent),
        golden=golden,
        files=files,
        size_bytes=sum(weights),
        tokenizer_sha256=files[TOKENIZER_FILE].sha256 if TOKENIZER_FILE in files else None,
        chat_template_sha256=files[TEMPLATE_FILE].sha256 if TEMPLATE_FILE in files else None,
        **dict(details or {}),
    )
    write_text(folder / MANIFEST, manifest.model_dump_json(indent=1) + "\n")
    return manifest


def has_manifest(folder: Path) -> bool:
    """Whether the folder is an artifact of ours."""
    return (folder / MANIFEST).is_file()


def read_manifest(folder: Path) -> Manifest:
    """The manifest of an artifact folder; ArtifactError when there is none or it cannot be read."""
    path = folder / MANIFEST
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise ArtifactError(f"{folder}: has no {MANIFEST}; make it with train, merge or quantize") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ArtifactError(f"{path}: {where}: {first['msg']}; make the artifact again") from None


def verify_files(folder: Path) -> Manifest:
    """Reads the manifest and re-hashes its files; ArtifactError names the first missing or altered one."""
    manifest = read_manifest(folder)
    again = f"run the {manifest.method} stage again or restore the file"
    for name, record in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise ArtifactError(f"{folder}: {name} is missing; {again}")
        if path.stat().st_size != record.size_bytes or sha256_file(path) != record.sha256:
            raise ArtifactError(f"{path}: sha256 of {name} differs from the manifest; {again}")
    return manifest


def _parent(folder: Path | None) -> Parent | None:
    if folder is None:
        return None
    manifest = folder / MANIFEST
    digest = sha256_file(manifest) if manifest.is_file() else None
    return Parent(name=folder.name, path=str(folder.absolute()), manifest_sha256=digest)
