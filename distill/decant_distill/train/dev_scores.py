"""What a model in memory is worth on rows it did not learn from: their loss, and its greedy answers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from decant.task import TaskConfig, parse_response, same_answer
from decant_distill.train.encode import Example
from decant_distill.train.objective import Objective
from decant_distill.train.rows import Lesson

_BATCH_TOKENS = 8192


@dataclass(frozen=True, slots=True)
class DevScore:
    """Mean loss in nats a completion token, and for each row whether the greedy answer is the row's."""

    loss: float
    correct: tuple[bool, ...]

    @property
    def accuracy(self) -> float:
        """The share of rows answered as the row says."""
        return sum(self.correct) / len(self.correct)


def score(
    model: Any,
    tokenizer: Any,
    lessons: Sequence[Lesson],
    examples: Sequence[Example],
    *,
    objective: Objective,
    task: TaskConfig,
) -> DevScore:
    """Loss and greedy answers on the lessons, in their order."""
    most = max(len(example.ids) - example.prompt_tokens for example in examples) + 8
    texts = respond(
        model, tokenizer, [e.ids[: e.prompt_tokens] for e in examples], max_tokens=min(task.max_tokens, most)
    )
    correct = [
        _says(text, lesson.completion, task.answer_marker)
        for text, lesson in zip(texts, lessons, strict=True)
    ]
    return DevScore(loss=mean_loss(model, examples, objective), correct=tuple(correct))


def _says(text: str, completion: str, marker: str) -> bool:
    answer = parse_response(text, marker=marker).answer
    wanted = parse_response(completion, marker=marker).answer
    return answer is not None and wanted is not None and same_answer(answer, wanted)


def mean_loss(model: Any, examples: Sequence[Example], objective: Objective) -> float:
    """The objective's loss over the examples, each batch counted by its completions' tokens."""
    import torch

    model.eval()
    total, tokens = 0.0, 0
    for chosen in length_batches([len(example.ids) for example in examples]):
        batch = objective.batch([examples[i] for i in chosen])
        labels = on_device(batch.pop("labels"), model.device)
        given = {name: on_device(value, model.device) for name, value in batch.items()}
        with torch.inference_mode():
            loss = objective.loss(model(**given).logits, labels).item()
        count = sum(len(examples[i].ids) - examples[i].prompt_tokens for i in chosen)
        total, tokens = total + loss * count, tokens + count
    return total / tokens


def respond(model: Any, tokenizer: Any, prompts: Sequence[Any], *, max_tokens: int) -> list[str]:
    """The greedy responses to prompts of token ids, in their order."""
    import torch
    from transformers import GenerationConfig

    model.eval()
    start = model.config.decoder_start_token_id if model.config.is_encoder_decoder else None
    settings = GenerationConfig(
        max_new_tokens=max_tokens,
        do_sample=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
        **({} if start is None else {"decoder_start_token_id": start}),
    )
    responses = [""] * len(prompts)
    for chosen in length_batches([len(prompt) + max_tokens for prompt in prompts]):
        ids, mask = _left_padded([prompts[i] for i in chosen], fill=tokenizer.eos_token_id)
        with torch.inference_mode():
            said = model.generate(
                input_ids=torch.tensor(ids, device=model.device),
                attention_mask=torch.tensor(mask, device=model.device),
                generation_config=settings,
            )
        new = said if start is not None else said[:, ids.shape[1] :]
        for i, text in zip(chosen, tokenizer.batch_decode(new, skip_special_tokens=True), strict=True):
            responses[i] = text
    return responses


def _left_padded(prompts: Sequence[Any], *, fill: int) -> tuple[Any, Any]:
    longest = max(len(prompt) for prompt in prompts)
    ids = np.full((len(prompts), longest), fill, dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = prompt
        mask[row, longest - len(prompt) :] = 1
    return ids, mask


def length_batches(lengths: Sequence[int], *, most_tokens: int = _BATCH_TOKENS) -> Iterator[list[int]]:
    """Row numbers, shortest first, in batches of at most so many tokens, padding included."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if batch and (len(batch) + 1) * lengths[i] > most_tokens:
            yield batch
            batch = []
        batch.append(i)
    yield batch


def on_device(value: Any, device: Any) -> Any:
    """A batch's value on a device: tensors and tuples of them move, all else stays."""
    import torch

    if isinstance(value, tuple):
        return tuple(on_device(part, device) for part in value)
    return value.to(device) if isinstance(value, torch.Tensor) else value
