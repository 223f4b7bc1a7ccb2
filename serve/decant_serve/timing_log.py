"""One timing record per request: the last ones in memory, all of them in a JSONL file where asked for."""

import json
import logging
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from decant.errors import EndpointError
from decant.timing import RequestTiming
from decant_serve.breakdown import Breakdown
from decant_serve.shards.ledger import ShardTiming, rank_rows

_log = logging.getLogger(__name__)

_KEPT_RECORDS = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class TimingRecord:
    """A request's timing with what labels it; `engine` holds the engine's own numbers, where it gives any.

    `model` and `engine_name` are None for a request that never named a served model; `key` is the name of the
    API key that it came with. `source` is "lookup" or "model" where answers are looked up first, else None.
    `accepted_at` is wall time and only labels. `shards` is there for an engine whose ranks are timed.
    """

    timing: RequestTiming
    breakdown: Breakdown
    accepted_at: datetime
    model: str | None
    engine_name: str | None
    route: str
    streamed: bool
    key: str | None
    engine: Mapping[str, Any] | None
    shards: ShardTiming | None = None
    source: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON."""
        return {
            **self.timing.to_dict(),
            "model": self.model,
            "engine_name": self.engine_name,
            "route": self.route,
            "streamed": self.streamed,
            "key": self.key,
            "source": self.source,
            "accepted_at": self.accepted_at.isoformat(timespec="milliseconds"),
            "breakdown": self.breakdown.to_dict(),
            "engine": dict(self.engine) if self.engine else None,
            "ranks": rank_rows(self.shards.ranks) if self.shards else [],
            "shards": self.shards.to_dict() if self.shards else None,
        }

    def summary(self) -> dict[str, Any]:
        """The same without a number per chunk: a row of a list."""
        per_chunk = ("chunk_times_s", "chunk_tokens")
        return {name: value for name, value in self.to_dict().items() if name not in per_chunk}


class TimingLog:
    """Keeps records by request id and appends each to the file as it comes; knows what is in flight."""

    def __init__(self, path: Path | None) -> None:
        self._records: OrderedDict[str, TimingRecord] = OrderedDict()
        self._in_flight: dict[object, Callable[[], TimingRecord]] = {}
        self._file = _open(path) if path else None
        self.lost = 0

    @contextmanager
    def watching(self, record: Callable[[], TimingRecord]) -> Generator[None]:
        """Lists a request as in flight while the context lasts; `record` says how far it has come."""
        ticket = object()
        self._in_flight[ticket] = record
        try:
            yield
        finally:
            del self._in_flight[ticket]

    def in_flight(self) -> Iterator[TimingRecord]:
        """What has not ended yet, as far as it has come, newest first."""
        return (record() for record in reversed(self._in_flight.values()))

    def ended(self) -> Iterator[TimingRecord]:
        """The records kept, newest first."""
        return reversed(self._records.values())

    def add(self, record: TimingRecord) -> None:
        """Keeps one record; the oldest makes room."""
        request_id = record.timing.request_id
        self._records[request_id] = record
        self._records.move_to_end(request_id)
        if len(self._records) > _KEPT_RECORDS:
            self._records.popitem(last=False)
        if self._file:
            self._append(self._file, record)

    def _append(self, file: IO[str], record: TimingRecord) -> None:
        try:
            file.write(json.dumps(record.to_dict()) + "\n")
            file.flush()
        except OSError as error:
            # The answer is out already: a full disk must not turn it into a failure.
            self.lost += 1
            _log.error("request=%s event=timing-lost detail=%r", record.timing.request_id, str(error))

    def get(self, request_id: str) -> TimingRecord | None:
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
