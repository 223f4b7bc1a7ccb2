# torch leaves some of its types open.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""One decoder layer's linears quantized, block by block, on the inputs that the quantized ones before give.

Shapes: N tokens of all calibration rows, C inputs and O outputs of a linear.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from decant_quant.methods.decoder import Batch, Decoder, end_of, routed_part
from decant_quant.methods.decoder_families import RoutedBlock
from decant_quant.methods.experts import inside_expert, routed_tokens
from decant_quant.methods.gptq.grid import Grid, layout_of
from decant_quant.methods.gptq.packing import OFFSETS, dequantize, pack
from decant_quant.methods.gptq.solve import Solved, SolveSpec, solve

if TYPE_CHECKING:
    from torch import Tensor

# Tokens that a linear's output error is measured on.
_SAMPLE_TOKENS = 256
# Columns of a Hessian that are worked out together: only what lies on or above its diagonal is.
_COLUMNS = 512


@dataclass(frozen=True, slots=True)
class LinearError:
    """Squared output error of a quantized linear over its squared output, on the first calibration tokens.

    `damping` is the part of the mean diagonal that its Hessian needed.
    """

    name: str
    relative_error: float
    damping: float


@dataclass(frozen=True, slots=True)
class _Inputs:
    """The Hessian X'X / N [C, C] of the inputs of some linears, and the first of those inputs, [N, C]."""

    hessian: "Tensor"
    sample: "Tensor"


def quantize_layer(
    decoder: Decoder, index: int, weights: "Mapping[str, Tensor]", batches: Sequence[Batch], spec: SolveSpec
) -> "tuple[dict[str, Tensor], list[LinearError]]":
    """Packs a layer's linears and takes the batches through the quantized layer.

    `weights` is named as within the layer; so are the tensors returned.
    """
    packed: dict[str, Tensor] = {}
    errors: list[LinearError] = []
    with decoder.layer(index, weights) as layer:
        run = _LayerRun(layer, f"layer {index}", spec, packed, errors)
        for block in decoder.family.blocks:
            if isinstance(block, RoutedBlock):
                run.quantize_experts(block, batches)
                continue
            norm = layer.get_submodule(block.norm)
            entering = _inputs_of(norm(batch.hidden) for batch in batches)
            run.quantize([f"{block.module}.{name}" for name in block.inputs], entering)
            mixed = [decoder.mix(index, layer, block, batch) for batch in batches]
            output = f"{block.module}.{block.output}"
            run.quantize([output], _inputs_of(mixed))
            for batch, mixed_BTC in zip(batches, mixed, strict=True):
                batch.hidden = batch.hidden + end_of(layer, block, mixed_BTC)
    return packed, errors


@dataclass(frozen=True, slots=True)
class _LayerRun:
    """A layer whose linears are being replaced; `packed` and `errors` grow."""

    layer: Any
    where: str
    spec: SolveSpec
    packed: "dict[str, Tensor]"
    errors: list[LinearError]

    def quantize(self, names: Sequence[str], inputs: "_Inputs") -> None:
        """Solves linears that share their inputs in one go and leaves the quantized weights in the layer."""
        import torch

        bits, offset = self.spec.grid.bits, OFFSETS[layout_of(self.spec.grid)]
        linears = [self.layer.get_submodule(name) for name in names]
        weight_OC = torch.cat([linear.weight for linear in linears])
        solved = solve(weight_OC, inputs.hessian, self.spec, where=f"{self.where}: {', '.join(names)}")
        parts = _split(solved, [linear.weight.shape[0] for linear in linears])
        for name, linear, part in zip(names, linears, parts, strict=True):
            stored = pack(part.codes, part.grid.scale, part.grid.zero, bits=bits, offset=offset)
            restored_OC = dequantize(stored, bits=bits, offset=offset)
            error = _relative_error(inputs.sample, linear.weight, restored_OC)
            linear.weight.copy_(restored_OC)
            self.packed.update(stored.named(name))
            self.errors.append(LinearError(name, error, part.damping))

    def quantize_experts(self, block: RoutedBlock, batches: Sequence[Batch]) -> None:
        """Each expert on the tokens that the router sends it, behind what was quantized before."""
        import torch

        module = self.layer.get_submodule(block.module)
        norm = self.layer.get_submodule(block.norm)
        tokens_NH = torch.cat([norm(batch.hidden).flatten(0, 1) for batch in batches])
        activation = module.get_submodule(block.experts).act_fn
        if block.shared is not None:
            self._quantize_expert(f"{block.module}.{block.shared}", block, tokens_NH, activation)
        for number, routed_NH in enumerate(routed_tokens(module, block, tokens_NH)):
            self._quantize_expert(f"{block.module}.{block.experts}.{number}", block, routed_NH, activation)
        for batch in batches:
            batch.hidden = batch.hidden + routed_part(self.layer, block, batch)

    def _quantize_expert(self, name: str, block: RoutedBlock, tokens_NH: "Tensor", activation: Any) -> None:
        self.quantize([f"{name}.{linear}" for linear in block.inputs], _inputs_of([tokens_NH[None]]))
        inside = inside_expert(self.layer.get_submodule(name), block, tokens_NH, activation)
        self.quantize([f"{name}.{block.output}"], _inputs_of([inside[None]]))


def _inputs_of(parts: "Iterable[Tensor]") -> _Inputs:
    import torch

    hessian_CC: Tensor | None = None
    samples: list[Tensor] = []
    tokens = 0
    for part_BTC in parts:
        part_NC = part_BTC.flatten(0, 1)
        if hessian_CC is None:
            hessian_CC = part_NC.new_zeros(part_NC.shape[1], part_NC.shape[1])
        for start in range(0, hessian_CC.shape[0], _COLUMNS):
            rows = slice(start, start + _COLUMNS)
            hessian_CC[rows, start:].addmm_(part_NC[:, rows].t(), part_NC[:, start:])
        if tokens < _SAMPLE_TOKENS:
            samples.append(part_NC[: _SAMPLE_TOKENS - tokens])
        tokens += len(part_NC)
    assert hessian_CC is not None, "calibration has at least one row"
    for start in range(_COLUMNS, hessian_CC.shape[0], _COLUMNS):
        rows = slice(start, start + _COLUMNS)
        hessian_CC[rows, :start] = hessian_CC[:start, rows].t()
    return _Inputs(hessian_CC.div_(tokens), torch.cat(samples))


def _relative_error(inputs_NC: "Tensor", weight_OC: "Tensor", restored_OC: "Tensor") -> float:
    energy = float((inputs_NC @ weight_OC.t()).square().sum())
    lost = float((inputs_NC @ (restored_OC - weight_OC).t()).square().sum())
    return lost / energy if energy else 0.0


def _split(solved: Solved, sizes: Sequence[int]) -> list[Solved]:
    parts = (
        solved.codes.split(sizes, 1),
        solved.grid.scale.split(sizes, 1),
        solved.grid.zero.split(sizes, 1),
    )
    return [
        Solved(codes, Grid(scale, zero), solved.damping) for codes, scale, zero in zip(*parts, strict=True)
    ]
