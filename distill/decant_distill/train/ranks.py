"""One run on several devices: each takes its rows of every batch, and all see one loss.

A step stays one batch of the plan however many processes there are, so that their number changes neither what
is learned nor where a checkpoint stands. accelerate starts the processes; alone, nothing here communicates.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from decant.errors import TrainingError

if TYPE_CHECKING:
    from torch import Tensor


# As accelerate names them to the processes that it starts.
_NOT_TAKEN = {
    "PARALLELISM_CONFIG_TP_SIZE": "tensor",
    "PARALLELISM_CONFIG_CP_SIZE": "context",
    "PARALLELISM_CONFIG_SP_SIZE": "sequence",
}


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process's place among those that train together; `sharded` says that no one holds all weights."""

    rank: int = 0
    world: int = 1
    sharded: bool = False

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> "Ranks":
        """What the launcher (accelerate, torchrun) put into the environment of this process.

        TrainingError for a way to divide a model that is not trained with here.
        """
        given = os.environ if environment is None else environment
        for name, way in _NOT_TAKEN.items():
            if int(given.get(name, "1")) > 1:
                raise TrainingError(
                    f"{way} parallel training ({name}={given[name]}) is not supported;"
                    " use the shipped DDP, FSDP2 or ZeRO configs"
                )
        sharded = "true" in (given.get("ACCELERATE_USE_FSDP"), given.get("ACCELERATE_USE_DEEPSPEED"))
        return cls(rank=int(given.get("RANK", "0")), world=int(given.get("WORLD_SIZE", "1")), sharded=sharded)

    @property
    def writes(self) -> bool:
        """Whether this process is the one that writes and speaks."""
        return self.rank == 0

    def total(self, value: float) -> float:
        """The sum of a number over all processes."""
        if self.world == 1:
            return value
        import torch
        from accelerate import PartialState
        from torch import distributed

        summed = torch.tensor(value, dtype=torch.float64, device=PartialState().device)
        distributed.all_reduce(summed)
        return summed.item()

    def wait(self) -> None:
        """Returns when all processes have come here."""
        if self.world > 1:
            from torch import distributed

            distributed.barrier()

    def share(self, loss: "Tensor", logits: "Tensor", *, mass: float) -> "Tensor":
        """This process's part of the batch's loss, times the number of processes: their mean is the loss.

        `loss` is the mean over this process's own labels, whose weights sum to `mass`; without any it is not
        used.
        """
        if self.world == 1:
            return loss
        weight = mass * self.world / self.total(mass)
        return loss * weight if mass else logits.sum() * 0.0
