"""What a checkpoint must be like for GPTQ, asked before any work; and its values, asked as they are read."""

from typing import TYPE_CHECKING

from decant.errors import QuantizeError
from decant_quant.checkpoint import Checkpoint
from decant_quant.methods.gptq.decoder import HEAD, Decoder
from decant_quant.options import GptqConfig

if TYPE_CHECKING:
    from torch import Tensor

# Kernels load tiles of this many inputs and outputs; it is also what packs into whole words.
_TILE = 32
_GROUP_SIZES = (32, 64, 128, 256)
_F16_LIMIT = 65504.0


def quantized_names(decoder: Decoder) -> frozenset[str]:
    """The weights that become codes."""
    linears = decoder.family.linears()
    return frozenset(f"model.layers.{i}.{name}.weight" for i in range(len(decoder)) for name in linears)


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


def refuse_shapes(decoder: Decoder, settings: GptqConfig) -> None:
    """QuantizeError for linears that the groups do not divide or that kernels do not take."""
    for name in sorted(quantized_names(decoder)):
        outputs, inputs = decoder.shapes[name]
        size = inputs if settings.group_size == -1 else settings.group_size
        if inputs % size:
            fitting = [g for g in _GROUP_SIZES if inputs % g == 0]
            raise QuantizeError(
                f"{name} has {inputs} inputs, not a whole number of groups of {size}; set gptq.group_size to"
                f" one that divides them ({', '.join(map(str, [*fitting, -1]))})"
            )
        if inputs % _TILE or outputs % _TILE:
            raise QuantizeError(
                f"{name} has shape {[outputs, inputs]}; engines load GPTQ linears whose sides are multiples"
                f" of {_TILE}: use a gguf method"
            )


def refuse_values(checkpoint: Checkpoint, name: str, tensor: "Tensor") -> None:
    """QuantizeError for values that are not finite or that float16 does not hold."""
    import torch

    peak = float(tensor.abs().max()) if tensor.numel() else 0.0
    where = f"{checkpoint.tensors[name].file}: {name}"
    if not torch.isfinite(tensor).all():
        raise QuantizeError(
            f"{where} holds a value that is not finite; the training diverged: use an earlier checkpoint"
        )
    if peak > _F16_LIMIT:
        raise QuantizeError(f"{where} holds {peak:g}, more than float16 can; use gguf:BF16")
