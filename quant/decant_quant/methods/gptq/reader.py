# torch leaves some of its types open.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""Reading folders in the GPTQ format by the names of the unquantized checkpoint."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decant.errors import QuantizeError
from decant_quant.checkpoint import Checkpoint, open_quantized
from decant_quant.methods.gptq.packing import BITS, OFFSETS, PARTS, Packed, dequantize, packed_from
from decant_quant.methods.reading import as_stored, read_plain

if TYPE_CHECKING:
    from torch import Tensor

_SUFFIX = ".weight"


@dataclass(frozen=True, slots=True)
class GptqCheckpoint:
    """A folder in the GPTQ format whose tensors are read as if it had never been quantized."""

    checkpoint: Checkpoint
    bits: int
    offset: int

    @property
    def names(self) -> list[str]:
        """The tensors that an unquantized checkpoint of the same model has."""
        stored = self.checkpoint.tensors
        whole = [name for name in stored if name.rpartition(".")[2] not in PARTS]
        packed = [name.removesuffix(".qweight") + _SUFFIX for name in stored if name.endswith(".qweight")]
        return [*whole, *packed]

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape that `read` gives a tensor."""
        stored = self.checkpoint.tensors
        if name in stored:
            return stored[name].shape
        rows, outputs = stored[f"{name.removesuffix(_SUFFIX)}.qweight"].shape
        return outputs, rows * 32 // self.bits

    def file(self, name: str) -> Path:
        """The shard that holds a tensor."""
        stored = self.checkpoint.tensors
        return (stored.get(name) or stored[f"{name.removesuffix(_SUFFIX)}.qweight"]).file

    def read(self, names: Sequence[str]) -> "Mapping[str, Tensor]":
        """Tensors as float32; quantized weights are restored exactly."""
        return {name: self.restored(name, {}) for name in names}

    def restored(self, name: str, scales: "Mapping[str, Tensor]") -> "Tensor":
        """One tensor as float32; of a quantized weight, with the scales given for it, if any."""
        stored = self.checkpoint.tensors
        if name in stored:
            return read_plain(self.checkpoint, [name])[name]
        packed = self.packed(name)
        renewed = scales.get(f"{name.removesuffix(_SUFFIX)}.scales")
        if renewed is not None:
            packed = replace(packed, scales=renewed)
        return dequantize(packed, bits=self.bits, offset=self.offset)

    def packed(self, name: str) -> Packed:
        """A quantized weight as it is stored; QuantizeError when a part of it is missing."""
        stored = self.checkpoint.tensors
        prefix = name.removesuffix(_SUFFIX)
        missing = [part for part in PARTS if f"{prefix}.{part}" not in stored]
        if missing:
            raise QuantizeError(
                f"{self.checkpoint.folder}: lacks {prefix}.{missing[0]}; copy the folder again"
            )
        parts = {f"{prefix}.{part}": as_stored(stored[f"{prefix}.{part}"]) for part in PARTS}
        return packed_from(parts, prefix)


def open_gptq(folder: Path) -> GptqCheckpoint:
    """Opens a folder in the GPTQ format; QuantizeError for any other, or a layout that is not read here."""
    checkpoint = open_quantized(folder)
    settings: Mapping[str, Any] = checkpoint.config["quantization_config"]
    method, layout = settings.get("quant_method"), settings.get("checkpoint_format", "gptq")
    bits = settings.get("bits")
    if method != "gptq" or layout not in OFFSETS or bits not in BITS:
        raise QuantizeError(
            f"{folder}: is quantized with {method}, {bits} bits, layout {layout}; gptq of 2, 3, 4 or 8"
            f" bits in the layouts {' and '.join(OFFSETS)}, awq and compressed-tensors can be restored"
        )
    return GptqCheckpoint(checkpoint, bits, OFFSETS[layout])
