"""What one step sees and minimises: padded batches of the plan, and the loss over them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from decant_distill.train.batches import BatchPlan
from decant_distill.train.encode import Example

if TYPE_CHECKING:
    from torch import Tensor

_IGNORED = -100


@dataclass(frozen=True, slots=True)
class BatchDataset:
    """A dataset whose item i is batch i of the plan: skipping to a step costs nothing and is exact."""

    examples: Sequence[Example]
    plan: BatchPlan

    def __len__(self) -> int:
        return len(self.plan.batches)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return pad_batch([self.examples[row] for row in self.plan.batches[index]])


def pad_batch(examples: Sequence[Example]) -> dict[str, Any]:
    """Input ids and labels, both int64 [rows, longest], padded on the right.

    There is no attention mask: under a causal mask nothing looks at what stands to its right, and the labels
    of the padding are ignored. Logits are only asked for from the last token of the shortest prompt on.
    """
    import torch

    shape = (len(examples), max(len(example.ids) for example in examples))
    ids = np.zeros(shape, dtype=np.int64)
    labels = np.full(shape, _IGNORED, dtype=np.int64)
    for row, example in enumerate(examples):
        length = len(example.ids)
        ids[row, :length] = example.ids
        labels[row, example.prompt_tokens : length] = example.ids[example.prompt_tokens :]
    first = min(example.prompt_tokens for example in examples) - 1
    return {
        "input_ids": torch.tensor(ids),
        "labels": torch.tensor(labels),
        "logits_to_keep": shape[1] - max(first, 0),
    }


def completion_loss(logits: "Tensor", labels: "Tensor") -> "Tensor":
    """Mean cross-entropy of the completion's tokens, in float32.

    `logits` [rows, kept, vocabulary] are those of the last `kept` positions of `labels` [rows, length].
    """
    from torch.nn import functional

    targets = labels[:, labels.shape[1] - logits.shape[1] + 1 :]
    wanted = targets != _IGNORED
    return functional.cross_entropy(logits[:, :-1][wanted].float(), targets[wanted])
