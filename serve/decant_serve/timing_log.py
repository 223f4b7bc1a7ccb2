"""One timing record per request: the last ones in memory, all of them in a JSONL file where asked for."""

import json
import logging
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from decant.errors import EndpointError
from decant.timing import RequestTiming

_log = logging.getLogger(__name__)

_KEPT_RECORDS = 2000


@dataclass(frozen=True, slots=True)
class TimingRecord:
    """A request's timing with what labels it; `engine` holds the engine's own numbers, where it gives any."""

    timing: RequestTiming
    model: str
    route: str
    streamed: bool
    engine: Mapping[str, Any] | None

    def to_dict(self, ended_at: datetime) -> dict[str, Any]:
        """The record as JSON; wall time only says when it ended."""
        return {
            **self.timing.to_dict(),
            "model": self.model,
            "route": self.route,
            "streamed": self.streamed,
            "ended_at": ended_at.isoformat(timespec="milliseconds"),
            "engine": dict(self.engine) if self.engine else None,
        }


class TimingLog:
    """Keeps records by request id and appends each to the file as it comes."""

    def __init__(self, path: Path | None) -> None:
        self._records: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._file = _open(path) if path else None

    def add(self, record: TimingRecord) -> None:
        """Keeps one record; the oldest makes room."""
        row = record.to_dict(datetime.now(UTC))
        self._records[record.timing.request_id] = row
        if len(self._records) > _KEPT_RECORDS:
            self._records.popitem(last=False)
        if self._file:
            self._append(self._file, row)

    def _append(self, file: IO[str], row: Mapping[str, Any]) -> None:
        try:
            file.write(json.dumps(row) + "\n")
            file.flush()
        except OSError as error:
            # The answer is out already: a full disk must not turn it into a failure.
            _log.error("request=%s event=timing-lost detail=%r", row["request_id"], str(error))

    def get(self, request_id: str) -> Mapping[str, Any] | None:
        """A recent request's record."""
        return self._records.get(request_id)

    def close(self) -> None:
        """Closes the file."""
        if self._file:
            self._file.close()


def _open(path: Path) -> IO[str]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("a", encoding="utf-8")
    except OSError as error:
        raise EndpointError(f"{path}: cannot write the timing log ({error.strerror})") from None
