# torch leaves some of its types open.
# pyright: reportUnknownMemberType=false
"""`hf:TYPE`: an unquantized folder written in 16 bits, shard by shard: what every engine loads."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from decant.files import write_bytes, write_json
from decant.progress import Progress
from decant_quant.checkpoint import Checkpoint, open_checkpoint
from decant_quant.method import Written
from decant_quant.methods.folder import copy_side_files, write_index
from decant_quant.methods.measuring import Measuring, Report, measuring_if_asked
from decant_quant.methods.reading import read_checked, read_plain
from decant_quant.options import Options

if TYPE_CHECKING:
    from torch import Tensor

_DTYPES: Mapping[str, str] = {"F16": "float16", "BF16": "bfloat16"}


def build(variant: str, options: Options) -> "HfMethod":
    """The method that writes `hf:<variant>`."""
    return HfMethod(variant, options)


@dataclass(frozen=True, slots=True)
class HfMethod:
    """Writes plain checkpoints of one number format."""

    variant: str
    options: Options

    def prepare(self, model: Path) -> "HfConversion":
        """Opens a plain folder, of any architecture unless its loss is to be measured."""
        checkpoint = open_checkpoint(model)
        return HfConversion(checkpoint, self.variant, measuring_if_asked(checkpoint, self.options))


@dataclass(frozen=True, slots=True)
class HfConversion:
    """A plain folder that is about to be written in another number format."""

    checkpoint: Checkpoint
    variant: str
    measuring: Measuring | None

    @property
    def size_bytes(self) -> int:
        """Bytes of the weights."""
        return sum(math.prod(t.shape) * 2 + 256 for t in self.checkpoint.tensors.values())

    def write(self, folder: Path) -> Written:
        """Writes config.json, the shards and the tokenizer's files; measures them where rows were given."""
        import safetensors.torch

        shards = self._shards()
        files = [f"model-{n:05}-of-{len(shards):05}.safetensors" for n in range(1, len(shards) + 1)]
        with Progress(len(files), unit="shard", label="hf") as progress:
            for file, names in zip(files, shards, strict=True):
                write_bytes(folder / file, safetensors.torch.save(self._rounded(names), {"format": "pt"}))
                progress.advance()
        write_index(folder, files)
        config = {key: value for key, value in self.checkpoint.config.items() if key != "torch_dtype"}
        write_json(folder / "config.json", {**config, "dtype": _DTYPES[self.variant]})
        copy_side_files(self.checkpoint.folder, folder)
        counts = Counter({self.variant: len(self.checkpoint.tensors)})
        if self.measuring is None:
            return Written(kind="hf", measurements={"tensor_types": dict(counts)})
        written = open_checkpoint(folder)
        measured = self.measuring.measure(lambda names: read_plain(written, names))
        report = Report(f"hf:{self.variant}", measured, restored_by="the written weights, run in torch")
        return Written(
            kind="hf",
            measurements={"tensor_types": dict(counts), **report.write(folder, self.measuring)},
            notes=(measured.quality.sentence(),),
        )

    def done(self) -> None:
        """There is nothing to clear."""

    def _rounded(self, names: Sequence[str]) -> "dict[str, Tensor]":
        import torch

        dtype = {"F16": torch.float16, "BF16": torch.bfloat16}[self.variant]
        return {name: tensor.to(dtype) for name, tensor in read_checked(self.checkpoint, names).items()}

    def _shards(self) -> list[list[str]]:
        by_file: dict[Path, list[str]] = {}
        for name, tensor in self.checkpoint.tensors.items():
            by_file.setdefault(tensor.file, []).append(name)
        return list(by_file.values())
