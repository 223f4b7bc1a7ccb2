"""What `decant serve MODEL` is asked to serve: its kind, its files, its manifest."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from decant.artifact import MANIFEST, Manifest, has_manifest, verify_files
from decant.errors import ArtifactError
from decant.files import sha256_file, sha256_path

TargetKind = Literal["hf", "adapter", "gguf", "script", "remote"]

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
_HF_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
_ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_GGUF_MAGIC = b"GGUF"


@dataclass(frozen=True, slots=True)
class Target:
    """One model to serve. `path` is the folder or file that the engine loads; None for a remote one.

    `manifest` is there for an artifact of ours, whose files have then been verified.
    """

    name: str
    kind: TargetKind
    path: Path | None
    manifest: Manifest | None = None
    manifest_sha256: str | None = None
    base: Path | None = None

    @property
    def method(self) -> str | None:
        """How the artifact was made, in its manifest's words."""
        return self.manifest.method if self.manifest else None

    @property
    def size_bytes(self) -> int | None:
        """Size of the weight files; an adapter's own, without its base."""
        if self.manifest:
            return self.manifest.size_bytes
        if self.path is None or self.kind == "script":
            return None
        patterns = {"hf": _HF_WEIGHTS, "adapter": _ADAPTER_WEIGHTS, "gguf": ("*.gguf",)}[self.kind]
        folder = self.path if self.path.is_dir() else self.path.parent
        files = [self.path] if self.path.is_file() else [f for p in patterns for f in folder.glob(p)]
        return sum(file.stat().st_size for file in files)


def find_target(path: Path, *, name: str | None = None) -> Target:
    """Looks at a folder or file and verifies it; ArtifactError names what is missing or altered."""
    if not path.exists():
        raise ArtifactError(f"{path}: no such model folder or file")
    path = path.absolute()
    if path.is_file():
        return _file_target(path, name=name)
    manifest = verify_files(path) if has_manifest(path) else None
    digest = sha256_file(path / MANIFEST) if manifest else None
    kind = _folder_kind(path, manifest)
    name = name or (manifest.name if manifest else path.name)
    if kind == "gguf":
        return Target(name, "gguf", _only_gguf(path), manifest, digest)
    _require_model_files(path, kind)
    base = _adapter_base(path, manifest) if kind == "adapter" else None
    _refuse_encoder_decoder(base or path)
    return Target(name, kind, path, manifest, digest, base)


def _file_target(path: Path, *, name: str | None) -> Target:
    if path.suffix == ".json":
        return Target(name or path.stem, "script", path)
    if path.suffix != ".gguf":
        raise ArtifactError(
            f"{path}: not a model; give a model folder, a .gguf file or a scripted .json file"
        )
    _require_gguf_magic(path)
    return Target(name or path.stem, "gguf", path)


def _folder_kind(path: Path, manifest: Manifest | None) -> Literal["hf", "adapter", "gguf"]:
    if manifest:
        return manifest.kind
    if any(path.glob("*.gguf")):
        return "gguf"
    if (path / "adapter_config.json").is_file():
        return "adapter"
    if (path / "config.json").is_file():
        return "hf"
    raise ArtifactError(
        f"{path}: not a model folder: it has no config.json, adapter_config.json or .gguf file"
    )


def _only_gguf(folder: Path) -> Path:
    found = sorted(folder.glob("*.gguf"))
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise ArtifactError(f"{folder}: expected one .gguf file, found {names}; name the file itself")
    _require_gguf_magic(found[0])
    return found[0]


def _require_gguf_magic(path: Path) -> None:
    with path.open("rb") as file:
        if file.read(len(_GGUF_MAGIC)) != _GGUF_MAGIC:
            raise ArtifactError(f"{path}: not a GGUF file; run `decant quantize` again or fetch it again")


def _require_model_files(folder: Path, kind: Literal["hf", "adapter"]) -> None:
    config = "config.json" if kind == "hf" else "adapter_config.json"
    weights = _HF_WEIGHTS if kind == "hf" else _ADAPTER_WEIGHTS
    for names in ((config,), weights, _TOKENIZER_FILES):
        if not any(next(folder.glob(name), None) for name in names):
            raise ArtifactError(f"{folder}: {names[0]} is missing; copy the whole folder that training saved")


def _refuse_encoder_decoder(folder: Path) -> None:
    file = folder / "config.json"
    try:
        described: Any = json.loads(file.read_bytes()) if file.is_file() else None
    except ValueError:
        return  # the engine says what is wrong with it
    match described:
        case {"is_encoder_decoder": True}:
            raise ArtifactError(
                f"{folder}: is an encoder-decoder, which no engine serves; score it with"
                " `decant merge --dev`, or serve a decoder"
            )
        case _:
            return


def _adapter_base(folder: Path, manifest: Manifest | None) -> Path:
    """The base checkpoint's folder, where training left it or moved along with the adapter.

    Without a manifest, where PEFT's config says: from the current folder, or from the adapter's.
    """
    if manifest is not None and manifest.base is not None:
        moved = folder / str(manifest.measurements.get("base_relative", "."))
        places = [Path(manifest.base), moved]
    else:
        config: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        named = config.get("base_model_name_or_path")
        if not named:
            raise ArtifactError(f"{folder}: adapter_config.json names no base_model_name_or_path")
        places = [Path(named), folder / named]
    base = next((place.resolve() for place in places if (place / "config.json").is_file()), None)
    if base is None:
        raise ArtifactError(
            f"{folder}: its base checkpoint is not at {places[0]}; put it back or merge the adapter"
        )
    if manifest is not None and manifest.base_sha256 not in (None, sha256_path(base)):
        raise ArtifactError(f"{base}: differs from the base {folder} was trained over; restore its files")
    return base
