"""The label file: one line per row and sample, as `decant label` writes it and `decant curate` reads it."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args

from decant.dataset import BadRow, read_rows
from decant.errors import DataError
from decant.task import Message, TaskConfig, parse_response

LabelStatus = Literal["done", "failed"]

# Error classes of answers that came and cannot be used; the others name what kept an answer from coming.
CUT = "length"
NO_ANSWER = "no_answer"
BAD_ROW = "bad_row"


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """What the teacher gave for one sample of one row; a failed one says why in `error_class` and `error`.

    `key` names the request in the store, `line` the row in the dataset. Rows that never became a request have
    neither key nor prompt.
    """

    id: str
    line: int
    sample: int
    key: str | None
    prompt: list[Message] | None
    status: LabelStatus
    teacher: str
    gold: str | None = None
    group: Any = None
    length: Any = None
    response: str | None = None
    reasoning: str | None = None
    answer: str | None = None
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cost_usd: float | None = None
    latency_s: float | None = None
    error_class: str | None = None
    error: str | None = None

    def to_fields(self) -> dict[str, Any]:
        """The line's JSON object; gold, group and length only where the row has them."""
        optional = ("gold", "group", "length")
        return {
            name: value for name, value in asdict(self).items() if name not in optional or value is not None
        }

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Self:
        """The label in a line's JSON object; DataError for one that no `decant label` wrote."""
        missing = [name for name in ("id", "sample", "status") if name not in fields]
        if missing:
            raise DataError(f"lacks the field {', '.join(missing)}; is it a file that `decant label` wrote?")
        if fields["status"] not in get_args(LabelStatus):
            raise DataError(f"unknown status {fields['status']!r}")
        label = cls(
            **{name: fields[name] for name in cls.__dataclass_fields__ if name in fields},
            **{name: default for name, default in _ABSENT.items() if name not in fields},
        )
        if label.status == "done" and not (_is_chat(label.prompt) and label.key and label.answer):
            raise DataError("a done label without key, prompt or answer")
        return label

    @property
    def question(self) -> str:
        """The last message of the prompt, or nothing where there is no prompt."""
        return self.prompt[-1]["content"] if self.prompt else ""


@dataclass(frozen=True, slots=True)
class Reading:
    """What an answer says, and why it is no label if it is none."""

    reasoning: str | None
    answer: str | None
    error_class: str | None = None
    error: str | None = None


def whole_response(text: str, reasoning: str | None) -> str:
    """One text for an answer whose reasoning came in a field of its own: it stands in front as `<think>`."""
    return f"<think>{reasoning}</think>{text}" if reasoning else text


def read_response(response: str, finish_reason: str | None, task: TaskConfig) -> Reading:
    """Splits an answer. One that did not end by itself is no label, whatever it says: it may lack its end."""
    parsed = parse_response(response, marker=task.answer_marker)
    if finish_reason == CUT:
        error = f"finish_reason=length: cut at max_tokens = {task.max_tokens}"
        return Reading(parsed.reasoning, None, CUT, error)
    if finish_reason != "stop":
        ended = finish_reason or "unfinished"
        return Reading(parsed.reasoning, None, ended, f"finish_reason={finish_reason}: no whole answer")
    if parsed.answer is None:
        return Reading(parsed.reasoning, None, NO_ANSWER, f"no {task.answer_marker!r} in the answer")
    return Reading(parsed.reasoning, parsed.answer)


def read_labels(path: Path) -> Iterator[tuple[int, Label | BadRow]]:
    """The labels of a file with their line numbers; a line that holds none is a BadRow."""
    for row in read_rows(path):
        if isinstance(row, BadRow):
            yield row.line, row
            continue
        try:
            yield row.line, Label.from_fields(row.fields)
        except DataError as error:
            yield row.line, BadRow(row.line, str(error), str(row.fields)[:200])


_ABSENT: dict[str, Any] = {"line": 0, "key": None, "prompt": None, "teacher": ""}


def _is_chat(prompt: Any) -> bool:
    match prompt:
        case [*_, {"content": str()}]:
            return True
        case _:
            return False
