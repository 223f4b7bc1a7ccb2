# torch leaves some of its types open.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""Quantized folders in any layout this package knows, read by the names of the unquantized checkpoint."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from decant.errors import QuantizeError
from decant_quant.checkpoint import Checkpoint, open_quantized
from decant_quant.methods.gptq.reader import open_gptq
from decant_quant.methods.layouts import (
    AWQ_PARTS,
    PACKED_PARTS,
    WEIGHT,
    WEIGHT_SCALE,
    ZERO_POINT,
    read_awq,
    read_packed,
)
from decant_quant.methods.reading import as_stored, read_plain
from decant_quant.methods.rounding import Activations

if TYPE_CHECKING:
    from torch import Tensor

_SUFFIX = ".weight"


class Restorable(Protocol):
    """A quantized folder whose tensors are read as if it had never been quantized."""

    @property
    def checkpoint(self) -> Checkpoint:
        """The folder as it is stored."""
        ...

    @property
    def names(self) -> list[str]:
        """The tensors that an unquantized checkpoint of the same model has."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape that `read` gives a tensor."""
        ...

    def file(self, name: str) -> Path:
        """The shard that holds a tensor."""
        ...

    def read(self, names: Sequence[str]) -> "Mapping[str, Tensor]":
        """Tensors as float32; quantized weights are restored exactly."""
        ...


@dataclass(frozen=True, slots=True)
class _Form:
    """One layout: the tensor that marks a linear, all that it has, and how they become a weight [O, C]."""

    mark: str
    parts: tuple[str, ...]
    restore: "Callable[[Mapping[str, Tensor], str], Tensor]"
    # Outputs and inputs by the shape of the mark.
    shape: Callable[[tuple[int, ...]], tuple[int, ...]]
    optional: tuple[str, ...] = ()
    activations: Activations | None = None


@dataclass(frozen=True, slots=True)
class LaidOut:
    """A folder in one of the layouts that are not GPTQ's."""

    checkpoint: Checkpoint
    form: _Form

    @property
    def names(self) -> list[str]:
        """The tensors that an unquantized checkpoint of the same model has."""
        prefixes = self._prefixes()
        inside = {f"{p}.{part}" for p in prefixes for part in (*self.form.parts, *self.form.optional)}
        whole = [name for name in self.checkpoint.tensors if name not in inside]
        return [*whole, *(f"{prefix}{_SUFFIX}" for prefix in prefixes)]

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape that `read` gives a tensor."""
        stored = self.checkpoint.tensors
        if name in stored:
            return stored[name].shape
        return self.form.shape(stored[f"{name.removesuffix(_SUFFIX)}.{self.form.mark}"].shape)

    def file(self, name: str) -> Path:
        """The shard that holds a tensor."""
        stored = self.checkpoint.tensors
        return (stored.get(name) or stored[f"{name.removesuffix(_SUFFIX)}.{self.form.mark}"]).file

    def read(self, names: Sequence[str]) -> "Mapping[str, Tensor]":
        """Tensors as float32; QuantizeError when a part of a quantized one is missing."""
        return {name: self._read(name) for name in names}

    def _read(self, name: str) -> "Tensor":
        stored = self.checkpoint.tensors
        prefix = name.removesuffix(_SUFFIX)
        if f"{prefix}.{self.form.mark}" not in stored:
            return read_plain(self.checkpoint, [name])[name]
        missing = [part for part in self.form.parts if f"{prefix}.{part}" not in stored]
        if missing:
            raise QuantizeError(
                f"{self.checkpoint.folder}: lacks {prefix}.{missing[0]}; copy the folder again"
            )
        found = (f"{prefix}.{part}" for part in (*self.form.parts, *self.form.optional))
        return self.form.restore({n: as_stored(stored[n]) for n in found if n in stored}, prefix)

    def _prefixes(self) -> list[str]:
        end = f".{self.form.mark}"
        return [name.removesuffix(end) for name in self.checkpoint.tensors if name.endswith(end)]


def _awq(settings: Mapping[str, Any]) -> _Form | None:
    if settings.get("bits", settings.get("w_bit")) != 4 or settings.get("version", "gemm").lower() != "gemm":
        return None
    return _Form(
        "qweight", AWQ_PARTS, lambda t, p: read_awq(t, p).weight(), lambda shape: (shape[1] * 8, shape[0])
    )


def _compressed(settings: Mapping[str, Any]) -> _Form | None:
    groups: list[Any] = list(settings.get("config_groups", {}).values())
    weights: Mapping[str, Any] = groups[0].get("weights", {}) if len(groups) == 1 else {}
    bits, form = weights.get("num_bits"), settings.get("format")
    if form == "pack-quantized" and bits in (2, 4, 8):
        return _Form(
            "weight_packed",
            PACKED_PARTS,
            lambda t, p: read_packed(t, p, bits).weight(),
            lambda shape: (shape[0], shape[1] * 32 // bits),
            optional=(ZERO_POINT,),
        )
    if form in ("int-quantized", "float-quantized") and weights.get("strategy") == "channel":
        rounded: Activations = "int8" if form == "int-quantized" else "fp8"
        parts = (WEIGHT, WEIGHT_SCALE)
        return _Form(WEIGHT_SCALE, parts, _scaled, lambda shape: shape, activations=rounded)
    return None


def _scaled(tensors: "Mapping[str, Tensor]", prefix: str) -> "Tensor":
    return tensors[f"{prefix}.{WEIGHT}"].float() * tensors[f"{prefix}.{WEIGHT_SCALE}"].float()


_FORMS: Mapping[str, Callable[[Mapping[str, Any]], _Form | None]] = {
    "awq": _awq,
    "compressed-tensors": _compressed,
}


def open_restorable(folder: Path) -> Restorable:
    """Opens a quantized folder; QuantizeError for a layout that is not read here."""
    checkpoint = open_quantized(folder)
    settings: Mapping[str, Any] = checkpoint.config["quantization_config"]
    method = str(settings.get("quant_method"))
    if method not in _FORMS:
        return open_gptq(folder)
    form = _FORMS[method](settings)
    if form is None:
        raise QuantizeError(
            f"{folder}: is in a layout of {method} that is not read here; awq is read in 4 bits (gemm),"
            f" compressed-tensors as pack-, int- or float-quantized, with one scheme for all linears"
        )
    return LaidOut(checkpoint, form)
