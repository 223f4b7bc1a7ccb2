"""From a dataset to the requests of a replay; a line that cannot become one is kept with its reason."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from decant.dataset import BadRow, Row, read_rows
from decant.errors import DataError
from decant.task import Message, TaskConfig
from decant_bench.predictions import BAD_ROW, Failure, Prediction


@dataclass(frozen=True, slots=True)
class Question:
    """One dataset row as a request: its messages, and what it is scored and broken down by."""

    id: str
    messages: list[Message]
    gold: str | None
    group: str | None
    length: int | float | str | None


@dataclass(frozen=True, slots=True)
class Questions:
    """A dataset's questions, and its unusable lines as failed predictions, both in file order."""

    asked: tuple[Question, ...]
    unusable: tuple[Prediction, ...]


def read_questions(path: Path, *, task: TaskConfig, limit: int | None) -> Questions:
    """Reads at most `limit` lines; DataError when no line can be asked."""
    asked: dict[str, Question] = {}
    unusable: list[Prediction] = []
    for number, row in enumerate(read_rows(path)):
        if limit is not None and number >= limit:
            break
        found = _question(row, task)
        if isinstance(found, Question) and found.id in asked:
            found = _unusable(f"{found.id} (line {row.line})", f"line {row.line}: id {found.id} stands twice")
        if isinstance(found, Question):
            asked[found.id] = found
        else:
            unusable.append(found)
    if not asked:
        reason = unusable[0].error if unusable else None
        raise DataError(f"{path}: no line can be asked ({reason.message if reason else 'it is empty'})")
    return Questions(tuple(asked.values()), tuple(unusable))


def warmup_messages(questions: Sequence[Question], *, n: int, seed: int) -> list[list[Message]]:
    """`n` prompts as long as the questions' own, none of them asked later: their words in another order."""
    chance = random.Random(seed)
    taken = {question.messages[-1]["content"] for question in questions}
    prompts: list[list[Message]] = []
    for index in range(n):
        *before, last = questions[chance.randrange(len(questions))].messages
        words = last["content"].split()
        chance.shuffle(words)
        text = " ".join(words)
        while text in taken:
            text = f"{index} {text}"
        taken.add(text)
        prompts.append([*before, {**last, "content": text}])
    return prompts


def _question(row: Row | BadRow, task: TaskConfig) -> Question | Prediction:
    if isinstance(row, BadRow):
        return _unusable(f"line-{row.line}", f"line {row.line}: {row.reason}")
    row_id, gold = task.row_id(row.fields, row.line), task.gold(row.fields)
    try:
        messages = task.messages(row.fields)
    except DataError as error:
        return _unusable(row_id, f"line {row.line}: {error}", gold=gold)
    group = row.fields.get(task.group_field)
    length = row.fields.get(task.length_field)
    return Question(row_id, messages, gold, None if group is None else str(group), _length(length))


def _length(value: Any) -> int | float | str | None:
    return value if value is None or isinstance(value, int | float) else str(value)


def _unusable(row_id: str, message: str, *, gold: str | None = None) -> Prediction:
    return Prediction(id=row_id, gold=gold, status="failed", error=Failure(kind=BAD_ROW, message=message))
