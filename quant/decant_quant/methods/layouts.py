# torch leaves some of its types open.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""How a linear's codes lie in a checkpoint: GPTQ's layout, AWQ's, and the three of compressed-tensors.

Shapes: C inputs, O outputs, G groups. AutoAWQ: `qweight` [C, O / 8] and `qzeros` [G, O / 8], eight outputs
in a word in the order of `_AWQ_ORDER`, `scales` [G, O]. compressed-tensors packed: `weight_packed`
[O, C * bits / 32], `weight_scale` [O, G], `weight_zero_point` [O * bits / 32, G], `weight_shape`. Its 8-bit
layouts hold `weight` [O, C] as int8 or float8 and `weight_scale` [O, 1].
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from decant_quant.methods.gptq.packing import PARTS, Packed, pack_rows, packed_from, unpack, unpack_rows
from decant_quant.options import Layout

if TYPE_CHECKING:
    from torch import Tensor

# `int8` is what w8a8 ends in: compressed-tensors without packing.
WrittenLayout = Layout | Literal["int8"]
AWQ_PARTS = ("qweight", "qzeros", "scales")
PACKED_PARTS = ("weight_packed", "weight_scale", "weight_shape")
WEIGHT = "weight"
WEIGHT_SCALE = "weight_scale"
ZERO_POINT = "weight_zero_point"
# Outputs in a word of AutoAWQ's, from the low bits up.
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_AWQ_BITS = 4


@dataclass(frozen=True, slots=True)
class Coded:
    """Codes [C, O], scales [G, O] and zero points [G, O]: a weight is scale * (code - zero)."""

    codes: "Tensor"
    scale: "Tensor"
    zero: "Tensor"

    def weight(self) -> "Tensor":
        """The weight [O, C] in float32."""
        size = len(self.codes) // len(self.scale)
        zero_CO, scale_CO = (part.repeat_interleave(size, 0) for part in (self.zero, self.scale))
        return ((self.codes.float() - zero_CO) * scale_CO).t().contiguous()


def coded_of(packed: Packed, *, bits: int, offset: int) -> Coded:
    """What a linear in GPTQ's layout holds; its groups are neighbouring columns."""
    return Coded(*unpack(packed, bits=bits, offset=offset))


def relaid(
    tensors: "Mapping[str, Tensor]", layout: WrittenLayout, *, bits: int, offset: int, sym: bool
) -> "dict[str, Tensor]":
    """The tensors of a shard in GPTQ's layout, its linears in another one and everything else as it was."""
    prefixes = [name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")]
    inside = {f"{prefix}.{part}" for prefix in prefixes for part in PARTS}
    moved = {name: tensor for name, tensor in tensors.items() if name not in inside}
    for prefix in prefixes:
        coded = coded_of(packed_from(tensors, prefix), bits=bits, offset=offset)
        parts = _WRITERS[layout](coded, bits, sym)
        moved |= {f"{prefix}.{name}": tensor.contiguous() for name, tensor in parts.items()}
    return moved


def _awq(coded: Coded, bits: int, _sym: bool) -> "dict[str, Tensor]":
    assert bits == _AWQ_BITS
    return {
        "qweight": pack_rows(_reordered(coded.codes).t(), bits).t(),
        "qzeros": pack_rows(_reordered(coded.zero).t(), bits).t(),
        "scales": coded.scale.half(),
    }


def _reordered(values_RO: "Tensor") -> "Tensor":
    return values_RO.unflatten(1, (-1, 8))[:, :, list(_AWQ_ORDER)].flatten(1)


def read_awq(tensors: "Mapping[str, Tensor]", prefix: str) -> Coded:
    """A linear in AutoAWQ's layout."""
    import torch

    qweight, qzeros, scales = (tensors[f"{prefix}.{part}"] for part in AWQ_PARTS)
    back = torch.argsort(torch.tensor(_AWQ_ORDER))
    codes, zeros = (
        unpack_rows(part.t(), _AWQ_BITS).t().unflatten(1, (-1, 8))[:, :, back].flatten(1)
        for part in (qweight, qzeros)
    )
    return Coded(codes, scales.float(), zeros.float())


def _packed(coded: Coded, bits: int, sym: bool) -> "dict[str, Tensor]":
    import torch

    columns, outputs = coded.codes.shape
    parts = {
        "weight_packed": pack_rows(coded.codes, bits).t(),
        "weight_scale": coded.scale.half().t(),
        "weight_shape": torch.tensor([outputs, columns], dtype=torch.int64),
    }
    return parts if sym else {**parts, ZERO_POINT: pack_rows(coded.zero.t(), bits)}


def read_packed(tensors: "Mapping[str, Tensor]", prefix: str, bits: int) -> Coded:
    """A linear in the layout that compressed-tensors calls pack-quantized."""
    import torch

    packed, scale_OG, _ = (tensors[f"{prefix}.{part}"] for part in PACKED_PARTS)
    stored = tensors.get(f"{prefix}.{ZERO_POINT}")
    scale_GO = scale_OG.t().float()
    zero_GO = (
        torch.full_like(scale_GO, 2 ** (bits - 1))
        if stored is None
        else unpack_rows(stored, bits).t().float()
    )
    return Coded(unpack_rows(packed.t(), bits), scale_GO, zero_GO)


def _int8(coded: Coded, bits: int, sym: bool) -> "dict[str, Tensor]":
    import torch

    assert bits == 8
    assert sym
    centred_OC = (coded.codes.int() - coded.zero.int()).t().to(torch.int8)
    return {WEIGHT: centred_OC, WEIGHT_SCALE: coded.scale.t().float()}


_WRITERS: "Mapping[WrittenLayout, Callable[[Coded, int, bool], dict[str, Tensor]]]" = {
    "awq": _awq,
    "compressed-tensors": _packed,
    "int8": _int8,
}


def described(
    layout: WrittenLayout, *, bits: int, group_size: int, sym: bool, kept: Sequence[str]
) -> dict[str, Any]:
    """config.json's quantization_config for a layout other than GPTQ's; `kept` modules stay in 16 bits."""
    if layout == "awq":
        return {
            "quant_method": "awq",
            "version": "gemm",
            "bits": bits,
            "group_size": group_size,
            "zero_point": True,
            "modules_to_not_convert": list(kept),
        }
    whole = group_size == -1
    weights = {
        "type": "int",
        "num_bits": bits,
        "symmetric": sym,
        "strategy": "channel" if whole else "group",
        "group_size": None if whole else group_size,
        "dynamic": False,
    }
    if layout == "int8":
        return compressed("int-quantized", weights, activations={"type": "int", "num_bits": 8}, kept=kept)
    return compressed("pack-quantized", weights, activations=None, kept=kept)


def compressed(
    form: str, weights: Mapping[str, Any], *, activations: Mapping[str, Any] | None, kept: Sequence[str]
) -> dict[str, Any]:
    """The quantization_config of compressed-tensors; `activations` are rounded per token as they come."""
    inputs = activations and {**activations, "symmetric": True, "strategy": "token", "dynamic": True}
    group = {"targets": ["Linear"], "weights": dict(weights), "input_activations": inputs}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": list(kept),
    }
