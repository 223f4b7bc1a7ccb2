# torch leaves some of its types open, and the gguf package some of its.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""How much each input column of a matrix matters: the mean square of what calibration rows send through it.

It is llama.cpp's importance matrix, and is kept in llama.cpp's own file format, so that `llama-quantize`
can read ours and we can read what `llama-imatrix` wrote.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from decant.errors import QuantizeError
from decant.progress import Progress
from decant_quant.methods.decoder import Batch, Decoder
from decant_quant.methods.gguf_families import PlannedTensor
from decant_quant.methods.measuring import Measuring

if TYPE_CHECKING:
    from torch import Tensor

_SUMS, _COUNTS = ".in_sum2", ".counts"
# Columns that no calibration row used still have a say, or a block of them has no best scale.
_FLOOR = 1e-6


@dataclass(frozen=True, slots=True)
class ImportanceMatrix:
    """By the GGUF tensor's name: sums of squares [E, C] and how many tokens each row of them is over, [E, 1];
    E is 1 but for stacked experts.
    """

    sums: Mapping[str, NDArray[np.float32]]
    counts: Mapping[str, NDArray[np.float32]]

    @property
    def tokens(self) -> int:
        """The most tokens that any tensor has seen."""
        return int(max((counts.max() for counts in self.counts.values()), default=0))

    def of(self, tensor: PlannedTensor) -> NDArray[np.float32] | None:
        """What to weigh this tensor's columns with, [E, C], none of it zero; None where it is not known."""
        if tensor.name not in self.sums:
            return None
        found = self.sums[tensor.name] / np.maximum(self.counts[tensor.name], 1)
        mean = found.mean(axis=-1, keepdims=True)
        return np.where(mean > 0, np.maximum(found, _FLOOR * mean), 1.0).astype(np.float32)


def collect(measuring: Measuring, planned: Sequence[PlannedTensor]) -> ImportanceMatrix:
    """Runs the calibration rows through the unquantized model, one layer in memory at a time."""
    import torch

    decoder, rows = measuring.decoder, measuring.rows.calibration
    given: dict[str, _Given] = {}
    with torch.no_grad(), Progress(len(decoder), unit="layer", label="importance") as progress:
        batches = decoder.embed(measuring.original, [row.token_ids for row in rows])
        for index in range(len(decoder)):
            given.update(_layer_inputs(decoder, index, measuring, batches))
            progress.advance()
    sums: dict[str, NDArray[np.float32]] = {}
    counts: dict[str, NDArray[np.float32]] = {}
    for plan in planned:
        # Stacked experts have their inputs each, and one may have had none; linears made one share theirs.
        sources = plan.sources if plan.stacked else plan.sources[:1]
        parts = [given.get(source.name) for source in sources]
        if any(parts):
            nothing = np.zeros(plan.shape[-1], np.float32)
            sums[plan.name] = np.stack([part.to_numpy() if part else nothing for part in parts])
            counts[plan.name] = np.array([[part.tokens if part else 0] for part in parts], np.float32)
    return ImportanceMatrix(sums, counts)


@dataclass(slots=True)
class _Given:
    """What a linear was given: the sum of squares of each column, over so many tokens."""

    squares: "Tensor"  # [C]
    tokens: int

    def to_numpy(self) -> NDArray[np.float32]:
        return self.squares.float().cpu().numpy()


def _layer_inputs(
    decoder: Decoder, index: int, measuring: Measuring, batches: Sequence[Batch]
) -> "dict[str, _Given]":
    """Takes the batches through one layer; by weight, what its linear was given."""
    import torch

    names = decoder.layer_names(index)
    found = measuring.original(list(names.values()))
    given: dict[str, _Given] = {}
    with decoder.layer(index, {short: found[name] for short, name in names.items()}) as layer:
        hooks: list[Any] = []
        for short, module in layer.named_modules():
            if isinstance(module, torch.nn.Linear):
                hooks.append(module.register_forward_pre_hook(_adder(given, names[f"{short}.weight"])))
        decoder.run_blocks(index, layer, batches)
        for hook in hooks:
            hook.remove()
    return given


def _adder(given: "dict[str, _Given]", name: str) -> Any:
    def add(_module: Any, arguments: "tuple[Tensor, ...]") -> None:
        inputs_NC = arguments[0].double().flatten(0, -2)
        squares_C = inputs_NC.square().sum(0)
        if name in given:
            squares_C += given[name].squares
        given[name] = _Given(squares_C, len(inputs_NC) + (given[name].tokens if name in given else 0))

    return add


def write_matrix(matrix: ImportanceMatrix, file: Path, *, dataset: str) -> None:
    """Writes it as `llama-imatrix` does: sums of squares and counts, by tensor."""
    import gguf

    writer = gguf.GGUFWriter(file, "imatrix")
    try:
        writer.add_type(gguf.GGUFType.IMATRIX)
        writer.add_array(gguf.Keys.IMatrix.DATASETS, [dataset])
        writer.add_uint32(gguf.Keys.IMatrix.CHUNK_COUNT, 1)
        writer.add_uint32(gguf.Keys.IMatrix.CHUNK_SIZE, matrix.tokens)
        for name, sums in matrix.sums.items():
            writer.add_tensor(f"{name}{_SUMS}", sums)
            writer.add_tensor(f"{name}{_COUNTS}", matrix.counts[name])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def read_matrix(file: Path, planned: Sequence[PlannedTensor]) -> ImportanceMatrix:
    """Reads a file in llama.cpp's GGUF format; QuantizeError for another file, or one of another model."""
    import gguf

    try:
        stored = {tensor.name: tensor.data for tensor in gguf.GGUFReader(file).tensors}
    except (OSError, ValueError, IndexError, KeyError, OverflowError) as error:
        raise QuantizeError(
            f"{file}: is no importance matrix in GGUF ({error}); llama-imatrix writes one with"
            f" --output-format gguf"
        ) from None
    all_sums: dict[str, NDArray[np.float32]] = {}
    all_counts: dict[str, NDArray[np.float32]] = {}
    for plan in planned:
        sums, counts = stored.get(f"{plan.name}{_SUMS}"), stored.get(f"{plan.name}{_COUNTS}")
        if sums is None or counts is None:
            continue
        wanted = (len(plan.sources) if plan.stacked else 1, plan.shape[-1])
        if sums.size != wanted[0] * wanted[1] or counts.size != wanted[0] or not np.isfinite(sums).all():
            raise QuantizeError(
                f"{file}: {plan.name} has {sums.size} numbers, the model {wanted[0] * wanted[1]} columns, or"
                f" one is not finite; name the importance matrix of this model"
            )
        all_sums[plan.name] = np.array(sums, np.float32).reshape(wanted)
        all_counts[plan.name] = np.array(counts, np.float32).reshape(-1, 1)
    if not all_sums:
        raise QuantizeError(f"{file}: names no tensor of this model; name its own importance matrix")
    return ImportanceMatrix(all_sums, all_counts)
