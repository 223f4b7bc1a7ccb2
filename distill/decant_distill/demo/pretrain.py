"""Training a tiny Llama from scratch on problems drawn without end: the loop and its batches."""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from decant_distill.demo import counter, swap
from decant_distill.demo.problem import Problem, World


@dataclass(frozen=True, slots=True)
class Lesson:
    """A prompt and its completion in pieces, each taught or only read; a piece ends where a word does."""

    prompt: str
    pieces: tuple[tuple[str, bool], ...]

    @classmethod
    def whole(cls, prompt: str, completion: str) -> "Lesson":
        """A lesson that teaches every token of its completion."""
        return cls(prompt, ((completion, True),))


_IGNORED_LABEL = -100
_LESSONS_PER_POOL = 600


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long and how fast to train; after `reading_steps` the lengths of problems grow to full over
    `growing_share` of the steps.
    """

    steps: int
    batch_tokens: int = 2500
    learning_rate: float = 4e-3
    warmup_steps: int = 100
    reading_steps: int = 250
    growing_share: float = 0.3


@dataclass(frozen=True, slots=True)
class Progress:
    """Where training stands after a step; `loss` is in nats per completion token."""

    step: int
    tokens: int
    loss: float
    seconds: float


def pretrain(
    model: Any, *, tokenizer: Any, draw: Callable[[float], Lesson], schedule: Schedule, rng: random.Random
) -> Iterator[Progress]:
    """Trains in place on the completions of fresh lessons and yields after every step, so that the caller
    may look and stop.

    `draw` gets the share of the way to full length: 0 during the reading steps, 1 at the end.
    """
    import torch

    optimizers = _optimizers(model)
    started, tokens, pending = time.monotonic(), 0, []
    for step in range(schedule.steps):
        if not pending:
            share = min(
                1.0, max(0.0, (step - schedule.reading_steps) / (schedule.steps * schedule.growing_share))
            )
            lessons = [draw(share) for _ in range(_LESSONS_PER_POOL)]
            pending = _batches(lessons, tokenizer=tokenizer, batch_tokens=schedule.batch_tokens, rng=rng)
        input_ids_BT, labels_BT = pending.pop()
        loss = _completion_loss(model, input_ids_BT, labels_BT)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = _learning_rate(schedule, step)
            optimizer.step()
            optimizer.zero_grad()
        tokens += input_ids_BT.numel()
        yield Progress(step=step + 1, tokens=tokens, loss=loss.item(), seconds=time.monotonic() - started)


def _optimizers(model: Any) -> tuple[Any, Any]:
    """Muon for the matrices inside the layers, AdamW for the rest.

    Muon (Jordan et al., 2024) found the copying heads sooner than AdamW in the single runs tried at this
    size.
    """
    import torch

    matrices, others = [], []
    for name, parameter in model.named_parameters():
        (matrices if parameter.ndim == 2 and "embed_tokens" not in name else others).append(parameter)
    return (
        torch.optim.Muon(matrices, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.05),
    )


def draw_problem(rng: random.Random, *, world: World, share: float) -> Problem:
    """A training problem no longer than `share` of the way to the world's longest; none at all is the
    shortest.
    """
    module = counter if world == "counter" else swap
    longest = max(1, round(module.MAX_LENGTH * share))
    return module.draw(rng, length=rng.randint(0, longest), split="train")


def _learning_rate(schedule: Schedule, step: int) -> float:
    """Linear warm-up, constant for the first half, then linear decay to 2 %."""
    warmup = (step + 1) / schedule.warmup_steps
    decay = 2 * (1 - step / schedule.steps)
    return schedule.learning_rate * min(1.0, warmup, max(0.02, decay))


def _batches(
    lessons: Sequence[Lesson], *, tokenizer: Any, batch_tokens: int, rng: random.Random
) -> list[tuple[Any, Any]]:
    """Padded (input ids, labels) of lessons of similar length, at most `batch_tokens` each, shuffled."""
    encoded = sorted(
        (encode(lesson, tokenizer=tokenizer) for lesson in lessons), key=lambda pair: len(pair[0])
    )
    groups: list[list[tuple[list[int], list[int]]]] = [[]]
    for input_ids, labels in encoded:
        if (len(groups[-1]) + 1) * len(input_ids) > batch_tokens:
            groups.append([])
        groups[-1].append((input_ids, labels))
    rng.shuffle(groups)
    return [_pad(group, pad_token_id=tokenizer.pad_token_id) for group in groups]


def encode(lesson: Lesson, *, tokenizer: Any) -> tuple[list[int], list[int]]:
    """Token ids of the whole conversation, and its labels: the taught pieces and the end token, all else
    ignored.
    """
    messages = [{"role": "user", "content": lesson.prompt}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    input_ids: list[int] = tokenizer(prompt)["input_ids"]
    labels = [_IGNORED_LABEL] * len(input_ids)
    for text, taught in (*lesson.pieces, (tokenizer.eos_token, True)):
        piece: list[int] = tokenizer(text)["input_ids"]
        input_ids += piece
        labels += piece if taught else [_IGNORED_LABEL] * len(piece)
    return input_ids, labels


def _pad(group: Sequence[tuple[list[int], list[int]]], *, pad_token_id: int) -> tuple[Any, Any]:
    import torch

    longest = max(len(input_ids) for input_ids, _ in group)
    input_ids_BT = torch.full((len(group), longest), pad_token_id)
    labels_BT = torch.full((len(group), longest), _IGNORED_LABEL)
    for row, (input_ids, labels) in enumerate(group):
        input_ids_BT[row, : len(input_ids)] = torch.tensor(input_ids)
        labels_BT[row, : len(labels)] = torch.tensor(labels)
    return input_ids_BT, labels_BT


def _completion_loss(model: Any, input_ids_BT: Any, labels_BT: Any) -> Any:
    """Mean cross-entropy over completion tokens; padding is on the right, where attention never sees it."""
    import torch

    hidden_BTD = model.model(input_ids=input_ids_BT, use_cache=False).last_hidden_state[:, :-1]
    targets_BT = labels_BT[:, 1:]
    taught_BT = targets_BT != _IGNORED_LABEL
    return torch.nn.functional.cross_entropy(model.lm_head(hidden_BTD[taught_BT]), targets_BT[taught_BT])
