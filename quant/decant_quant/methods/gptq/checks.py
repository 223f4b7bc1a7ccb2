"""What a checkpoint must be like for GPTQ, asked before any work."""

from decant.errors import QuantizeError
from decant_quant.methods.decoder import Decoder
from decant_quant.options import GptqConfig

# Kernels load tiles of this many inputs and outputs; it is also what packs into whole words.
_TILE = 32
_GROUP_SIZES = (32, 64, 128, 256)


def quantized_names(decoder: Decoder) -> frozenset[str]:
    """The weights that become codes."""
    linears = [decoder.family.stored(f"{name}.weight") for name in decoder.linears()]
    return frozenset(f"model.layers.{i}.{name}" for i in range(len(decoder)) for name in linears)


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
