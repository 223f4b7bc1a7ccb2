"""The rows of a request store: what goes in, what comes out, and the table that holds them."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Any, Literal, NamedTuple, get_args

import sqlalchemy as sa

from decant.ask import ask_key

Status = Literal["pending", "leased", "done", "failed", "filtered"]
STATUSES: tuple[Status, ...] = get_args(Status)

# No database holds half a surrogate pair as text, and PostgreSQL no NUL; a model may say either.
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


@dataclass(frozen=True, slots=True, kw_only=True)
class NewLabel:
    """A request that wants an answer; `key` is its `decant.wire.request_key`."""

    key: str
    row_id: str
    sample: int
    request: dict[str, Any]
    prompt_version: str | None = None
    teacher: str | None = None

    def to_row(self) -> dict[str, Any]:
        """The columns that a new row begins with."""
        return {
            "key": self.key,
            "row_id": self.row_id,
            "sample": self.sample,
            "request": json.dumps(self.request),
            "prompt_version": self.prompt_version,
            "teacher": self.teacher,
            "ask": ask_key(self.request),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a teacher gave for one request; `logprob` is the mean of the answer's tokens."""

    response: str
    reasoning: str | None = None
    answer: str | None = None
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cost_usd: float | None = None
    logprob: float | None = None
    latency_s: float | None = None

    def to_columns(self) -> dict[str, Any]:
        """Its columns; `asdict` would copy each value."""
        return dict(zip(_ANSWER_NAMES, _answer_values(self), strict=True))


_ANSWER_NAMES = tuple(field.name for field in fields(Answer))
_answer_values = attrgetter(*_ANSWER_NAMES)


class Standing(NamedTuple):
    """How far a request has come, and what its answer cost and took."""

    status: Status
    cost_usd: float | None
    latency_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """One row of the store. `lease_expires` and `updated_at` are seconds since the epoch."""

    key: str
    row_id: str
    sample: int
    status: Status
    attempts: int
    request: dict[str, Any]
    response: str | None
    reasoning: str | None
    answer: str | None
    finish_reason: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    cost_usd: float | None
    logprob: float | None
    latency_s: float | None
    error_class: str | None
    error: str | None
    prompt_version: str | None
    teacher: str | None
    lease_owner: str | None
    lease_expires: float | None
    updated_at: float


class _StorableText(sa.TypeDecorator[str]):
    """Text whose characters that no database takes are replaced by U+FFFD."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> str | None:
        """What is written."""
        return value if value is None else _UNSTORABLE.sub("\ufffd", value)


METADATA = sa.MetaData()
LABELS = sa.Table(
    "labels",
    METADATA,
    # SQLite's row id is its integer key; a shared server may count past 2^31, as refused inserts count too.
    sa.Column("seq", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("key", sa.Text, nullable=False, unique=True),
    sa.Column("row_id", _StorableText, nullable=False),
    sa.Column("sample", sa.Integer, nullable=False),
    sa.Column("status", sa.Text, nullable=False, server_default="pending"),
    sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
    sa.Column("request", sa.Text, nullable=False),
    sa.Column("response", _StorableText),
    sa.Column("reasoning", _StorableText),
    sa.Column("answer", _StorableText),
    sa.Column("finish_reason", sa.Text),
    sa.Column("prompt_tokens", sa.Integer),
    sa.Column("completion_tokens", sa.Integer),
    sa.Column("cost_usd", sa.Float),
    sa.Column("logprob", sa.Float),
    sa.Column("latency_s", sa.Float),
    sa.Column("error_class", sa.Text),
    sa.Column("error", _StorableText),
    sa.Column("prompt_version", sa.Text),
    sa.Column("teacher", sa.Text),
    sa.Column("lease_owner", sa.Text),
    sa.Column("lease_expires", sa.Float),
    sa.Column("updated_at", sa.Float, nullable=False),
    sa.Column("ask", sa.Text),
    sa.CheckConstraint(sa.column("status").in_([sa.literal_column(f"'{name}'") for name in STATUSES])),
    sa.Index("labels_by_status", "status", "seq"),
    sa.Index("labels_by_ask", "ask"),
)
_INTERNAL = ("seq", "ask")
SHOWN = [column for column in LABELS.columns if column.name not in _INTERNAL]


_NAMES = tuple(column.name for column in SHOWN)
_REQUEST = _NAMES.index("request")


def to_label(values: Sequence[Any]) -> Label:
    """The label in a row of exactly the columns `SHOWN`."""
    columns = dict(zip(_NAMES, values, strict=True))
    columns["request"] = json.loads(values[_REQUEST])
    return Label(**columns)
