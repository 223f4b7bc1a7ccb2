"""The label file: one line per row and sample, as `decant label` writes it and `decant curate` reads it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, Self, get_args

from decant.dataset import BadRow, read_rows
from decant.errors import DataError
from decant.task import Message

LabelStatus = Literal["done", "failed"]

BAD_ROW = "bad_row"


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """What the teacher gave for one sample of one row; a failed one says why in `error_class` and `error`.

    `key` names the request in the store, `line` the row in the dataset. Rows that never became a request have
    neither key nor prompt. `votes` of the `drawn` samples gave this answer. `checks` is what each verifier
    said, None where it did not apply; `check_notes` say why one failed. `redacted` counts by kind. `hinted`:
    the teacher was shown gold and asked why, which `prompt` leaves out. `logprob` is the mean of the answer's
    tokens, `judge` another model's mark from 0 to 1, `confidence` the calibrated probability of being right.
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
    template: str | None = None
    drawn: int | None = None
    votes: int | None = None
    vote_share: float | None = None
    checks: dict[str, bool | None] | None = None
    check_notes: dict[str, str] | None = None
    redacted: dict[str, int] | None = None
    hinted: bool | None = None
    logprob: float | None = None
    judge: float | None = None
    confidence: float | None = None

    def to_fields(self) -> dict[str, Any]:
        """The line's JSON object; what only some jobs or rows have stands there where it is."""
        pairs = zip(_NAMES, _values(self), strict=True)
        return {name: value for name, value in pairs if value is not None or name not in _OPTIONAL}

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


_NAMES = tuple(field.name for field in fields(Label))
_values = attrgetter(*_NAMES)
_OPTIONAL = frozenset(
    {
        "gold",
        "group",
        "length",
        "template",
        "drawn",
        "votes",
        "vote_share",
        "checks",
        "check_notes",
        "redacted",
        "hinted",
        "logprob",
        "judge",
        "confidence",
    }
)
_ABSENT: dict[str, Any] = {"line": 0, "key": None, "prompt": None, "teacher": ""}


def _is_chat(prompt: Any) -> bool:
    match prompt:
        case [*_, {"content": str()}]:
            return True
        case _:
            return False
