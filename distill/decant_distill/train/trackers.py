"""The curves of a run sent to TensorBoard or Weights & Biases, as they stand in its own page."""

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from decant.errors import MissingExtraError


class Tracker(Protocol):
    """Somewhere that takes numbers by name and step."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Takes the values of one step."""
        ...

    def close(self) -> None:
        """Lets everything reach its place."""
        ...


class TensorBoard:
    """Event files under `folder`; what a rewind undid is purged from them."""

    def __init__(self, folder: Path, *, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(log_dir=str(folder), purge_step=first_step or None)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Takes the values of one step."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Writes what is buffered."""
        self._writer.close()


class WeightsAndBiases:
    """A run under `folder`, its settings in the usual variables: WANDB_PROJECT, WANDB_MODE (offline, say).

    Its own step only ever grows, so that after a rewind points are drawn over `step` instead.
    """

    def __init__(self, folder: Path, *, name: str, config: Mapping[str, Any]) -> None:
        wandb: Any = importlib.import_module("wandb")

        folder.mkdir(parents=True, exist_ok=True)
        self._run: Any = wandb.init(dir=str(folder), name=name, config=dict(config))
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Takes the values of one step."""
        self._run.log({"step": step, **values})

    def close(self) -> None:
        """Ends the run."""
        self._run.finish()


def require_trackers(names: Sequence[str]) -> None:
    """MissingExtraError when a tracker's library is not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise MissingExtraError(name, name)


def build_trackers(
    names: Sequence[str], output: Path, *, first_step: int, config: Mapping[str, Any]
) -> list[Tracker]:
    """One tracker per name, with its files beside the output."""
    folder = output.parent / f"{output.name}.curves"
    made: list[Tracker] = []
    for name in names:
        if name == "tensorboard":
            made.append(TensorBoard(folder / name, first_step=first_step))
        else:
            made.append(WeightsAndBiases(folder / name, name=output.name, config=config))
    return made
