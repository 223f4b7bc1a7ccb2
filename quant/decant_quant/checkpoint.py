"""A Hugging Face model folder read tensor by tensor: config.json and safetensors shards, without torch.

Safetensors format: 8 bytes of header length (little-endian), a JSON header, then the raw tensors.
"""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from decant.errors import QuantizeError

# numpy has no bfloat16: its 16 bits are read as integers and widened by a shift.
_STORED_AS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
# What quantized checkpoints hold beside floats.
_CODES_AS = {"I8": "|i1", "F8_E4M3": "|u1", "I32": "<i4", "I64": "<i8"}
_WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where one tensor lies: `offset` counts from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int

    def read(self) -> NDArray[Any]:
        """The tensor as it is stored, mapped from disk; bfloat16 and float8 come as their bits."""
        dtype = {**_STORED_AS, **_CODES_AS}[self.dtype]
        if 0 in self.shape:
            return np.zeros(self.shape, dtype)
        return np.memmap(self.file, dtype, mode="r", offset=self.offset, shape=self.shape)

    def widen(self, stored: NDArray[Any]) -> NDArray[np.float32]:
        """Any part of what `read` gave, as float32."""
        if self.dtype == "BF16":
            return (stored.astype(np.uint32) << 16).view(np.float32)
        return stored.astype(np.float32)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model folder's config and the tensors in its shards."""

    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]

    @property
    def architecture(self) -> str:
        """The name of the transformers class that the checkpoint was saved from."""
        names = self.config.get("architectures") or ["none"]
        return str(names[0])

    def number(self, key: str, *, default: float | None = None) -> float:
        """A number of config.json; QuantizeError when it has none and there is no default."""
        value = self.config.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise QuantizeError(f"{self.folder / 'config.json'}: {key} must be a number (got {value!r})")
        return value

    def integer(self, key: str, *, default: int | None = None) -> int:
        """A whole number of config.json."""
        return int(self.number(key, default=default))


def open_checkpoint(folder: Path) -> Checkpoint:
    """Reads config.json and the shards' headers; QuantizeError when it is no whole, unquantized model."""
    if folder.is_file():
        raise QuantizeError(f"{folder}: is a file; give the Hugging Face model folder that it was made from")
    if not folder.is_dir():
        raise QuantizeError(f"{folder}: no such folder; give a Hugging Face model folder")
    if (folder / "adapter_config.json").is_file():
        raise QuantizeError(f"{folder}: is an adapter; run `decant merge` and quantize what it writes")
    config = read_json(folder / "config.json")
    if config.get("quantization_config"):
        raise QuantizeError(
            f"{folder}: is already quantized; quantize the 16-bit checkpoint it was made from"
        )
    return Checkpoint(folder=folder, config=config, tensors=_tensors(folder, known=_STORED_AS))


def open_quantized(folder: Path) -> Checkpoint:
    """As `open_checkpoint`, for a folder whose config.json has a quantization_config."""
    if not folder.is_dir():
        raise QuantizeError(f"{folder}: no such folder; give a quantized Hugging Face model folder")
    config = read_json(folder / "config.json")
    if not config.get("quantization_config"):
        raise QuantizeError(f"{folder}: is not quantized: its config.json has no quantization_config")
    return Checkpoint(
        folder=folder, config=config, tensors=_tensors(folder, known={**_STORED_AS, **_CODES_AS})
    )


def open_any(folder: Path) -> Checkpoint:
    """A model folder, quantized or not."""
    quantized = bool(read_json(folder / "config.json").get("quantization_config"))
    return open_quantized(folder) if quantized else open_checkpoint(folder)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file whose top level is a table; QuantizeError when it is missing or anything else."""
    try:
        value: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise QuantizeError(
            f"{path.parent}: has no {path.name}; give a Hugging Face model folder with its tokenizer"
        ) from None
    except ValueError as error:
        raise QuantizeError(f"{path}: is not JSON ({error}); copy the file again") from None
    if not isinstance(value, dict):
        raise QuantizeError(f"{path}: must be a JSON object; copy the file again")
    return cast("dict[str, Any]", value)


def _tensors(folder: Path, *, known: Mapping[str, str]) -> dict[str, StoredTensor]:
    tensors: dict[str, StoredTensor] = {}
    for shard in _shards(folder):
        tensors.update(_header(shard, known))
    return tensors


def stored_tensors(shard: Path) -> dict[str, StoredTensor]:
    """The tensors of one safetensors file, codes of quantized checkpoints among them."""
    return _header(shard, {**_STORED_AS, **_CODES_AS})


def _shards(folder: Path) -> list[Path]:
    if (folder / INDEX).is_file():
        names = sorted(set(read_json(folder / INDEX).get("weight_map", {}).values()))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing or not names:
            raise QuantizeError(
                f"{folder}: lacks the shard {', '.join(missing) or 'names'} of {INDEX}; copy it again"
            )
        return [folder / name for name in names]
    if (folder / _WEIGHTS).is_file():
        return [folder / _WEIGHTS]
    raise QuantizeError(
        f"{folder}: has no {_WEIGHTS}; save the model with save_pretrained (safe serialization)"
    )


def _header(shard: Path, known: Mapping[str, str]) -> dict[str, StoredTensor]:
    size = shard.stat().st_size
    with shard.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length > size - 8:
            raise QuantizeError(f"{shard}: is not a safetensors file or was cut short; copy it again")
        try:
            header: dict[str, Any] = json.loads(file.read(length))
        except ValueError:
            raise QuantizeError(f"{shard}: its header is not JSON; copy it again") from None
    header.pop("__metadata__", None)
    found = {name: _entry(shard, name, item, base=8 + length, known=known) for name, item in header.items()}
    if any(8 + length + item["data_offsets"][1] > size for item in header.values()):
        raise QuantizeError(f"{shard}: was cut short; copy it again")
    return found


def _entry(
    shard: Path, name: str, item: Mapping[str, Any], *, base: int, known: Mapping[str, str]
) -> StoredTensor:
    if item["dtype"] not in known:
        raise QuantizeError(
            f"{shard}: {name} is stored as {item['dtype']}; only {', '.join(known)} can be read:"
            f" save it in 16 bits"
        )
    return StoredTensor(
        name=name,
        dtype=item["dtype"],
        shape=tuple(item["shape"]),
        file=shard,
        offset=base + item["data_offsets"][0],
    )
