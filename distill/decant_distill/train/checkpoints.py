"""Checkpoints of one run: which run they belong to, which are whole, and what else was known at each."""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from decant.errors import TrainingError
from decant.files import write_json, write_text

_RUN = "run.json"
_PROGRESS = "progress.json"


class RunProgress(BaseModel, frozen=True):
    """What a run had spent and seen at a checkpoint, for its manifest; `losses` has one value per step."""

    step: int
    wall_s: float
    losses: tuple[float, ...]
    resumed: int


FRESH = RunProgress(step=0, wall_s=0.0, losses=(), resumed=0)


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """The folder beside the output in which a run keeps its checkpoints until it is done."""

    folder: Path

    @classmethod
    def beside(cls, output: Path) -> "Checkpoints":
        """The checkpoints of the run that writes `output`."""
        return cls(output.parent / f"{output.name}.checkpoints")

    def claim(self, identity: dict[str, Any]) -> None:
        """Makes the folder this run's; TrainingError when it holds the checkpoints of another one."""
        path = self.folder / _RUN
        found = _read_json(path) if path.exists() else identity
        keys = identity.keys() | found.keys()
        differing = sorted(key for key in keys if identity.get(key) != found.get(key))
        if differing and self.latest():
            raise TrainingError(
                f"{self.folder}: holds the checkpoints of a run with other {', '.join(differing)};"
                " restore the settings to go on with it, or delete the folder to start over"
            )
        write_json(path, identity)

    def latest(self) -> tuple[Path, RunProgress] | None:
        """The newest whole checkpoint. One that a kill left half-written has no progress file yet."""
        whole = [path for path in self.folder.glob("checkpoint-*") if (path / _PROGRESS).is_file()]
        if not whole:
            return None
        newest = max(whole, key=lambda path: int(path.name.rpartition("-")[2]))
        return newest, RunProgress.model_validate_json((newest / _PROGRESS).read_bytes())

    def seal(self, progress: RunProgress) -> None:
        """Declares the checkpoint of this step whole, once everything in it is on the disk."""
        folder = self.folder / f"checkpoint-{progress.step}"
        for path in (path for path in folder.rglob("*") if path.is_file()):
            with path.open("rb") as file:
                os.fsync(file.fileno())
        write_text(folder / _PROGRESS, progress.model_dump_json())

    def remove(self) -> None:
        """Deletes them all: the run is done."""
        shutil.rmtree(self.folder)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_bytes()))
    except ValueError:
        raise TrainingError(f"{path}: cannot be read; delete {path.parent} to start over") from None
