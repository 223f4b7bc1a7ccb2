# torch leaves some of its types open.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""Recovery by distillation: the codes stay, the groups' scales learn to answer as the unquantized model does.

The loss is KL(unquantized || quantized) of the next token on the calibration rows, over the whole model.
Codes are held in a byte each and weights are restored one layer at a time, forwards and again backwards:
memory is a byte per weight, one layer in float32, the embedding, and hidden states at the layers' doors.
"""

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from decant.progress import Progress
from decant_quant.methods.calibration import TokenRow
from decant_quant.methods.decoder import Decoder, Source
from decant_quant.methods.gptq.packing import unpack
from decant_quant.methods.gptq.reader import GptqCheckpoint
from decant_quant.methods.quality import final_states
from decant_quant.options import RecoverConfig

if TYPE_CHECKING:
    from torch import Tensor

_WARM_UP = 0.05
_LEAST_SCALE = 2.0**-24
# A scale learns its relative change; beyond this it would have left the neighbourhood it was chosen in.
_LARGEST_CHANGE = 0.5


def recover_scales(
    decoder: Decoder,
    *,
    original: Source,
    quantized: GptqCheckpoint,
    rows: Sequence[TokenRow],
    config: RecoverConfig,
    seed: int,
) -> "Mapping[str, Tensor]":
    """New scales [groups, O] in float16, under the names of the checkpoint's `scales`.

    Same rows and seed on the same machine, same scales.
    """
    import torch

    targets = final_states(decoder, original, [row.token_ids for row in rows])
    student = _Student(decoder, quantized)
    ends = (_Cached(original), _Cached(quantized.read))
    batches = list(_batches(rows, config, seed))
    optimizer = torch.optim.Adam(student.changes(), lr=config.learning_rate, betas=(0.9, 0.99))
    with Progress(len(batches), unit="step", label="recover") as progress:
        for step, batch in enumerate(batches):
            optimizer.param_groups[0]["lr"] = config.learning_rate * _schedule(step, len(batches))
            loss = _divergence(decoder, student, ends, [(rows[index], targets[index]) for index in batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            student.hold()
            progress.advance(loss=f"{loss.item():.3g}")
    return student.scales()


@dataclass(frozen=True, slots=True)
class _Linear:
    """One linear: codes less zero points, int8 or int16 [G, g, O]; its scales and their change [G, O]."""

    centred: "Tensor"
    scale: "Tensor"
    change: "Tensor"

    def weight(self) -> "Tensor":
        """The weight [O, C], with a gradient to the change."""
        scale_G1O = (self.scale * (1 + self.change)).unsqueeze(1)
        return (self.centred * scale_G1O).flatten(0, 1).t()


class _Student:
    """The quantized model with its scales free to move a little."""

    def __init__(self, decoder: Decoder, quantized: GptqCheckpoint) -> None:
        self._decoder = decoder
        self._quantized = quantized
        self._layers: list[dict[str, _Linear]] = []
        self._fixed: list[Mapping[str, Tensor]] = []
        for index in range(len(decoder)):
            names = decoder.layer_names(index)
            linears = {
                n: _linear(quantized, full, decoder.device)
                for n, full in names.items()
                if _is(quantized, full)
            }
            rest = quantized.read([full for n, full in names.items() if n not in linears])
            self._layers.append(linears)
            self._fixed.append(
                {n: rest[full].to(decoder.device) for n, full in names.items() if n not in linears}
            )

    def changes(self) -> "list[Tensor]":
        """What learns."""
        return [linear.change for layer in self._layers for linear in layer.values()]

    def hold(self) -> None:
        """Keeps every scale near where it was found."""
        import torch

        with torch.no_grad():
            for change in self.changes():
                change.clamp_(-_LARGEST_CHANGE, _LARGEST_CHANGE)

    def states(self, rows: "Sequence[Sequence[int]]") -> "list[Tensor]":
        """Final hidden states [T, H] of each row, with gradients."""
        from torch.utils.checkpoint import checkpoint

        batches = self._decoder.embed(self._quantized.read, rows)
        for index in range(len(self._decoder)):
            for batch in batches:
                batch.hidden = checkpoint(self._advance, index, batch.hidden, use_reentrant=False)
        by_row = {row: batch.hidden[at] for batch in batches for at, row in enumerate(batch.rows)}
        return [by_row[index] for index in range(len(rows))]

    def scales(self) -> "dict[str, Tensor]":
        """The scales as the format stores them."""
        found: dict[str, Tensor] = {}
        for index, layer in enumerate(self._layers):
            names = self._decoder.layer_names(index)
            for name, linear in layer.items():
                scale = (linear.scale * (1 + linear.change.detach())).clamp(min=_LEAST_SCALE)
                found[f"{names[name].removesuffix('.weight')}.scales"] = scale.half().cpu()
        return found

    def _advance(self, index: int, hidden_BTH: "Tensor") -> "Tensor":
        weights = {name: linear.weight() for name, linear in self._layers[index].items()}
        return self._decoder.run_layer(index, {**weights, **self._fixed[index]}, hidden_BTH)


class _Cached:
    """A source that keeps what it gave: the head is asked for at every step."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._found: dict[str, Tensor] = {}

    def __call__(self, names: Sequence[str]) -> "Mapping[str, Tensor]":
        missing = [name for name in names if name not in self._found]
        self._found.update(self._source(missing) if missing else {})
        return {name: self._found[name] for name in names}


def _is(quantized: GptqCheckpoint, name: str) -> bool:
    return f"{name.removesuffix('.weight')}.qweight" in quantized.checkpoint.tensors


def _linear(quantized: GptqCheckpoint, name: str, device: str) -> _Linear:
    import torch

    packed = quantized.packed(name)
    codes_CO, scale_GO, zero_GO = unpack(packed, bits=quantized.bits, offset=quantized.offset)
    groups = len(scale_GO)
    centred = codes_CO.reshape(groups, -1, codes_CO.shape[1]) - zero_GO.to(torch.int32).unsqueeze(1)
    # Asymmetric 8-bit codes reach 255 below their zero point.
    dtype = torch.int8 if quantized.bits < 8 else torch.int16
    change = torch.zeros_like(scale_GO, device=device).requires_grad_()
    return _Linear(centred.to(dtype).to(device), scale_GO.to(device), change)


def _divergence(
    decoder: Decoder,
    student: _Student,
    ends: "tuple[_Cached, _Cached]",
    batch: "Sequence[tuple[TokenRow, Tensor]]",
) -> "Tensor":
    """Mean divergence over the batch's scored positions."""
    import torch

    states = student.states([row.token_ids for row, _ in batch])
    spans = [slice(row.answer_start - 1, len(row.token_ids) - 1) for row, _ in batch]
    wanted = torch.cat([target[s] for (_, target), s in zip(batch, spans, strict=True)])
    found = torch.cat([state[s] for state, s in zip(states, spans, strict=True)])
    total = found.new_zeros(())
    for _, (before_TV, after_TV) in decoder.logits(ends, [wanted, found]):
        p_TV, q_TV = before_TV.log_softmax(-1), after_TV.log_softmax(-1)
        total = total + (p_TV.exp() * (p_TV - q_TV)).sum()
    return total / len(found)


def _batches(rows: Sequence[TokenRow], config: RecoverConfig, seed: int) -> Iterator[list[int]]:
    """Row numbers of every step: each epoch in a new order, rows of like length together."""
    generator = random.Random(seed)
    for _ in range(config.epochs):
        order = sorted(range(len(rows)), key=lambda index: (len(rows[index].token_ids), generator.random()))
        parts: list[list[int]] = [[]]
        for index in order:
            tokens = sum(len(rows[other].token_ids) for other in parts[-1])
            if parts[-1] and tokens + len(rows[index].token_ids) > config.batch_tokens:
                parts.append([])
            parts[-1].append(index)
        generator.shuffle(parts)
        yield from parts


def _schedule(step: int, total: int) -> float:
    """The share of the learning rate: a short linear rise, then a cosine to zero."""
    rise = max(1, round(_WARM_UP * total))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, total - rise)))
