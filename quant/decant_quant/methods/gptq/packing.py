# torch leaves some of its types open.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
"""The GPTQ checkpoint format, to and from codes.

Per linear with C inputs and O outputs: `qweight` int32 [C * bits / 32, O], consecutive input columns from
the low bits up; `qzeros` int32 [groups, O * bits / 32], consecutive outputs likewise; `scales` float16
[groups, O]; `g_idx` int32 [C], the group of each input column. The layout `gptq`, AutoGPTQ's, stores zero
points less one; `gptq_v2` stores them as they are, and is what gptqmodel wants of asymmetric files that are
not its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

# Codes of 3 bits lie across words; of the others whole numbers fit one.
BITS = (2, 3, 4, 8)
_WORD, _SIGN = 0xFFFFFFFF, 0x80000000
# What a layout takes off a zero point.
OFFSETS = {"gptq": 1, "gptq_v2": 0}
PARTS = ("qweight", "qzeros", "scales", "g_idx")


@dataclass(frozen=True, slots=True)
class Packed:
    """One linear as it is stored, without its bias."""

    qweight: "Tensor"
    qzeros: "Tensor"
    scales: "Tensor"
    g_idx: "Tensor"

    def named(self, prefix: str) -> "dict[str, Tensor]":
        """The tensors under the names that a checkpoint gives them."""
        return {
            f"{prefix}.qweight": self.qweight,
            f"{prefix}.qzeros": self.qzeros,
            f"{prefix}.scales": self.scales,
            f"{prefix}.g_idx": self.g_idx,
        }


def packed_from(tensors: "Mapping[str, Tensor]", prefix: str) -> Packed:
    """The linear that a checkpoint holds under `prefix`."""
    return Packed(*(tensors[f"{prefix}.{part}"] for part in PARTS))


def pack(codes_CO: "Tensor", scale_GO: "Tensor", zero_GO: "Tensor", *, bits: int, offset: int = 1) -> Packed:
    """Packs codes 0 to 2^bits - 1, scales that float16 holds and zero points 1 to 2^bits - 1."""
    import torch

    groups, columns = scale_GO.shape[0], codes_CO.shape[0]
    return Packed(
        qweight=pack_rows(codes_CO, bits).contiguous(),
        qzeros=pack_rows((zero_GO - offset).t(), bits).t().contiguous(),
        scales=scale_GO.half().contiguous(),
        g_idx=(torch.arange(columns, device=codes_CO.device) // (columns // groups)).to(torch.int32),
    )


def unpack(packed: Packed, *, bits: int, offset: int = 1) -> "tuple[Tensor, Tensor, Tensor]":
    """Codes [C, O] (int32), scales [groups, O] and zero points [groups, O] (float32)."""
    zeros_GO = unpack_rows(packed.qzeros.t(), bits).t() + offset
    return unpack_rows(packed.qweight, bits), packed.scales.float(), zeros_GO.float()


def dequantize(packed: Packed, *, bits: int, offset: int = 1) -> "Tensor":
    """The weight [O, C] in float32: exactly scale * (code - zero), a product that float32 holds whole."""
    import torch

    codes_CO, scale_GO, zero_GO = unpack(packed, bits=bits, offset=offset)
    group_C = packed.g_idx.long()
    columns, groups = len(group_C), len(scale_GO)
    neighbours_C = torch.arange(columns, device=group_C.device) // max(1, columns // groups)
    if columns % groups or not torch.equal(group_C, neighbours_C):
        return ((codes_CO.float() - zero_GO[group_C]) * scale_GO[group_C]).t().contiguous()
    # Neighbouring columns share a group: no zero point or scale has to be copied for each of them.
    weight_GgO = codes_CO.float().unflatten(0, (groups, -1)).sub_(zero_GO[:, None]).mul_(scale_GO[:, None])
    return weight_GgO.flatten(0, 1).t().contiguous()


def pack_rows(values_CO: "Tensor", bits: int) -> "Tensor":
    """32 values of `bits` bits fill `bits` words, low bits first; one may lie across two words."""
    import torch

    if 32 % bits == 0:
        whole = values_CO.unflatten(0, (-1, 32 // bits))
        joined = whole[:, 0].to(torch.int32)
        for index in range(1, 32 // bits):
            # The highest field may reach the sign, which is how the word is stored.
            joined |= whole[:, index].to(torch.int32) << index * bits
        return joined
    fields = values_CO.reshape(-1, 32, values_CO.shape[1])
    words = torch.zeros(len(fields), bits + 1, values_CO.shape[1], dtype=torch.int64, device=fields.device)
    for index in range(32):
        word, shift = divmod(index * bits, 32)
        # In 64 bits a value shifted by up to 31 keeps its high end, which is the next word's low end.
        shifted = fields[:, index].to(torch.int64) << shift
        words[:, word] |= shifted & _WORD
        words[:, word + 1] |= shifted >> 32
    signed = words[:, :bits] - ((words[:, :bits] & _SIGN) << 1)
    return signed.to(torch.int32).reshape(-1, values_CO.shape[1])


def unpack_rows(words_WO: "Tensor", bits: int) -> "Tensor":
    """What `pack_rows` packed, as int32."""
    import torch

    if 32 % bits == 0:
        shifts = torch.arange(0, 32, bits, dtype=torch.int32, device=words_WO.device)[:, None]
        return (words_WO.unsqueeze(1) >> shifts).bitwise_and_(2**bits - 1).flatten(0, 1)
    words = words_WO.to(torch.int64).bitwise_and_(_WORD).reshape(-1, bits, words_WO.shape[1])
    fields: list[Tensor] = []
    for index in range(32):
        word, shift = divmod(index * bits, 32)
        whole = words[:, word] >> shift
        if shift + bits > 32:
            whole = whole | words[:, word + 1] << (32 - shift)
        fields.append((whole & (2**bits - 1)).to(torch.int32))
    return torch.stack(fields, dim=1).reshape(-1, words_WO.shape[1])
