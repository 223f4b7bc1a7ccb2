"""The methods that end in integer codes, as data: what is done before rounding, how it is rounded, and where
the codes lie.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from decant.errors import QuantizeError
from decant_quant.methods.decoder_families import Family
from decant_quant.methods.gptq.grid import GridSpec, layout_of
from decant_quant.methods.gptq.packing import OFFSETS
from decant_quant.methods.gptq.solve import SolveSpec
from decant_quant.methods.layouts import WrittenLayout
from decant_quant.methods.rounding import Activations
from decant_quant.methods.smoothing import Rule, awq_rule, smooth_rule
from decant_quant.options import GptqConfig, Options

# Layouts that hold codes of these bits; GPTQ's own holds all.
_BITS: Mapping[WrittenLayout, tuple[int, ...]] = {"awq": (4,), "compressed-tensors": (4, 8)}


@dataclass(frozen=True, slots=True)
class Recipe:
    """One method. `told` are its settings, as quality.json and a resume know them."""

    name: str
    grid: GptqConfig
    layout: WrittenLayout
    told: Mapping[str, Any]
    smoothing: Rule | None = None
    nearest: bool = False
    activations: Activations | None = None

    @property
    def spec(self) -> GridSpec:
        """Which codes there are."""
        return GridSpec(self.grid.bits, self.grid.sym)

    @property
    def solving(self) -> SolveSpec:
        """How the codes are found."""
        grid = self.grid
        return SolveSpec(self.spec, grid.group_size, grid.act_order, grid.damping, self.nearest)

    def refuse_family(self, family: Family) -> None:
        """QuantizeError for experts where scales would have to pass a router, or in a layout not tried."""
        if family.routed is None or (self.smoothing is None and self.layout == "gptq"):
            return
        raise QuantizeError(
            f"{self.name} in the layout {self.layout} is not made for models with experts; use gptq in its"
            f" own layout"
        )

    @property
    def offset(self) -> int:
        """What GPTQ's layout takes off a zero point of this grid."""
        return OFFSETS[layout_of(self.spec)]


def gptq_recipe(options: Options) -> Recipe:
    """GPTQ in the layout that was asked for; QuantizeError for one that does not hold its codes."""
    grid, layout = options.gptq, options.layout or "gptq"
    _refuse_layout(layout, grid)
    return Recipe("gptq", grid, layout, told=grid.model_dump(mode="json"))


def awq_recipe(options: Options) -> Recipe:
    """Scales that protect the channels with the largest inputs, then the nearest codes."""
    chosen = options.awq
    grid = GptqConfig(
        bits=4,
        group_size=chosen.group_size,
        sym=chosen.sym,
        act_order=False,
        damping=options.gptq.damping,
        device=options.gptq.device,
    )
    layout = options.layout or "awq"
    _refuse_layout(layout, grid)
    return Recipe(
        "awq",
        grid,
        layout,
        told=chosen.model_dump(mode="json"),
        smoothing=awq_rule(GridSpec(4, chosen.sym), chosen.group_size),
        nearest=True,
    )


def w8a8_recipe(options: Options) -> Recipe:
    """SmoothQuant, then GPTQ in 8 bits with one scale per output; engines round the inputs of each token."""
    if options.layout not in (None, "compressed-tensors"):
        raise QuantizeError(
            f"w8a8 is written as compressed-tensors only, not {options.layout}; leave --layout out"
        )
    strength = options.w8a8.smoothing
    grid = GptqConfig(
        bits=8, group_size=-1, sym=True, damping=options.gptq.damping, device=options.gptq.device
    )
    return Recipe(
        "w8a8",
        grid,
        "int8",
        told=options.w8a8.model_dump(mode="json"),
        smoothing=smooth_rule(strength) if strength else None,
        activations="int8",
    )


def _refuse_layout(layout: WrittenLayout, grid: GptqConfig) -> None:
    bits = _BITS.get(layout)
    if bits is not None and grid.bits not in bits:
        raise QuantizeError(
            f"codes of {grid.bits} bits have no {layout} layout that engines load, only those of"
            f" {' and '.join(map(str, bits))}; set gptq.bits, or leave --layout out"
        )
    if layout == "awq" and grid.group_size == -1:
        raise QuantizeError("the awq layout wants groups; set gptq.group_size to 128, 64 or 32")
