"""From dataset rows to a labeling job's requests; the same row gives the same request wherever it stands."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from decant.dataset import BadRow, Row, read_rows
from decant.errors import DataError
from decant.store import NewLabel
from decant.task import Message, TaskConfig
from decant.wire import canonical_json, request_key

_SEEDS = 2**31


@dataclass(frozen=True, slots=True, kw_only=True)
class Teacher:
    """Who is asked; `revision` tells checkpoints of one name apart, None where the endpoint does not say."""

    model: str
    revision: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the teacher draws its answers."""

    samples: int
    temperature: float
    top_p: float | None
    seed: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One sample of one row: a request, and what the row says beside its prompt."""

    row_id: str
    line: int
    sample: int
    key: str
    messages: list[Message]
    request: dict[str, Any]
    gold: str | None
    group: Any
    length: Any

    def to_store(self, teacher: Teacher, prompt_version: str) -> NewLabel:
        """The store's row for this request."""
        return NewLabel(
            key=self.key,
            row_id=self.row_id,
            sample=self.sample,
            request=self.request,
            prompt_version=prompt_version,
            teacher=teacher.model,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Unaskable:
    """One sample of a row that gives no request."""

    row_id: str
    line: int
    sample: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What to ask of whom. Iterating it reads the dataset anew, so that no job holds all of its rows."""

    data: Path
    task: TaskConfig
    teacher: Teacher
    sampling: Sampling
    limit: int | None

    def __iter__(self) -> Iterator[Ask | Unaskable]:
        for row in read_limited(self.data, self.limit):
            yield from self._row_asks(row)

    @property
    def prompt_version(self) -> str:
        """Names the template that the requests were made with."""
        template = [self.task.system, self.task.prompt, self.task.max_tokens]
        return hashlib.sha256(canonical_json(template)).hexdigest()[:12]

    def _row_asks(self, row: Row | BadRow) -> Iterator[Ask | Unaskable]:
        samples = range(self.sampling.samples)
        try:
            if isinstance(row, BadRow):
                raise DataError(row.reason)
            messages = self.task.messages(row.fields)
            _check_unicode(row)
        except DataError as error:
            row_id = f"line-{row.line}" if isinstance(row, BadRow) else self.task.row_id(row.fields, row.line)
            reason = f"line {row.line}: {error}"
            yield from (Unaskable(row_id=row_id, line=row.line, sample=one, reason=reason) for one in samples)
            return
        for sample in samples:
            yield self._ask(row, messages, sample)

    def _ask(self, row: Row, messages: list[Message], sample: int) -> Ask:
        request: dict[str, Any] = {
            "model": self.teacher.model,
            "messages": messages,
            "max_tokens": self.task.max_tokens,
            "temperature": self.sampling.temperature,
        }
        if self.sampling.top_p is not None:
            request["top_p"] = self.sampling.top_p
        if self.sampling.seed is not None:
            request["seed"] = request_seed(self.sampling.seed, messages, sample)
        key = request_key(
            model=self.teacher.model, revision=self.teacher.revision, request=request, sample_index=sample
        )
        return Ask(
            row_id=self.task.row_id(row.fields, row.line),
            line=row.line,
            sample=sample,
            key=key,
            messages=messages,
            request=request,
            gold=self.task.gold(row.fields),
            group=row.fields.get(self.task.group_field),
            length=row.fields.get(self.task.length_field),
        )


def _check_unicode(row: Row) -> None:
    # JSON can spell half a surrogate pair, which no UTF-8 file, request or database can hold.
    try:
        json.dumps(row.fields, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise DataError("its text holds half a surrogate pair, which is no character") from None


def request_seed(seed: int, messages: list[Message], sample: int) -> int:
    """The seed of one sample: a function of what is asked, not of where the row stands in its file.

    So a shuffled or extended dataset pays for nothing twice, and equal rows share one request.
    """
    return int.from_bytes(hashlib.sha256(canonical_json([seed, messages, sample])).digest()[:8]) % _SEEDS


def read_limited(data: Path, limit: int | None) -> Iterator[Row | BadRow]:
    """The first `limit` rows of a dataset, bad ones included."""
    return islice(read_rows(data), limit)
