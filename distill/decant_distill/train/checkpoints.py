"""Checkpoints of one run: which run they belong to, which are whole, and what else was known at each."""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from decant.errors import TrainingError
from decant.files import write_json, write_text
from decant_distill.train.rewinds import Rewind

_RUN = "run.json"
_PROGRESS = "progress.json"
_REWINDS = "rewinds.json"
_KEPT = 2

_REWIND_LIST: TypeAdapter[tuple[Rewind, ...]] = TypeAdapter(tuple[Rewind, ...])


class Judgement(BaseModel, frozen=True):
    """The student after `step` steps, on the held-out rows; `accuracy` where answers were asked for."""

    step: int
    loss: float
    accuracy: float | None = None


class RunProgress(BaseModel, frozen=True):
    """What a run had spent and seen at a checkpoint, for its manifest.

    `losses`, `norms` (of the gradient, before clipping), `rates` (learning rates) and `seconds` have one
    value per step; `rewinds` says how many there had been.
    """

    step: int
    wall_s: float
    losses: tuple[float, ...]
    resumed: int
    norms: tuple[float, ...] = ()
    rates: tuple[float, ...] = ()
    seconds: tuple[float, ...] = ()
    judgements: tuple[Judgement, ...] = ()
    rewinds: int = 0


def best_of(judgements: Sequence[Judgement]) -> Judgement | None:
    """The best one: the highest accuracy where there is one, then the lowest loss, then the earliest."""
    return min(judgements, key=lambda one: (-(one.accuracy or 0.0), one.loss, one.step), default=None)


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
        if differing:
            (self.folder / _REWINDS).unlink(missing_ok=True)
        write_json(path, identity)

    def rewinds(self) -> tuple[Rewind, ...]:
        """The rewinds of this run so far."""
        path = self.folder / _REWINDS
        if not path.exists():
            return ()
        try:
            return _REWIND_LIST.validate_json(path.read_bytes())
        except ValidationError:
            raise TrainingError(f"{path}: cannot be read; delete {self.folder} to start over") from None

    def record(self, rewinds: Sequence[Rewind]) -> None:
        """Makes the rewinds last; from then on checkpoints of the steps undone are passed over.

        This one write is the rewind: a kill before it finds the spike again, one after it has it behind.
        """
        write_json(self.folder / _REWINDS, [rewind.model_dump() for rewind in rewinds])

    def latest(self, *, before: int | None = None) -> tuple[Path, RunProgress] | None:
        """The newest whole checkpoint, of at most `before` steps.

        One that a kill left half-written has no progress file yet; one that a rewind undid does not count.
        """
        whole = [path for path in self._all() if (path / _PROGRESS).is_file()]
        rewinds = self.rewinds()
        for path in sorted(whole, key=_step, reverse=True):
            if before is not None and _step(path) > before:
                continue
            progress = RunProgress.model_validate_json((path / _PROGRESS).read_bytes())
            if all(progress.step <= rewind.to_step for rewind in rewinds[progress.rewinds :]):
                return path, progress
        return None

    def seal(self, progress: RunProgress, *, back: int = 0) -> None:
        """Declares the checkpoint of this step whole, once everything in it is on the disk; drops old ones.

        The newest ones stay, up to the first that lies at least `back` steps behind.
        """
        folder = self.folder / f"checkpoint-{progress.step}"
        for path in (path for path in folder.rglob("*") if path.is_file()):
            with path.open("rb") as file:
                os.fsync(file.fileno())
        write_text(folder / _PROGRESS, progress.model_dump_json())
        self._prune(progress.step, back)

    def best_steps(self, progress: RunProgress) -> frozenset[int]:
        """The steps that were the best at this point or at a checkpoint that may be gone back to."""
        files = [path / _PROGRESS for path in self._all() if (path / _PROGRESS).is_file()]
        known = [progress, *(RunProgress.model_validate_json(file.read_bytes()) for file in files)]
        best = (best_of(one.judgements) for one in known)
        return frozenset(one.step for one in best if one is not None)

    def remove(self) -> None:
        """Deletes them all: the run is done."""
        shutil.rmtree(self.folder)

    def _prune(self, step: int, back: int) -> None:
        steps = sorted(map(_step, self._all()), reverse=True)
        undone = [found for found in steps if found > step]
        steps = [found for found in steps if found <= step]
        far = next((found for found in steps if found <= step - back), steps[-1])
        kept = {*steps[:_KEPT], *(found for found in steps if found >= far)}
        for found in [*undone, *(found for found in steps if found not in kept)]:
            shutil.rmtree(self.folder / f"checkpoint-{found}")

    def _all(self) -> list[Path]:
        return [path for path in self.folder.glob("checkpoint-*") if path.is_dir()]


def _step(path: Path) -> int:
    return int(path.name.rpartition("-")[2])


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_bytes()))
    except ValueError:
        raise TrainingError(f"{path}: cannot be read; delete {path.parent} to start over") from None
