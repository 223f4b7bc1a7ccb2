"""One record per offered request, written the moment it is known, so that a long run needs no memory."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from decant.dataset import BadRow, read_rows
from decant.errors import DataError
from decant.timing import RequestTiming

REQUESTS_FILE = "requests.jsonl"

OwnKind = Literal["unfinished", "unsent", "turn_skipped"]
"""What became of a request that the endpoint never failed: the run ended, before or after it was sent, or an
earlier turn of its conversation failed."""

NEVER_SENT: frozenset[str] = frozenset({"unsent", "turn_skipped"})
"""The kinds of request that were offered and never left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """An offered request and what became of it. `text` is kept only where its tokens are to be counted.

    `schedule_error_s` is how late the client took the request up: its own fault, where the delay before the
    bytes leave may also hold the opening of a connection.
    """

    index: int
    turn: int
    timing: RequestTiming
    planned_prompt_tokens: int | None = None
    schedule_error_s: float | None = None
    text: str | None = None
    error: str | None = None

    @property
    def was_sent(self) -> bool:
        """Whether it ever left."""
        return self.timing.error_kind not in NEVER_SENT

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON values: the timing's fields and its own."""
        own = {
            "index": self.index,
            "turn": self.turn,
            "planned_prompt_tokens": self.planned_prompt_tokens,
            "schedule_error_s": self.schedule_error_s,
            "error": self.error,
        }
        return {**own, **self.timing.to_dict(), **({} if self.text is None else {"text": self.text})}


class RecordFile:
    """Appends records to a JSONL file."""

    def __init__(self, path: Path) -> None:
        self._file: IO[str] = path.open("w", encoding="utf-8")

    def add(self, record: Record) -> None:
        """Writes one record; the file is buffered, so this rarely waits for the disk."""
        self._file.write(json.dumps(record.to_dict(), allow_nan=False) + "\n")

    def close(self) -> None:
        """Flushes and closes."""
        self._file.close()


def read_records(path: Path) -> Iterator[Record]:
    """The records of a run one by one, as they ended; DataError names a line that is none."""
    for row in read_rows(path, required=("index", "turn", "request_id", "actual_s")):
        if isinstance(row, BadRow):
            raise DataError(f"{path}:{row.line}: {row.reason}")
        try:
            yield Record(
                index=row.fields["index"],
                turn=row.fields["turn"],
                timing=RequestTiming.from_dict(row.fields),
                planned_prompt_tokens=row.fields.get("planned_prompt_tokens"),
                schedule_error_s=row.fields.get("schedule_error_s"),
                text=row.fields.get("text"),
                error=row.fields.get("error"),
            )
        except TypeError as error:
            raise DataError(f"{path}:{row.line}: {error}") from None
