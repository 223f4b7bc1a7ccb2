"""What one step sees and minimises: padded batches of the plan, and the loss over them.

Completions are learned by cross-entropy, each token with its weight; where a teacher's scores are at hand
they are mixed in, as forward KL over its top tokens (what is left is one more bucket) or as random samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from decant_distill.train.batches import BatchPlan
from decant_distill.train.config import TrainConfig
from decant_distill.train.encode import Example
from decant_distill.train.ranks import Ranks
from decant_distill.train.student import decoder_start

if TYPE_CHECKING:
    from torch import Tensor

Normalization = Literal["token", "example"]

_IGNORED = -100
# A float32 sum of probabilities that should be 1 misses it by about this much.
_LEAST_TAIL = 1e-6


@dataclass(frozen=True, slots=True)
class Objective:
    """How examples become a batch and logits a loss.

    `decoder_start` is the id that an encoder-decoder's decoder starts from; None for a decoder alone.
    `teacher_weight` is the share of the teacher's scores in the loss, where examples carry some.
    """

    normalization: Normalization = "token"
    teacher_weight: float = 0.0
    temperature: float = 1.0
    decoder_start: int | None = None

    def batch(self, examples: Sequence[Example]) -> dict[str, Any]:
        """What the model is given, and under `labels` what `loss` needs: ids, or ids, weights and scores."""
        if self.decoder_start is None:
            batch = pad_batch(examples)
        else:
            batch = _pad_two_sides(examples, start=self.decoder_start)
        scored = self.teacher_weight > 0
        if scored or self.normalization == "example" or any(not example.plain for example in examples):
            # A plain tuple: the Trainer moves it to the device, and cannot mistake it for one tensor.
            batch["labels"] = (
                batch["labels"],
                self._weights(examples),
                *(_scores(examples) if scored else ()),
            )
        return batch

    def loss(self, logits: "Tensor", labels: Any) -> "Tensor":
        """The batch's loss in float32; without weights or scores the mean over the completions' tokens."""
        from torch.nn import functional

        if not isinstance(labels, tuple):
            return completion_loss(logits, labels)
        ids, weights, *scores = labels
        targets, wanted = _wanted(logits, ids)
        own_NV = functional.log_softmax(logits[:, :-1][wanted].float(), dim=-1)
        losses = functional.nll_loss(own_NV, targets[wanted], reduction="none")
        if scores:
            taught = teacher_loss(own_NV, scores, temperature=self.temperature)
            losses = (1 - self.teacher_weight) * losses + self.teacher_weight * taught
        return (losses * weights).sum() / weights.sum()

    def mass(self, labels: Any) -> float:
        """What the labels of `batch` weigh together: the loss is the mean by these weights."""
        if isinstance(labels, tuple):
            return float(labels[1].sum())
        return float((labels != _IGNORED).sum())

    def _weights(self, examples: Sequence[Example]) -> "Tensor":
        """The weight of every completion token of the batch, row by row."""
        import torch

        weights: list[NDArray[np.float32]] = []
        for example in examples:
            own = np.ones(len(example.ids) - example.prompt_tokens, dtype=np.float32)
            if example.emphasis is not None:
                own *= example.emphasis
            total = own.sum() if self.normalization == "example" and len(own) else 1.0
            weights.append(own * (example.weight / total))
        return torch.tensor(np.concatenate(weights))


def objective_of(config: TrainConfig) -> Objective:
    """What a run with these settings minimises. Multitask follows its paper: each example counts alike, so
    that a rationale's many tokens do not drown its answer's few.
    """
    usual: Normalization = "example" if config.placement == "multitask" else "token"
    return Objective(
        normalization=config.normalization or usual,
        teacher_weight=config.teacher_weight if config.teacher_scores is not None else 0.0,
        temperature=config.teacher_temperature,
        decoder_start=decoder_start(config.base),
    )


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


def _pad_two_sides(examples: Sequence[Example], *, start: int) -> dict[str, Any]:
    """Prompts for the encoder, completions for the decoder; a label predicts the next place, as elsewhere."""
    import torch

    prompts = [example.ids[: example.prompt_tokens] for example in examples]
    completions = [example.ids[example.prompt_tokens :] for example in examples]
    ids, mask = _padded(prompts, fill=0)
    decoder, _ = _padded([np.concatenate(([start], ids)) for ids in completions], fill=start)
    labels, _ = _padded([np.concatenate(([_IGNORED], ids)) for ids in completions], fill=_IGNORED)
    return {
        "input_ids": torch.tensor(ids),
        "attention_mask": torch.tensor(mask),
        "decoder_input_ids": torch.tensor(decoder),
        "labels": torch.tensor(labels),
    }


def _padded(rows: Sequence[NDArray[Any]], *, fill: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    shape = (len(rows), max(len(row) for row in rows))
    ids, mask = np.full(shape, fill, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = row
        mask[number, : len(row)] = 1
    return ids, mask


def _wanted(logits: "Tensor", labels: "Tensor") -> tuple["Tensor", "Tensor"]:
    """What the logits at each place but the last should predict, and where that counts."""
    targets = labels[:, labels.shape[1] - logits.shape[1] + 1 :]
    return targets, targets != _IGNORED


def completion_logits(logits: "Tensor", labels: "Tensor") -> "Tensor":
    """The logits [tokens, vocabulary] that predict the completions' tokens, row by row."""
    _, wanted = _wanted(logits, labels)
    return logits[:, :-1][wanted]


def completion_loss(logits: "Tensor", labels: "Tensor") -> "Tensor":
    """Mean cross-entropy of the completion's tokens, in float32.

    `logits` [rows, kept, vocabulary] are those of the last `kept` positions of `labels` [rows, length].
    """
    from torch.nn import functional

    targets, wanted = _wanted(logits, labels)
    return functional.cross_entropy(logits[:, :-1][wanted].float(), targets[wanted])


def _scores(examples: Sequence[Example]) -> "tuple[Tensor, ...]":
    """The teacher's scores of the batch's completions: ids and log probabilities [tokens, k] with the log
    probability of all other tokens [tokens], or ids and weights of its samples [tokens, k].
    """
    import torch

    parts = [example.teacher for example in examples]
    assert all(part is not None for part in parts), "every example carries scores"
    records = np.concatenate([part for part in parts if part is not None])
    ids = torch.tensor(records["ids"].astype(np.int64))
    if "weights" in (records.dtype.names or ()):
        return ids, torch.tensor(records["weights"].astype(np.float32))
    logprobs = torch.tensor(records["logprobs"].astype(np.float32))
    return ids, logprobs, torch.tensor(records["tail"].astype(np.float32))


def teacher_loss(own_NV: "Tensor", scores: "Sequence[Tensor]", *, temperature: float) -> "Tensor":
    """How far each token's distribution is from the teacher's: KL over top tokens, or over its samples.

    `own_NV` are the student's log probabilities.
    """
    if len(scores) == 3:
        return topk_divergence(own_NV, *scores, temperature=temperature)
    return sampled_cross_entropy(own_NV, *scores)


def topk_divergence(
    own_NV: "Tensor",
    ids_NK: "Tensor",
    logprobs_NK: "Tensor",
    tail_N: "Tensor",
    *,
    temperature: float = 1.0,
) -> "Tensor":
    """KL(teacher || student) [tokens] over the teacher's k tokens and one bucket for all others, in nats.

    Where the k tokens are the whole vocabulary it is the exact KL. Both sides' k + 1 log probabilities are
    divided by the temperature and renormalised; the result is multiplied by its square, so that gradients
    keep their size (arXiv 1503.02531). A place that has fewer than k tokens has NaN for the others.
    """
    import torch

    own_NK = own_NV.gather(1, ids_NK)
    given_NK = ~logprobs_NK.isnan()
    if not given_NK.all():
        own_NK = own_NK.masked_fill(~given_NK, -torch.inf)
        logprobs_NK = logprobs_NK.masked_fill(~given_NK, -torch.inf)
    covered_N = own_NK.exp().sum(dim=1)
    own_tail_N = torch.log1p(-covered_N.clamp(max=1 - _LEAST_TAIL))
    has_tail_N = tail_N > -torch.inf
    own = torch.cat([own_NK, own_tail_N.masked_fill(~has_tail_N, -torch.inf)[:, None]], dim=1)
    teacher = torch.cat([logprobs_NK, tail_N[:, None]], dim=1)
    if temperature != 1.0:
        own = torch.log_softmax(own / temperature, dim=1)
    # Rounded to 16 bits they no longer sum to 1.
    teacher = torch.log_softmax(teacher / temperature, dim=1)
    possible = teacher > -torch.inf
    difference = (teacher.masked_fill(~possible, 0.0) - own.masked_fill(~possible, 0.0)) * possible
    return (teacher.exp() * difference).sum(dim=1) * temperature**2


def sampled_cross_entropy(own_NV: "Tensor", ids_NK: "Tensor", weights_NK: "Tensor") -> "Tensor":
    """Cross-entropy [tokens] of the student under the teacher's weighted samples, in nats.

    With importance weights its expectation over the samples is the cross-entropy under the teacher's whole
    distribution, and so is its gradient's: random-sampling distillation (arXiv 2503.16870).
    """
    return -(weights_NK * own_NV.gather(1, ids_NK)).sum(dim=1)
