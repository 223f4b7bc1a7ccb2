"""One run on several devices: each takes its rows of every batch, and all see one loss.

A step stays one batch of the plan however many processes there are, so that their number changes neither what
is learned nor where a checkpoint stands. accelerate starts the processes; alone, nothing here communicates.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from decant_distill.train.batches import BatchPlan
from decant_distill.train.encode import Example
from decant_distill.train.objective import Objective

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process's place among those that train together; `sharded` says that no one holds all weights.

    `replicas` counts the processes that see different rows: those of one tensor-parallel group see the same.
    """

    rank: int = 0
    world: int = 1
    sharded: bool = False

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> "Ranks":
        """What the launcher (accelerate, torchrun) put into the environment of this process."""
        given = os.environ if environment is None else environment
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


@dataclass(frozen=True, slots=True)
class RankBatches:
    """A dataset whose item i is this process's rows of batch i: skipping to a step is free and exact."""

    examples: Sequence[Example]
    plan: BatchPlan
    objective: Objective
    ranks: Ranks

    def __len__(self) -> int:
        return len(self.plan.batches)

    def __getitem__(self, index: int) -> dict[str, Any]:
        batch = self.plan.batches[index]
        mine = batch[self.ranks.rank :: self.ranks.world]
        rows = [self.examples[row] for row in mine] or [_unlearned(self.examples[batch[0]])]
        return self.objective.batch(rows)


def _unlearned(example: Example) -> Example:
    """A row without a label, for a process for which a small batch has none: all must take part in a step."""
    return replace(
        example,
        prompt_tokens=len(example.ids),
        emphasis=None if example.emphasis is None else example.emphasis[:0],
        teacher=None if example.teacher is None else example.teacher[:0],
    )
