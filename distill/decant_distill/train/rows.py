"""From a curated dataset to the conversations that a student is taught, one completion each."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from decant.dataset import BadRow, Row, read_rows
from decant.errors import DataError, TrainingError
from decant.task import Message, Parsed, Placement, TaskConfig, compose, parse_response

_MESSAGES: TypeAdapter[list[Message]] = TypeAdapter(list[Message])


@dataclass(frozen=True, slots=True)
class Lesson:
    """One conversation: the prompt as the student will see it and the completion it should give."""

    line: int
    prompt: tuple[Message, ...]
    completion: str
    group: str | None = None


@dataclass(frozen=True, slots=True)
class Lessons:
    """What a dataset offers; `dropped` counts the lines that teach nothing, by reason."""

    kept: tuple[Lesson, ...]
    dropped: Mapping[str, int]


def read_lessons(path: Path, *, task: TaskConfig, placement: Placement, gold: bool = False) -> Lessons:
    """Composes every row's completion with the rationale placed as asked.

    With `gold` the rows are a plain dataset: prompt and answer are the fields that the task names. A row that
    cannot be used is dropped and counted; TrainingError when none is left.
    """
    kept: list[Lesson] = []
    dropped: Counter[str] = Counter()
    for row in read_rows(path, required=task.prompt_fields() if gold else ("prompt",)):
        lesson = row.reason if isinstance(row, BadRow) else _lesson(row, task, placement, gold=gold)
        if isinstance(lesson, str):
            dropped[lesson] += 1
        else:
            kept.append(lesson)
    if not kept:
        reasons = ", ".join(f"{count} with {reason}" for reason, count in dropped.most_common(3))
        raise TrainingError(
            f"{path}: no row can be trained on ({reasons or 'it is empty'}); rows need a prompt and an answer"
        )
    return Lessons(kept=tuple(kept), dropped=dict(dropped))


def _lesson(row: Row, task: TaskConfig, placement: Placement, *, gold: bool) -> Lesson | str:
    """The row's lesson, or why it has none."""
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
    completion = compose(parsed.reasoning, parsed.answer, marker=marker, placement=placement)
    group = row.fields.get("group")
    return Lesson(
        line=row.line, prompt=prompt, completion=completion, group=None if group is None else str(group)
    )


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
