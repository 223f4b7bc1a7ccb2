"""Conversations as token ids, with the guarantee that serving can render the same prompt and can stop.

A student that is trained on one rendering and served with another, or that never saw its end token, is the
field's most common way to lose everything after training; both are refused before any step is paid for.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decant.errors import TrainingError
from decant_distill.train.rows import Lesson

_CHUNK = 1024


@dataclass(frozen=True, slots=True)
class Example:
    """One conversation's ids, the end token last; the loss is on those from `prompt_tokens` on."""

    ids: NDArray[np.int32]
    prompt_tokens: int


def encode(tokenizer: Any, lessons: Sequence[Lesson], *, base: str) -> list[Example]:
    """Renders and tokenizes every lesson; TrainingError when template or tokenizer cannot be trusted."""
    if tokenizer.eos_token_id is None:
        raise TrainingError(f"{base}: its tokenizer has no end token; set eos_token in tokenizer_config.json")
    if tokenizer.chat_template is None:
        raise TrainingError(f"{base}: its tokenizer has no chat template; add chat_template.jinja")
    return [example for chunk in _chunks(lessons) for example in _encode_chunk(tokenizer, chunk, base)]


def _encode_chunk(tokenizer: Any, lessons: Sequence[Lesson], base: str) -> Iterator[Example]:
    prompts = [_render(tokenizer, lesson.prompt, answer=None) for lesson in lessons]
    wholes = [_render(tokenizer, lesson.prompt, answer=lesson.completion) for lesson in lessons]
    for lesson, prompt, whole in zip(lessons, prompts, wholes, strict=True):
        _check_text(lesson, prompt, whole, base)
    prompt_ids = tokenizer(prompts, add_special_tokens=False)["input_ids"]
    whole_ids = tokenizer(wholes, add_special_tokens=False)["input_ids"]
    for lesson, prompt, whole in zip(lessons, prompt_ids, whole_ids, strict=True):
        yield _example(tokenizer, lesson, prompt, whole, base)


def _render(tokenizer: Any, prompt: Sequence[dict[str, str]], *, answer: str | None) -> str:
    messages = list(prompt) if answer is None else [*prompt, {"role": "assistant", "content": answer}]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer is None)


def _check_text(lesson: Lesson, prompt: str, whole: str, base: str) -> None:
    if not whole.startswith(prompt):
        raise TrainingError(
            f"{base}: its chat template does not make the prompt a prefix of the conversation"
            f" (line {lesson.line}: {prompt[-40:]!r}); use one whose generation prompt opens the answer"
        )
    if lesson.completion.strip() not in whole[len(prompt) :]:
        raise TrainingError(
            f"{base}: its chat template changes the answer (line {lesson.line}: {lesson.completion[:40]!r}"
            f" became {whole[len(prompt) :][:40]!r}); use one that keeps reasoning and answer as they are"
        )


def _example(tokenizer: Any, lesson: Lesson, prompt: list[int], whole: list[int], base: str) -> Example:
    start = len(prompt)
    if whole[:start] != prompt:
        raise TrainingError(
            f"{base}: the prompt's tokens are no prefix of the conversation's (line {lesson.line});"
            " let the chat template's generation prompt end in a special token or a line break"
        )
    end = tokenizer.eos_token_id
    if end not in whole[start:]:
        raise TrainingError(
            f"{base}: no end token after the answer, the student would never stop (line {lesson.line});"
            f" let the chat template close answers with {tokenizer.eos_token!r}, or set eos_token to suit"
        )
    stop = whole.index(end, start) + 1
    return Example(ids=np.asarray(whole[:stop], dtype=np.int32), prompt_tokens=start)


def _chunks(lessons: Sequence[Lesson]) -> Iterator[Sequence[Lesson]]:
    for start in range(0, len(lessons), _CHUNK):
        yield lessons[start : start + _CHUNK]
