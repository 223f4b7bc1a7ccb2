# torch leaves some of its types open.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""Scales moved from a linear's inputs into its weights, where they make rounding cheaper; the layer computes
what it did before.

The norm or linear in front of the inputs takes the inverse. `awq_rule` finds scales for rounded weights
(arXiv 2306.00978), `smooth_rule` for rounded weights and inputs (SmoothQuant, arXiv 2211.10438).
Shapes: N tokens of the sample, C inputs and O outputs of the linears that share them, G groups of g columns.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from decant.errors import QuantizeError
from decant_quant.methods.decoder import Batch, Decoder, end_of
from decant_quant.methods.decoder_families import Block
from decant_quant.methods.gptq.grid import Grid, GridSpec, widest

if TYPE_CHECKING:
    from torch import Tensor

_SAMPLE_TOKENS = 512
_STEPS = 20
_LEAST = 1e-4


@dataclass(frozen=True, slots=True)
class SeenInputs:
    """What linears were given on the calibration rows: per channel [C] the mean and largest size, and a
    sample [N, C] of the tokens.
    """

    mean: "Tensor"
    largest: "Tensor"
    sample: "Tensor"


# The scale of each channel [C], by its inputs and the weights [O, C] of all linears that share them.
Rule = Callable[[SeenInputs, "Tensor"], "Tensor"]


def smooth_rule(strength: float) -> Rule:
    """max|x|^strength / max|W|^(1 - strength): 1 moves the whole spread of the inputs into the weights."""

    def rule(inputs: SeenInputs, weight_OC: "Tensor") -> "Tensor":
        largest_C = weight_OC.abs().amax(0).clamp_(min=_LEAST)
        return (inputs.largest.clamp(min=_LEAST) ** strength / largest_C ** (1 - strength)).clamp_(min=_LEAST)

    return rule


def awq_rule(spec: GridSpec, group_size: int) -> Rule:
    """The power of the mean input (0: no scaling) whose rounded weights change a sample's outputs least."""

    def rule(inputs: SeenInputs, weight_OC: "Tensor") -> "Tensor":
        import torch

        size = weight_OC.shape[1] if group_size == -1 else group_size
        weight_CO = weight_OC.t().contiguous()
        best_C, least = torch.ones_like(inputs.mean), float("inf")
        for step in range(_STEPS):
            scale_C = inputs.mean.clamp(min=_LEAST) ** (step / _STEPS)
            scale_C = scale_C / (scale_C.max() * scale_C.min()).sqrt()
            change_CO = (
                _rounded(weight_CO * scale_C[:, None], size, spec).div_(scale_C[:, None]).sub_(weight_CO)
            )
            error = float((inputs.sample @ change_CO).square_().sum())
            if error < least:
                best_C, least = scale_C, error
        return best_C

    return rule


def _rounded(weight_CO: "Tensor", size: int, spec: GridSpec) -> "Tensor":
    groups_GgO = weight_CO.unflatten(0, (-1, size))
    grid = Grid(*(part.unsqueeze(-2) for part in widest(groups_GgO, spec)))
    return grid.centred(groups_GgO, spec).mul_(grid.scale).flatten(0, 1)


def smooth_layer(
    decoder: Decoder, index: int, weights: "Mapping[str, Tensor]", batches: Sequence[Batch], rule: Rule
) -> "dict[str, Tensor]":
    """A layer's tensors (named as within it) with scales moved; norms and biases as float16 holds them.

    The batches stay at the layer's door.
    """
    folded = {name: tensor.to(decoder.device) for name, tensor in weights.items()}
    passing = [Batch(batch.rows, batch.hidden) for batch in batches]
    with decoder.layer(index, {name: tensor.clone() for name, tensor in folded.items()}) as layer:
        for block in decoder.family.blocks:
            assert isinstance(block, Block), "routed families are refused before"
            norm = layer.get_submodule(block.norm)
            entering = _seen(norm(batch.hidden) for batch in passing)
            mixed = [decoder.mix(index, layer, block, batch) for batch in passing]
            _fold_into_norm(folded, block, entering, rule, offset=decoder.family.norm_offset)
            _fold_into_feeder(folded, block, _seen(mixed), rule)
            for batch, mixed_BTC in zip(passing, mixed, strict=True):
                batch.hidden = batch.hidden + end_of(layer, block, mixed_BTC)
    return folded


def _fold_into_norm(
    folded: "dict[str, Tensor]", block: Block, inputs: SeenInputs, rule: Rule, *, offset: float
) -> None:
    import torch

    names = [f"{block.module}.{name}.weight" for name in block.inputs]
    scale_C = _finite(rule(inputs, torch.cat([folded[name] for name in names])), names[0])
    norm = f"{block.norm}.weight"
    folded[norm] = ((folded[norm] + offset) / scale_C - offset).half().float()
    for name in names:
        folded[name] = folded[name] * scale_C


def _fold_into_feeder(folded: "dict[str, Tensor]", block: Block, inputs: SeenInputs, rule: Rule) -> None:
    """Where heads share values, several inputs come from one row of the feeder: those stay as they are."""
    output = f"{block.module}.{block.output}.weight"
    feeder = f"{block.module}.{block.feeder}"
    columns = folded[output].shape[1]
    if len(folded[f"{feeder}.weight"]) != columns * block.feeder_parts:
        return
    scale_C = _finite(rule(inputs, folded[output]), output)
    folded[output] = folded[output] * scale_C
    for name, scale in ((f"{feeder}.weight", scale_C[:, None]), (f"{feeder}.bias", scale_C)):
        if name in folded:
            rows = folded[name].clone()
            rows[-columns:] /= scale
            folded[name] = rows.half().float() if name.endswith(".bias") else rows


def _finite(scale_C: "Tensor", name: str) -> "Tensor":
    import torch

    if not torch.isfinite(scale_C).all():
        raise QuantizeError(
            f"{name}: its inputs on the calibration rows are not finite; the checkpoint's weights diverged:"
            f" use an earlier one"
        )
    return scale_C


def _seen(parts: "Iterable[Tensor]") -> SeenInputs:
    import torch

    totals: list[Tensor] = []
    largest: list[Tensor] = []
    samples: list[Tensor] = []
    tokens = 0
    for part_BTC in parts:
        part_NC = part_BTC.flatten(0, 1)
        size_NC = part_NC.abs()
        totals.append(size_NC.sum(0))
        largest.append(size_NC.amax(0))
        samples.append(part_NC[:: max(1, len(part_NC) // _SAMPLE_TOKENS)])
        tokens += len(part_NC)
    sample_NC = torch.cat(samples)
    step = max(1, len(sample_NC) // _SAMPLE_TOKENS)
    return SeenInputs(
        torch.stack(totals).sum(0) / tokens, torch.stack(largest).amax(0), sample_NC[::step].clone()
    )
