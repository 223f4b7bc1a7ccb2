# torch leaves some of its types open.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""`fp8`: linears in float8 (e4m3) with one scale per output, in the layout of compressed-tensors.

Engines round the inputs of each token to float8 as they come, so no calibration rows are needed.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decant.errors import QuantizeError
from decant.files import write_bytes, write_json
from decant.progress import Progress
from decant_quant.checkpoint import Checkpoint, StoredTensor, open_checkpoint
from decant_quant.method import Written
from decant_quant.methods.folder import copy_side_files, write_index
from decant_quant.methods.layouts import WEIGHT_SCALE, compressed
from decant_quant.methods.measuring import Measuring, Report, checking
from decant_quant.methods.reading import read_checked
from decant_quant.methods.restorable import open_restorable
from decant_quant.methods.rounding import FP8_TOP
from decant_quant.options import Options

if TYPE_CHECKING:
    from torch import Tensor

# Kernels take sides that are whole numbers of these.
_TILE = 16
_LEAST_SCALE = 1e-12
_SUFFIX = ".weight"
_WEIGHTS = {
    "type": "float",
    "num_bits": 8,
    "symmetric": True,
    "strategy": "channel",
    "group_size": None,
    "dynamic": False,
}


def build(_variant: str, options: Options) -> "Fp8Method":
    """The method behind `fp8`; QuantizeError for a layout that does not hold float8."""
    if options.layout not in (None, "compressed-tensors"):
        raise QuantizeError(
            f"fp8 is written as compressed-tensors only, not {options.layout}; leave --layout out"
        )
    return Fp8Method(options)


@dataclass(frozen=True, slots=True)
class Fp8Method:
    """Rounds the linears of the layers; embedding, norms and output head stay in 16 bits."""

    options: Options

    def prepare(self, model: Path) -> "Fp8Run":
        """Opens a plain folder; QuantizeError for sides that kernels do not take."""
        checkpoint = open_checkpoint(model)
        for tensor in checkpoint.tensors.values():
            if _is_linear(tensor) and any(side % _TILE for side in tensor.shape):
                raise QuantizeError(
                    f"{tensor.name} has shape {list(tensor.shape)}; float8 kernels take sides that are"
                    f" multiples of {_TILE}: use hf:F16"
                )
        return Fp8Run(checkpoint, checking(checkpoint, self.options))


@dataclass(frozen=True, slots=True)
class Fp8Run:
    """A plain folder that is about to be rounded to float8."""

    checkpoint: Checkpoint
    measuring: Measuring

    @property
    def size_bytes(self) -> int:
        """Bytes of the weights, a little more rather than less."""
        tensors = self.checkpoint.tensors.values()
        each = (
            (math.prod(t.shape), 1 if _is_linear(t) else 2, t.shape[0] if t.shape else 1) for t in tensors
        )
        return sum(count * width + 4 * rows + 512 for count, width, rows in each)

    def write(self, folder: Path) -> Written:
        """Writes config.json, the shards and the tokenizer's files; measures them where rows were given."""
        import safetensors.torch

        shards = self._shards()
        files = [f"model-{n:05}-of-{len(shards):05}.safetensors" for n in range(1, len(shards) + 1)]
        with Progress(len(files), unit="shard", label="fp8") as progress:
            for file, names in zip(files, shards, strict=True):
                write_bytes(folder / file, safetensors.torch.save(self._rounded(names), {"format": "pt"}))
                progress.advance()
        write_index(folder, files)
        config = {key: value for key, value in self.checkpoint.config.items() if key != "torch_dtype"}
        activations = {"type": "float", "num_bits": 8}
        settings = compressed("float-quantized", _WEIGHTS, activations=activations, kept=["lm_head"])
        write_json(folder / "config.json", {**config, "quantization_config": settings, "dtype": "float16"})
        copy_side_files(self.checkpoint.folder, folder)
        counts = Counter("F8" if _is_linear(t) else "F16" for t in self.checkpoint.tensors.values())
        return self._measured(folder, dict(counts))

    def done(self) -> None:
        """There is nothing to clear."""

    def _measured(self, folder: Path, counts: Mapping[str, int]) -> Written:
        written = open_restorable(folder)
        golden = self.measuring.check_golden(written.read, folder, tolerance="q8", activations="fp8")
        golden.raise_if_broken()
        measurements: dict[str, Any] = {"tensor_types": counts}
        if not self.measuring.rows.heldout:
            return Written(kind="hf", measurements=measurements, golden=golden)
        measured = self.measuring.measure(written.read, activations="fp8")
        how = "the written weights, run in torch, inputs rounded per token"
        report = Report("fp8", measured, restored_by=how, details={"golden": golden.model_dump(mode="json")})
        measurements |= report.write(folder, self.measuring)
        notes = (measured.quality.sentence(),)
        return Written(kind="hf", measurements=measurements, notes=notes, golden=golden)

    def _rounded(self, names: Sequence[str]) -> "dict[str, Tensor]":
        import torch

        found: dict[str, Tensor] = {}
        for name, tensor in read_checked(self.checkpoint, names).items():
            if not _is_linear(self.checkpoint.tensors[name]):
                found[name] = tensor.half()
                continue
            scale_O1 = (tensor.abs().amax(1, keepdim=True) / FP8_TOP).clamp_(min=_LEAST_SCALE)
            found[name] = (tensor / scale_O1).to(torch.float8_e4m3fn)
            found[f"{name.removesuffix(_SUFFIX)}.{WEIGHT_SCALE}"] = scale_O1
        return found

    def _shards(self) -> list[list[str]]:
        by_file: dict[Path, list[str]] = {}
        for name, tensor in self.checkpoint.tensors.items():
            by_file.setdefault(tensor.file, []).append(name)
        return list(by_file.values())


def _is_linear(tensor: StoredTensor) -> bool:
    return ".layers." in tensor.name and tensor.name.endswith(_SUFFIX) and len(tensor.shape) == 2
