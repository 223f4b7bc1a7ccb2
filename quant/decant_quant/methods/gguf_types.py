"""The number formats of a GGUF file and how a tensor is encoded in one, slab by slab."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decant.errors import QuantizeError
from decant_quant.methods.gguf_families import PlannedTensor

# Values per slab: the quantizers make several float32 temporaries, which then stay in the cache.
_SLAB = 1 << 17
# The largest float16. Block scales are float16 too.
_F16_LIMIT = 65504.0


@dataclass(frozen=True, slots=True)
class Mix:
    """Which format each kind of tensor gets. `ends` are the embedding and the output head.

    Under 8 bits the ends stay at Q8_0: their errors reach every logit, and they are few bytes of the whole.
    """

    matrices: str
    ends: str
    file_type: str


MIXES: Mapping[str, Mix] = {
    "F32": Mix("F32", "F32", "ALL_F32"),
    "BF16": Mix("BF16", "BF16", "MOSTLY_BF16"),
    "F16": Mix("F16", "F16", "MOSTLY_F16"),
    "Q8_0": Mix("Q8_0", "Q8_0", "MOSTLY_Q8_0"),
    "Q5_1": Mix("Q5_1", "Q8_0", "MOSTLY_Q5_1"),
    "Q5_0": Mix("Q5_0", "Q8_0", "MOSTLY_Q5_0"),
    "Q4_1": Mix("Q4_1", "Q8_0", "MOSTLY_Q4_1"),
    "Q4_0": Mix("Q4_0", "Q8_0", "MOSTLY_Q4_0"),
}


@dataclass(frozen=True, slots=True)
class Encoding:
    """The format chosen for one tensor; `wanted` differs from `name` when the format's blocks do not fit."""

    name: str
    wanted: str

    def size_bytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of a tensor of this shape."""
        block, block_bytes = _block(self.name)
        return int(np.prod(shape)) // block * block_bytes


def choose(tensor: PlannedTensor, mix: Mix) -> Encoding:
    """The format of a tensor: 32 bits for vectors, F16 where a row is not a whole number of blocks."""
    if not tensor.is_matrix:
        return Encoding("F32", "F32")
    wanted = mix.ends if tensor.is_end else mix.matrices
    fits = tensor.source.shape[-1] % _block(wanted)[0] == 0
    return Encoding(wanted if fits else "F16", wanted)


def encode(tensor: PlannedTensor, encoding: Encoding) -> NDArray[Any]:
    """The tensor's bytes, shape (rows, bytes per row); QuantizeError for values that the format cannot hold.

    A vector counts as rows of one value.
    """
    import gguf

    number_type = gguf.GGMLQuantizationType[encoding.name]
    stored = tensor.source.read()
    rows = stored.reshape(stored.shape[0], -1)
    encoded = np.empty((rows.shape[0], encoding.size_bytes((rows.shape[1],))), np.uint8)
    step = max(1, _SLAB // rows.shape[1])
    for start in range(0, rows.shape[0], step):
        chosen = (
            slice(start, start + step) if tensor.row_order is None else tensor.row_order[start : start + step]
        )
        values = tensor.source.widen(rows[chosen])
        _refuse_unholdable(values, tensor, encoding)
        # One long row: the quantizers loop in Python over rows, and blocks never cross a row's end.
        flat = gguf.quantize(np.ascontiguousarray(values).reshape(1, -1), number_type)
        encoded[start : start + step] = flat.view(np.uint8).reshape(values.shape[0], -1)
    return encoded


def _refuse_unholdable(values: NDArray[np.float32], tensor: PlannedTensor, encoding: Encoding) -> None:
    peak = float(np.abs(values).max(initial=0.0))
    where = f"{tensor.source.file}: {tensor.source.name}"
    if not np.isfinite(peak):
        raise QuantizeError(
            f"{where} holds a value that is not finite; the training diverged: use an earlier checkpoint"
        )
    if peak > _F16_LIMIT and encoding.name not in ("F32", "BF16"):
        raise QuantizeError(f"{where} holds {peak:g}, more than float16 can; use gguf:BF16 or gguf:F32")


def _block(name: str) -> tuple[int, int]:
    import gguf

    values, size_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    return values, size_bytes
