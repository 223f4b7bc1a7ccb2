# torch leaves some of its types open.
# pyright: reportUnknownMemberType=false
"""Reading an unquantized checkpoint into torch, its tensors checked against what config.json describes."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from decant.errors import QuantizeError
from decant_quant.checkpoint import Checkpoint, StoredTensor
from decant_quant.methods.decoder import HEAD, Decoder

if TYPE_CHECKING:
    from torch import Tensor

_F16_LIMIT = 65504.0


def read_plain(checkpoint: Checkpoint, names: Sequence[str]) -> "Mapping[str, Tensor]":
    """Tensors of an unquantized checkpoint, as float32."""
    import torch

    stored = [checkpoint.tensors[name] for name in names]
    return {t.name: torch.from_numpy(t.widen(t.read())) for t in stored}


def as_stored(tensor: StoredTensor) -> "Tensor":
    """A tensor of any kind in the numbers that it is stored in."""
    import torch

    found = torch.from_numpy(tensor.read().copy())
    kinds = {"BF16": torch.bfloat16, "F8_E4M3": torch.float8_e4m3fn}
    return found.view(kinds[tensor.dtype]) if tensor.dtype in kinds else found


def read_checked(checkpoint: Checkpoint, names: Sequence[str]) -> "Mapping[str, Tensor]":
    """As `read_plain`; QuantizeError for values that are not finite or that float16 does not hold."""
    found = read_plain(checkpoint, names)
    for name, tensor in found.items():
        _refuse_values(checkpoint, name, tensor)
    return found


def refuse_tensors(checkpoint: Checkpoint, decoder: Decoder) -> None:
    """QuantizeError for a tensor that is missing, unknown or of another shape than config.json says.

    A head stored beside a tied embedding is left out, as transformers does.
    """
    ignored = {HEAD} if decoder.is_tied else set[str]()
    wanted = {name: shape for name, shape in decoder.shapes.items() if name not in ignored}
    missing = [name for name in wanted if name not in checkpoint.tensors]
    if missing:
        raise QuantizeError(
            f"{checkpoint.folder}: lacks {len(missing)} tensors, {missing[0]} first; copy it again"
        )
    unknown = [
        name
        for name in checkpoint.tensors
        if name not in wanted and name not in ignored and not name.endswith(".rotary_emb.inv_freq")
    ]
    if unknown:
        raise QuantizeError(
            f"{checkpoint.folder}: {len(unknown)} tensors are unknown to {checkpoint.architecture},"
            f" {unknown[0]} first; save the plain causal language model, adapters merged"
        )
    for name, shape in wanted.items():
        stored = checkpoint.tensors[name]
        if stored.shape != shape:
            raise QuantizeError(
                f"{stored.file}: {name} has shape {list(stored.shape)}, by config.json {list(shape)};"
                f" copy the folder again"
            )


def _refuse_values(checkpoint: Checkpoint, name: str, tensor: "Tensor") -> None:
    import torch

    peak = float(tensor.abs().max()) if tensor.numel() else 0.0
    where = f"{checkpoint.tensors[name].file}: {name}"
    if not torch.isfinite(tensor).all():
        raise QuantizeError(
            f"{where} holds a value that is not finite; the training diverged: use an earlier checkpoint"
        )
    if peak > _F16_LIMIT:
        raise QuantizeError(f"{where} holds {peak:g}, more than float16 can; use gguf:BF16")
