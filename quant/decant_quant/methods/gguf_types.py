"""How one tensor of a GGUF file is encoded in the format chosen for it, slab by slab."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from decant.errors import QuantizeError
from decant_quant.methods.ggml_library import Ggml, block_of
from decant_quant.methods.gguf_families import Dimensions, PlannedTensor
from decant_quant.methods.gguf_mixes import SMALL_BLOCKS, Mix, Place, format_of

# Values per slab: the quantizers make several float32 temporaries, which then stay in the cache.
_SLAB = 1 << 17
# The largest float16. Block scales are float16 too.
_F16_LIMIT = 65504.0
# Formats that the `gguf` package itself encodes, in numpy; the others, and weighted errors, are ggml's.
_IN_NUMPY = ("F32", "BF16", "F16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0")
_UNWEIGHTED = ("F32", "BF16", "F16", "Q8_0")


@dataclass(frozen=True, slots=True)
class Encoding:
    """The format chosen for one tensor; `wanted` differs from `name` when the format's blocks do not fit."""

    name: str
    wanted: str

    def size_bytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of a tensor of this shape."""
        block, block_bytes = block_of(self.name)
        return int(np.prod(shape)) // block * block_bytes


def choose_all(
    tensors: Sequence[PlannedTensor], mix: Mix, sizes: Dimensions, *, has_importance: bool
) -> list[Encoding]:
    """The format of every tensor of a model."""
    tied = not any(tensor.is_head for tensor in tensors)
    return [_choose(tensor, mix, sizes, has_importance, tied) for tensor in tensors]


def _choose(tensor: PlannedTensor, mix: Mix, sizes: Dimensions, has_importance: bool, tied: bool) -> Encoding:
    """The format of a tensor: 32 bits for vectors and routers, a smaller block where a row is no whole
    number of blocks, F16 where none fits.
    """
    if not tensor.is_matrix:
        return Encoding("F32", "F32")
    if tensor.is_head or (tensor.is_embedding and tied):
        wanted = mix.head
    elif tensor.is_embedding:
        wanted = mix.embedding
    else:
        ratio = sizes.heads // sizes.kv_heads
        place = Place(tensor.kind, tensor.layer, sizes.layers, ratio, sizes.experts, has_importance)
        wanted = format_of(mix, place)
    columns = tensor.shape[-1]
    for name in (wanted, SMALL_BLOCKS.get(wanted, wanted)):
        if columns % block_of(name)[0] == 0:
            return Encoding(name, wanted)
    return Encoding("F16", wanted)


def needs_ggml(encodings: Sequence[Encoding], *, has_importance: bool) -> bool:
    """Whether any tensor is beyond what the `gguf` package encodes by itself."""
    names = {encoding.name for encoding in encodings}
    return bool(names - set(_IN_NUMPY)) or (has_importance and bool(names - set(_UNWEIGHTED)))


def encode(
    tensor: PlannedTensor, encoding: Encoding, ggml: Ggml | None, importance: NDArray[np.float32] | None
) -> NDArray[np.uint8]:
    """The tensor's bytes, shape (rows, bytes per row), experts below one another; QuantizeError for values
    that the format cannot hold. A vector counts as rows of one value; `importance` is [sources, columns].
    """
    columns = tensor.shape[-1] if len(tensor.shape) > 1 else 1
    each = int(np.prod(tensor.sources[0].shape)) // columns
    encoded = np.empty((each * len(tensor.sources), encoding.size_bytes((columns,))), np.uint8)
    for index in range(len(tensor.sources)):
        weights = None if importance is None else importance[index]
        turn = _quantizer(encoding, ggml, weights)
        _encode_source(tensor, index, turn, encoding, encoded[index * each : (index + 1) * each])
    return encoded


_Quantizer = Callable[[NDArray[np.float32]], NDArray[np.uint8]]


def _quantizer(encoding: Encoding, ggml: Ggml | None, importance: NDArray[np.float32] | None) -> _Quantizer:
    """Rows of float32 to rows of bytes."""
    import gguf

    weights = None if encoding.name in _UNWEIGHTED else importance
    if ggml is not None and (weights is not None or encoding.name not in _IN_NUMPY):
        ggml.start(encoding.name)
        library = ggml
        return lambda rows: library.encode(rows, encoding.name, weights)
    number_type = gguf.GGMLQuantizationType[encoding.name]

    def in_numpy(rows: NDArray[np.float32]) -> NDArray[np.uint8]:
        # One long row: the quantizers loop in Python over rows, and blocks never cross a row's end.
        flat = gguf.quantize(np.ascontiguousarray(rows).reshape(1, -1), number_type)
        return flat.view(np.uint8).reshape(rows.shape[0], -1)

    return in_numpy


def _encode_source(
    tensor: PlannedTensor, index: int, turn: _Quantizer, encoding: Encoding, into: NDArray[np.uint8]
) -> None:
    """One stored tensor, its slabs on every core: ggml works outside Python's lock."""
    source = tensor.sources[index]
    stored = source.read()
    rows = stored.reshape(into.shape[0], -1)
    step = max(1, _SLAB // rows.shape[1])

    def one(start: int) -> None:
        order = tensor.row_order
        chosen = slice(start, start + step) if order is None else order[start : start + step]
        values = source.widen(rows[chosen])
        _refuse_unholdable(values, source.file, source.name, encoding)
        into[start : start + step] = turn(values)

    starts = range(0, rows.shape[0], step)
    if len(starts) == 1:
        one(0)
        return
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(one, starts):
            pass


def _refuse_unholdable(values: NDArray[np.float32], file: Path, name: str, encoding: Encoding) -> None:
    peak = float(np.abs(values).max(initial=0.0))
    where = f"{file}: {name}"
    if not np.isfinite(peak):
        raise QuantizeError(
            f"{where} holds a value that is not finite; the training diverged: use an earlier checkpoint"
        )
    if peak > _F16_LIMIT and encoding.name not in ("F32", "BF16"):
        raise QuantizeError(f"{where} holds {peak:g}, more than float16 can; use gguf:BF16 or gguf:F32")
