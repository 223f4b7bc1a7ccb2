# torch leaves some of its types open.
# pyright: reportUnknownMemberType=false
"""A GGUF file read back by the names and row order of the checkpoint that it was made from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from decant_quant.methods.gguf_families import PlannedTensor

if TYPE_CHECKING:
    from gguf.gguf_reader import ReaderTensor
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class RestoredGguf:
    """The file's tensors, widened by the `gguf` package's own dequantizers."""

    stored: "Mapping[str, ReaderTensor]"
    planned: Mapping[str, tuple[PlannedTensor, int]]

    def read(self, names: Sequence[str]) -> "Mapping[str, Tensor]":
        """Tensors as float32, by the checkpoint's names."""
        return {name: self._read(*self.planned[name]) for name in names}

    def _read(self, plan: PlannedTensor, expert: int) -> "Tensor":
        import gguf
        import torch

        stored = self.stored[plan.name]
        kept = stored.data[expert] if plan.stacked else stored.data
        rows = gguf.quants.dequantize(kept, stored.tensor_type).reshape(plan.sources[0].shape)
        if plan.row_order is None:
            return torch.from_numpy(np.array(rows, dtype=np.float32))
        restored = np.empty(rows.shape, np.float32)
        restored[plan.row_order] = rows
        return torch.from_numpy(restored)


def open_restored(file: Path, planned: Sequence[PlannedTensor]) -> RestoredGguf:
    """Opens a file whose tensors were planned as `planned`."""
    import gguf

    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    places = {source.name: (plan, at) for plan in planned for at, source in enumerate(plan.sources)}
    return RestoredGguf(stored, places)
