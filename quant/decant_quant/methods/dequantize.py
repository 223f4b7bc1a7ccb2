# torch leaves some of its types open.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""`dequantize:TYPE`: a quantized folder restored to a plain Hugging Face folder, shard by shard.

F32 holds the quantized weights exactly; F16 and BF16 round them once more.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from decant.files import write_bytes, write_json
from decant.progress import Progress
from decant_quant.method import Written
from decant_quant.methods.folder import copy_side_files, write_index
from decant_quant.methods.restorable import Restorable, open_restorable
from decant_quant.options import Options

if TYPE_CHECKING:
    import torch

_DTYPES: Mapping[str, tuple[str, int]] = {
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "F32": ("float32", 4),
}


def build(variant: str, _options: Options) -> "DequantizeMethod":
    """The method that writes `dequantize:<variant>`; it has no options."""
    return DequantizeMethod(*_DTYPES[variant])


@dataclass(frozen=True, slots=True)
class DequantizeMethod:
    """Restores checkpoints to one number format."""

    dtype: str
    bytes_each: int

    def prepare(self, model: Path) -> "Restoring":
        """Opens a folder in the GPTQ, AWQ or compressed-tensors format."""
        return Restoring(open_restorable(model), self.dtype, self.bytes_each)


@dataclass(frozen=True, slots=True)
class Restoring:
    """A quantized folder that is about to be written out in 16 or 32 bits."""

    source: Restorable
    dtype: str
    bytes_each: int

    @property
    def size_bytes(self) -> int:
        """Bytes of the restored weights."""
        import math

        return sum(math.prod(self.source.shape(name)) * self.bytes_each + 256 for name in self.source.names)

    def write(self, folder: Path) -> Written:
        """Writes config.json, the shards and the tokenizer's files."""
        import safetensors.torch

        parts = self._parts()
        files = [f"model-{n:05}-of-{len(parts):05}.safetensors" for n in range(1, len(parts) + 1)]
        with Progress(len(files), unit="shard", label="dequantize") as progress:
            for file, names in zip(files, parts, strict=True):
                tensors = {name: t.to(self._torch_dtype()) for name, t in self.source.read(names).items()}
                write_bytes(folder / file, safetensors.torch.save(tensors, metadata={"format": "pt"}))
                progress.advance()
        write_index(folder, files)
        config = dict(self.source.checkpoint.config)
        del config["quantization_config"]
        write_json(folder / "config.json", {**config, "dtype": self.dtype})
        copy_side_files(self.source.checkpoint.folder, folder)
        return Written(kind="hf", measurements={"tensor_types": {self.dtype: len(self.source.names)}})

    def done(self) -> None:
        """There is nothing to clear."""

    def _parts(self) -> list[Sequence[str]]:
        """Names by the shard that they lie in."""
        by_file: dict[Path, list[str]] = {}
        for name in self.source.names:
            by_file.setdefault(self.source.file(name), []).append(name)
        return list(by_file.values())

    def _torch_dtype(self) -> "torch.dtype":
        import torch

        return {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}[self.dtype]
