# torch leaves some of its types open.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""What an 8-bit kernel does to the inputs of a linear, so that a measurement counts it too."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor

Activations = Literal["int8", "fp8"]
FP8_TOP = 448.0
"""The largest number of float8 e4m3."""
_INT8_TOP = 127.0
_LEAST_SCALE = 1e-12


def round_tokens(inputs: "Tensor", form: Activations) -> "Tensor":
    """Each token's channels [..., C] rounded on one symmetric scale of its own, as engines do per request."""
    import torch

    top = _INT8_TOP if form == "int8" else FP8_TOP
    scale = inputs.abs().amax(-1, keepdim=True).div_(top).clamp_(min=_LEAST_SCALE)
    if form == "int8":
        return (inputs / scale).round_().mul_(scale)
    return (inputs / scale).to(torch.float8_e4m3fn).to(inputs.dtype).mul_(scale)


@contextmanager
def rounded_inputs(layer: Any, linears: Sequence[str], form: Activations | None) -> Generator[None]:
    """For as long as the context lasts, the layer's linears see rounded inputs (None: as they are)."""
    if form is None:
        yield
        return

    def rounded(_module: Any, given: "tuple[Tensor, ...]") -> "tuple[Tensor, ...]":
        return (round_tokens(given[0], form), *given[1:])

    hooks = [layer.get_submodule(name).register_forward_pre_hook(rounded) for name in linears]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
