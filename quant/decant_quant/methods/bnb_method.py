# transformers and bitsandbytes leave most of their types open.
# pyright: reportAttributeAccessIssue=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false
"""`bnb:TYPE`: a folder in bitsandbytes' NF4 or INT8, made by transformers and loaded by it; no rows needed.

The whole model is in memory while it is made, in the checkpoint's own number format.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from decant.errors import MissingExtraError, QuantizeError
from decant_quant.checkpoint import Checkpoint, open_checkpoint
from decant_quant.method import Written
from decant_quant.methods.folder import copy_side_files
from decant_quant.methods.measuring import Measuring, Report, measuring_if_asked
from decant_quant.options import Options

if TYPE_CHECKING:
    from torch import Tensor

Variant = Literal["NF4", "INT8"]

# With block scales: 64 values share one byte, 256 of which share a float32.
_BYTES_EACH: Mapping[str, float] = {"NF4": 0.5 + 1 / 64 + 4 / (64 * 256), "INT8": 1.0}
_BLOCK = 64


def build(variant: str, options: Options) -> "BnbMethod":
    """The method that writes `bnb:<variant>`; MissingExtraError without its libraries."""
    for package in ("torch", "transformers", "bitsandbytes"):
        try:
            __import__(package)
        except ImportError:
            raise MissingExtraError(package, "train") from None
    return BnbMethod("NF4" if variant == "NF4" else "INT8", options)


@dataclass(frozen=True, slots=True)
class BnbMethod:
    """Quantizes every linear of the layers; embedding and output head stay as they are."""

    variant: Variant
    options: Options

    def prepare(self, model: Path) -> "BnbRun":
        """Opens a plain folder; QuantizeError for rows that NF4's blocks do not divide."""
        checkpoint = open_checkpoint(model)
        for name, tensor in checkpoint.tensors.items():
            if _is_linear(name, tensor.shape) and math.prod(tensor.shape) % _BLOCK:
                raise QuantizeError(
                    f"{name} has {list(tensor.shape)} values, no whole blocks of {_BLOCK}: use gguf"
                )
        return BnbRun(checkpoint, self.variant, measuring_if_asked(checkpoint, self.options))


@dataclass(frozen=True, slots=True)
class BnbRun:
    """A plain folder that is about to be quantized by bitsandbytes."""

    checkpoint: Checkpoint
    variant: Variant
    measuring: Measuring | None

    @property
    def size_bytes(self) -> int:
        """Bytes of the weights, a little more rather than less."""
        total = 0.0
        for name, tensor in self.checkpoint.tensors.items():
            count, linear = math.prod(tensor.shape), _is_linear(name, tensor.shape)
            each = _BYTES_EACH[self.variant] if linear else (2 if tensor.dtype != "F32" else 4)
            total += count * each + (4 * tensor.shape[0] if linear else 0) + 2048
        return int(total)

    def write(self, folder: Path) -> Written:
        """Quantizes, saves, and loads what was saved once more where rows to measure on were given."""
        model = _load(self.checkpoint.folder, self.variant)
        model.save_pretrained(folder)
        copy_side_files(self.checkpoint.folder, folder)
        linears = sum(_is_linear(name, tensor.shape) for name, tensor in self.checkpoint.tensors.items())
        counts = Counter({self.variant: linears, "as they were": len(self.checkpoint.tensors) - linears})
        measurements: dict[str, Any] = {"tensor_types": dict(counts)}
        if self.measuring is None:
            return Written(kind="hf", measurements=measurements)
        del model
        restored = _Restored(_load(folder, None))
        measured = self.measuring.measure(restored.read)
        report = Report(
            f"bnb:{self.variant}", measured, restored_by="the written weights, dequantized and run in torch"
        )
        return Written(
            kind="hf",
            measurements={**measurements, **report.write(folder, self.measuring)},
            notes=(measured.quality.sentence(),),
        )

    def done(self) -> None:
        """There is nothing to clear."""


def _is_linear(name: str, shape: tuple[int, ...]) -> bool:
    return ".layers." in name and name.endswith(".weight") and len(shape) == 2


def _load(folder: Path, variant: Variant | None) -> Any:
    """A model quantized as it is loaded; without a variant, as its config.json says."""
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    settings: dict[str, Any] = {}
    if variant == "NF4":
        settings["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    elif variant == "INT8":
        settings["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True)
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    try:
        model = cast("Any", AutoModelForCausalLM).from_pretrained(
            folder, local_files_only=True, dtype="auto", device_map={"": device}, **settings
        )
    except (ValueError, RuntimeError, OSError) as error:
        raise QuantizeError(f"{folder}: bitsandbytes could not load it ({error})") from None
    return model.eval()


@dataclass(frozen=True, slots=True)
class _Restored:
    """A quantized model whose tensors are read as if it had never been quantized."""

    model: Any

    def read(self, names: Sequence[str]) -> "Mapping[str, Tensor]":
        return {name: self._read(name) for name in names}

    def _read(self, name: str) -> "Tensor":
        import torch
        from bitsandbytes.functional import dequantize_4bit
        from bitsandbytes.nn.modules import Int8Params, Params4bit

        weight: Any = self.model.get_parameter(name)
        if isinstance(weight, Params4bit):
            return dequantize_4bit(weight.data, weight.quant_state).float().cpu()
        if isinstance(weight, Int8Params):
            scale_O1 = weight.SCB.float().unsqueeze(1) / 127
            return (weight.data.float() * scale_O1).cpu()
        with torch.no_grad():
            return weight.detach().float().cpu()
