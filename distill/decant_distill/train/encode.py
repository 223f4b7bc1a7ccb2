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
    """One conversation's ids, the end token last; the loss is on those from `prompt_tokens` on.

    `weight` is the example's own, `emphasis` each completion token's (None: all 1), `teacher` what a teacher
    gave each of them (`decant_distill.train.teacher_scores`).
    """

    ids: NDArray[np.int32]
    prompt_tokens: int
    weight: float = 1.0
    emphasis: NDArray[np.float32] | None = None
    teacher: NDArray[np.void] | None = None

    @property
    def plain(self) -> bool:
        """Whether every token of the completion counts as 1."""
        return self.weight == 1.0 and self.emphasis is None


@dataclass(frozen=True, slots=True)
class _Encoder:
    """A trustworthy tokenizer; `two_sides` when prompt and completion go into an encoder and a decoder."""

    tokenizer: Any
    base: str
    answer_weight: float
    two_sides: bool

    def examples(self, lessons: Sequence[Lesson]) -> Iterator[Example]:
        prompts = [self._render(lesson, answered=False) for lesson in lessons]
        if self.two_sides:
            yield from self._two_sided(lessons, prompts)
            return
        wholes = [self._render(lesson, answered=True) for lesson in lessons]
        for lesson, prompt, whole in zip(lessons, prompts, wholes, strict=True):
            _check_text(lesson, prompt, whole, self.base)
        prompt_ids = self.tokenizer(prompts, add_special_tokens=False)["input_ids"]
        whole_ids = self.tokenizer(wholes, add_special_tokens=False)["input_ids"]
        for i, lesson in enumerate(lessons):
            example = _example(self.tokenizer, lesson, prompt_ids[i], whole_ids[i], self.base)
            yield self._weighed(example, lesson, wholes[i], text_start=len(prompts[i]))

    def _render(self, lesson: Lesson, *, answered: bool) -> str:
        import jinja2

        answer = [{"role": "assistant", "content": lesson.completion}] if answered else []
        try:
            return self.tokenizer.apply_chat_template(
                [*lesson.prompt, *answer], tokenize=False, add_generation_prompt=not answered
            )
        except (jinja2.TemplateError, ValueError, TypeError) as error:
            roles = ", ".join(message["role"] for message in lesson.prompt)
            raise TrainingError(
                f"{self.base}: its chat template refuses line {lesson.line} ({error}; roles: {roles});"
                " change the prompt's roles to those it takes, or mend chat_template.jinja"
            ) from None

    def _two_sided(self, lessons: Sequence[Lesson], prompts: Sequence[str]) -> Iterator[Example]:
        prompt_ids = self.tokenizer(list(prompts), add_special_tokens=False)["input_ids"]
        completions = [lesson.completion for lesson in lessons]
        completion_ids = self.tokenizer(completions, add_special_tokens=False)["input_ids"]
        for i, lesson in enumerate(lessons):
            self._check_kept(lesson, completion_ids[i])
            ids = [*prompt_ids[i], *completion_ids[i], self.tokenizer.eos_token_id]
            example = Example(ids=np.asarray(ids, dtype=np.int32), prompt_tokens=len(prompt_ids[i]))
            yield self._weighed(example, lesson, lesson.completion, text_start=0)

    def _check_kept(self, lesson: Lesson, ids: Sequence[int]) -> None:
        """Encoder-decoders' vocabularies are often small: FLAN-T5's has no line break and no braces."""
        unknown = self.tokenizer.unk_token_id
        if unknown is not None and unknown in ids:
            raise TrainingError(
                f"{self.base}: its tokenizer has no token for part of the answer (line {lesson.line}:"
                f" {lesson.completion[:40]!r}); rewrite those characters in the labels"
            )
        after = lesson.completion[lesson.answer[1] :] if lesson.answer else ""
        if "\n" in after and "\n" not in self.tokenizer.decode(ids):
            raise TrainingError(
                f"{self.base}: its tokenizer has no line break, so nothing ends an answer before its"
                f" rationale (line {lesson.line}); put the rationale first, or leave it out"
            )

    def _weighed(self, example: Example, lesson: Lesson, text: str, *, text_start: int) -> Example:
        """The example with its own weight, and with more or less of it on the answer's tokens."""
        emphasis = None
        if self.answer_weight != 1.0 and lesson.answer is not None:
            begin = text.find(lesson.completion.strip(), text_start)
            span = (begin + lesson.answer[0], begin + lesson.answer[1])
            emphasis = self._emphasis(example, text, span)
        return Example(example.ids, example.prompt_tokens, weight=lesson.weight, emphasis=emphasis)

    def _emphasis(self, example: Example, text: str, span: tuple[int, int]) -> NDArray[np.float32]:
        if not self.tokenizer.is_fast:
            raise TrainingError(
                f"{self.base}: its tokenizer cannot tell where the answer stands; leave answer_weight at 1"
            )
        encoding = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        count = len(example.ids) - example.prompt_tokens
        skipped = 0 if self.two_sides else example.prompt_tokens
        offsets = encoding["offset_mapping"][skipped : skipped + count]
        weights = np.ones(count, dtype=np.float32)
        for i, (start, stop) in enumerate(offsets):
            if start < span[1] and stop > span[0]:
                weights[i] = self.answer_weight
        return weights


def encode(
    tokenizer: Any,
    lessons: Sequence[Lesson],
    *,
    base: str,
    answer_weight: float = 1.0,
    two_sides: bool = False,
) -> list[Example]:
    """Renders and tokenizes every lesson; TrainingError when template or tokenizer cannot be trusted.

    With `two_sides` the prompt goes into an encoder and the completion into a decoder.
    """
    if tokenizer.eos_token_id is None:
        raise TrainingError(f"{base}: its tokenizer has no end token; set eos_token in tokenizer_config.json")
    if tokenizer.chat_template is None:
        raise TrainingError(f"{base}: its tokenizer has no chat template; add chat_template.jinja")
    encoder = _Encoder(tokenizer, base, answer_weight=answer_weight, two_sides=two_sides)
    return [example for chunk in _chunks(lessons) for example in encoder.examples(chunk)]


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
