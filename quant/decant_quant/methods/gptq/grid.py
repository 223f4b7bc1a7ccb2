# torch leaves some of its types open.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""The grid of a group of weights: its scale and zero point, chosen by the error that they leave.

Shapes: g columns of one group, O outputs; a grid is per output. A weight is scale * (code - zero).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

# How far a range is shrunk, at most, and in how many steps. Clipping the few largest weights of a group makes
# the grid finer for all others; below half the range nothing was ever gained at 4 or 8 bits.
_NARROWEST, _STEPS = 0.5, 20
_OUTPUTS = 1024
# The smallest positive float16, in which the format stores scales.
_LEAST_SCALE = 2.0**-24


@dataclass(frozen=True, slots=True)
class GridSpec:
    """Which codes there are: `bits` per code; `sym` fixes the zero point in the middle."""

    bits: int
    sym: bool

    @property
    def top(self) -> int:
        """The largest code."""
        return 2**self.bits - 1

    def bounds(self, zero: "Tensor") -> "tuple[Any, Any]":
        """The smallest and largest code less its zero point: numbers where all have one, else tensors."""
        if self.sym:
            half = 2 ** (self.bits - 1)
            return -half, half - 1
        return -zero, self.top - zero


def layout_of(spec: GridSpec) -> str:
    """The checkpoint layout that engines read such codes in."""
    return "gptq" if spec.sym else "gptq_v2"


@dataclass(frozen=True, slots=True)
class Grid:
    """Scales and zero points, float32 of shape [O] or [groups, O]; scales are values that float16 has."""

    scale: "Tensor"
    zero: "Tensor"

    def centred(self, weight: "Tensor", spec: GridSpec) -> "Tensor":
        """The nearest codes of `weight` [..., O], less the zero point, in float32."""
        import torch

        low, high = spec.bounds(self.zero)
        nearest = (weight / self.scale).round_()
        return torch.clamp(nearest, min=low, max=high, out=nearest)


def search_grid(weight_gO: "Tensor", importance_g: "Tensor", spec: GridSpec) -> Grid:
    """The grid that leaves the least squared rounding error, weighted by each column's importance.

    The importance that makes this GPTQ's own objective is 1 / U_jj^2, with U from `solve.inverse_factor`.
    """
    import torch

    # A few hundred outputs at a time, so that the working copy stays in the processor's cache.
    found = [_search(part_gO, importance_g, spec) for part_gO in weight_gO.split(_OUTPUTS, 1)]
    return Grid(torch.cat([grid.scale for grid in found]), torch.cat([grid.zero for grid in found]))


def _search(weight_gO: "Tensor", importance_g: "Tensor", spec: GridSpec) -> Grid:
    import torch

    step_O, zero_O = widest(weight_gO, spec)
    low, high = spec.bounds(zero_O)
    best_O, least_O = step_O, torch.full_like(step_O, torch.inf)
    tried_gO = torch.empty_like(weight_gO, memory_format=torch.contiguous_format)
    # Symmetric codes reach further down than up: the first factor clips neither side.
    largest = 2**spec.bits / (2**spec.bits - 2) if spec.sym else 1.0
    for factor in torch.linspace(largest, _NARROWEST, _STEPS).tolist():
        scale_O = _as_stored(step_O * factor)
        torch.div(weight_gO, scale_O, out=tried_gO).round_()
        torch.clamp(tried_gO, min=low, max=high, out=tried_gO)
        error_O = importance_g @ tried_gO.mul_(scale_O).sub_(weight_gO).square_()
        better_O = error_O < least_O
        best_O = torch.where(better_O, scale_O, best_O)
        least_O = torch.minimum(least_O, error_O)
    return Grid(best_O, zero_O)


def widest(weight_gO: "Tensor", spec: GridSpec) -> "tuple[Tensor, Tensor]":
    """The step and zero point [..., O] that span the whole range of groups [..., g, O], zero included."""
    import torch

    if spec.sym:
        half = 2 ** (spec.bits - 1)
        step_O = weight_gO.abs().amax(-2) / half
        return step_O.clamp_(min=_LEAST_SCALE), torch.full_like(step_O, float(half))
    low_O, high_O = weight_gO.amin(-2).clamp_(max=0), weight_gO.amax(-2).clamp_(min=0)
    step_O = ((high_O - low_O) / spec.top).clamp_(min=_LEAST_SCALE)
    # Zero point 0 is never used: one layout stores zero - 1, and readers differ on what -1 means.
    return step_O, (-low_O / step_O).round_().clamp_(1, spec.top)


def _as_stored(scale_O: "Tensor") -> "Tensor":
    return scale_O.half().float().clamp_(min=_LEAST_SCALE)
