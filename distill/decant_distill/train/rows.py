"""From a curated dataset to the conversations that a student is taught, one completion each."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from decant.dataset import BadRow, Row, read_rows
from decant.errors import DataError, TrainingError
from decant.task import Message, Parsed, Placement, TaskConfig, compose, parse_response

_MESSAGES: TypeAdapter[list[Message]] = TypeAdapter(list[Message])


Teaching = Literal[Placement, "multitask"]
"""Where the rationale stands, or `multitask`: answer and rationale are two tasks of their own."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """One conversation: the prompt as the student will see it and the completion it should give.

    `answer` is where in the completion the answer's line stands, None where it has none.
    """

    line: int
    prompt: tuple[Message, ...]
    completion: str
    group: str | None = None
    answer: tuple[int, int] | None = None
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Weighing:
    """What a lesson counts: a rationale task's share beside its answer's, and several rows of one prompt.

    `rationale_prefix` opens the user's message where the rationale alone is asked for.
    """

    rationale_weight: float = 1.0
    rationale_prefix: str = ""
    prompts_alike: bool = False


@dataclass(frozen=True, slots=True)
class Lessons:
    """What a dataset offers; `dropped` counts the lines that teach nothing, by reason."""

    kept: tuple[Lesson, ...]
    dropped: Mapping[str, int]


def read_lessons(
    path: Path,
    *,
    task: TaskConfig,
    placement: Teaching,
    gold: bool = False,
    weighing: Weighing | None = None,
) -> Lessons:
    """Composes every row's completion with the rationale placed as asked; `multitask` makes two of a row.

    With `gold` the rows are a plain dataset: prompt and answer are the fields that the task names. A row that
    cannot be used is dropped and counted; TrainingError when none is left.
    """
    weighing = weighing or Weighing()
    kept: list[Lesson] = []
    dropped: Counter[str] = Counter()
    for row in read_rows(path, required=task.prompt_fields() if gold else ("prompt",)):
        lesson = row.reason if isinstance(row, BadRow) else _lesson(row, task, placement, gold=gold)
        if isinstance(lesson, str):
            dropped[lesson] += 1
        else:
            kept.append(lesson.composed)
            if placement == "multitask":
                kept.append(_rationale_task(lesson, weighing))
    if not kept:
        reasons = ", ".join(f"{count} with {reason}" for reason, count in dropped.most_common(3))
        raise TrainingError(
            f"{path}: no row can be trained on ({reasons or 'it is empty'}); rows need a prompt, an answer"
            " and, unless placement is answer_only, a reasoning"
        )
    if weighing.prompts_alike:
        kept = _prompts_alike(kept)
    return Lessons(kept=tuple(kept), dropped=dict(dropped))


@dataclass(frozen=True, slots=True)
class _Read:
    """What a row says: its lesson, and the rationale that a task of its own would be about."""

    composed: Lesson
    reasoning: str


def _rationale_task(read: _Read, weighing: Weighing) -> Lesson:
    """The second task of "distilling step by step" (arXiv 2305.02301): the rationale alone, on a prompt that
    asks for it. The first task's prompt stays as serving will send it.
    """
    last = max(i for i, message in enumerate(read.composed.prompt) if message["role"] == "user")
    asked = read.composed.prompt[last]
    prompt = list(read.composed.prompt)
    prompt[last] = {**asked, "content": f"{weighing.rationale_prefix}{asked['content']}"}
    return Lesson(
        line=read.composed.line,
        prompt=tuple(prompt),
        completion=read.reasoning,
        group=read.composed.group,
        weight=weighing.rationale_weight,
    )


def _prompts_alike(lessons: Sequence[Lesson]) -> list[Lesson]:
    """The lessons with those of one prompt sharing the weight of one."""
    keys = [json.dumps(lesson.prompt) for lesson in lessons]
    counts = Counter(keys)
    return [
        replace(lesson, weight=lesson.weight / counts[key]) for lesson, key in zip(lessons, keys, strict=True)
    ]


def _lesson(row: Row, task: TaskConfig, placement: Teaching, *, gold: bool) -> _Read | str:
    """What the row teaches, or why it teaches nothing."""
    try:
        prompt = tuple(task.messages(row.fields)) if gold else _messages(row.fields["prompt"])
    except DataError as error:
        return str(error)
    if prompt is None:
        return "a prompt that is neither text nor messages"
    marker = task.answer_marker
    parsed = _parsed({**row.fields, "answer": task.gold(row.fields)} if gold else row.fields, marker)
    if not parsed.answer:
        return "no answer"
    if placement != "answer_only" and not parsed.reasoning:
        return "no reasoning"
    if placement == "multitask" and not any(message["role"] == "user" for message in prompt):
        return "a prompt without a user's message"
    placed: Placement = "answer_only" if placement == "multitask" else placement
    completion = compose(parsed.reasoning, parsed.answer, marker=marker, placement=placed)
    line = compose(None, parsed.answer, marker=marker, placement="answer_only")
    start = 0 if placed == "answer_then_rationale" else len(completion) - len(line)
    group = row.fields.get("group")
    lesson = Lesson(
        line=row.line,
        prompt=prompt,
        completion=completion,
        group=None if group is None else str(group),
        answer=(start, start + len(line)),
    )
    return _Read(composed=lesson, reasoning=parsed.reasoning or "")


def _parsed(fields: Mapping[str, Any], marker: str) -> Parsed:
    """Reasoning and answer from their own fields, else read out of the completion."""
    if fields.get("answer") is not None:
        reasoning = str(fields.get("reasoning") or "").strip()
        return Parsed(reasoning=reasoning or None, answer=str(fields["answer"]).strip())
    completion = _messages(fields.get("completion"))
    if completion is None:
        return Parsed(reasoning=None, answer=None)
    return parse_response(completion[-1]["content"], marker=marker)


def _messages(prompt: Any) -> tuple[Message, ...] | None:
    """Text as one user message, or a list of messages as it is; None for anything else."""
    if isinstance(prompt, str):
        return ({"role": "user", "content": prompt},) if prompt.strip() else None
    try:
        return tuple(_MESSAGES.validate_python(prompt)) or None
    except ValidationError:
        return None
