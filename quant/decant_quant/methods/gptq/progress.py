"""Finished layers on disk, one file each beside the artifact-to-be, so that a killed run goes on from them.

A run may only go on from layers that the same run would have made: model, settings and rows are compared.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decant.files import write_bytes, write_json
from decant_quant.checkpoint import Checkpoint, stored_tensors
from decant_quant.methods.gptq.grid import GridSpec, layout_of
from decant_quant.methods.gptq.layers import LinearError
from decant_quant.methods.gptq.packing import OFFSETS
from decant_quant.methods.gptq.reader import GptqCheckpoint

if TYPE_CHECKING:
    from torch import Tensor

_RUN = "run.json"


class FinishedLayers:
    """The layers of one run that are done, in a folder of their own."""

    def __init__(self, folder: Path, *, run: Mapping[str, Any], grid: GridSpec) -> None:
        self._folder = folder
        self._grid = grid
        if _read(folder / _RUN) != json.loads(json.dumps(run)):
            shutil.rmtree(folder, ignore_errors=True)
            write_json(folder / _RUN, run)

    def has(self, index: int) -> bool:
        """Whether a layer is done; its record is written after its tensors."""
        return self._record(index).is_file()

    def save(self, index: int, tensors: "Mapping[str, Tensor]", errors: Sequence[LinearError]) -> None:
        """Writes a layer's tensors, named as in the checkpoint, and what they lost."""
        import safetensors.torch

        on_cpu = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        write_bytes(self._tensors(index), safetensors.torch.save(on_cpu, metadata={"format": "pt"}))
        write_json(self._record(index), [asdict(error) for error in errors])

    def errors(self, index: int) -> list[LinearError]:
        """What a finished layer's linears lost."""
        return [LinearError(**error) for error in _read(self._record(index))]

    def open(self, index: int) -> GptqCheckpoint:
        """A finished layer, to be read as if it had not been quantized."""
        checkpoint = Checkpoint(self._folder, config={}, tensors=stored_tensors(self._tensors(index)))
        return GptqCheckpoint(checkpoint, self._grid.bits, OFFSETS[layout_of(self._grid)])

    def place(self, index: int, target: Path) -> None:
        """The layer's file at `target`, sharing its blocks on disk where the file system can."""
        try:
            os.link(self._tensors(index), target)
        except OSError:
            shutil.copyfile(self._tensors(index), target)

    def _tensors(self, index: int) -> Path:
        return self._folder / f"layer-{index:05}.safetensors"

    def _record(self, index: int) -> Path:
        return self._folder / f"layer-{index:05}.json"


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
