"""The request store: every request, its answer and label, keyed by content hash, in one SQLite file.

Each call is one committed transaction, so that SIGKILL loses only the answers in flight. Several processes
may share a store. Its clock is the wall's: a lease must mean the same in another process and after a reboot.
"""

import json
import threading
import time
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, get_args

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.exc import ArgumentError, DBAPIError

from decant.errors import StoreError
from decant.lease import is_dead, process_owner

__all__ = ["Answer", "Label", "NewLabel", "RequestStore", "Status", "process_owner"]

Status = Literal["pending", "leased", "done", "failed", "filtered"]
_STATUSES: tuple[Status, ...] = get_args(Status)
_APPLICATION_ID = 0x44634E74  # "DcNt" in the file's header says whose database it is
_SCHEMA_VERSION = 1
_ROWS_PER_INSERT = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class NewLabel:
    """A request that wants an answer; `key` is its `decant.wire.request_key`."""

    key: str
    row_id: str
    sample: int
    request: dict[str, Any]
    prompt_version: str | None = None
    teacher: str | None = None


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


_metadata = sa.MetaData()
_labels = sa.Table(
    "labels",
    _metadata,
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column("key", sa.Text, nullable=False, unique=True),
    sa.Column("row_id", sa.Text, nullable=False),
    sa.Column("sample", sa.Integer, nullable=False),
    sa.Column("status", sa.Text, nullable=False, server_default="pending"),
    sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
    sa.Column("request", sa.Text, nullable=False),
    sa.Column("response", sa.Text),
    sa.Column("reasoning", sa.Text),
    sa.Column("answer", sa.Text),
    sa.Column("finish_reason", sa.Text),
    sa.Column("prompt_tokens", sa.Integer),
    sa.Column("completion_tokens", sa.Integer),
    sa.Column("cost_usd", sa.Float),
    sa.Column("logprob", sa.Float),
    sa.Column("latency_s", sa.Float),
    sa.Column("error_class", sa.Text),
    sa.Column("error", sa.Text),
    sa.Column("prompt_version", sa.Text),
    sa.Column("teacher", sa.Text),
    sa.Column("lease_owner", sa.Text),
    sa.Column("lease_expires", sa.Float),
    sa.Column("updated_at", sa.Float, nullable=False),
    sa.CheckConstraint(sa.column("status").in_([sa.literal_column(f"'{name}'") for name in _STATUSES])),
    sa.Index("labels_by_status", "status", "seq"),
)
_row = _labels.c


class RequestStore:
    """Requests and their answers. Thread-safe, a context manager; calls block: async code uses a thread."""

    def __init__(self, engine: sa.Engine, name: str, clock: Callable[[], float]) -> None:
        self._engine = engine
        self._name = name
        self._clock = clock
        self._lock = threading.Lock()

    @classmethod
    def open(
        cls, url_or_path: str | Path, *, clock: Callable[[], float] = time.time, busy_timeout_s: float = 30.0
    ) -> Self:
        """Opens the store, creating it where there is none.

        StoreError for a file that is no store or one of another version, and for databases other than SQLite.
        """
        url = _url(url_or_path)
        # One connection that all threads share, one at a time: SQLite has one writer anyway.
        engine = sa.create_engine(
            url,
            poolclass=sa.StaticPool,
            connect_args={"timeout": busy_timeout_s, "check_same_thread": False, "isolation_level": None},
        )
        store = cls(engine, url.database or "the store in memory", clock)
        try:
            store._prepare(busy_timeout_s)
        except BaseException:
            store.close()
            raise
        return store

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file; nothing is left to be written."""
        self._engine.dispose()

    def add(self, rows: Iterable[NewLabel]) -> int:
        """Adds requests as pending and returns how many were new; a key that is there stays as it is."""
        now = self._clock()
        values = [{**asdict(row), "request": json.dumps(row.request), "updated_at": now} for row in rows]
        statement = insert(_labels).on_conflict_do_nothing(index_elements=["key"])
        with self._transaction() as connection:
            before = self._size(connection)
            for start in range(0, len(values), _ROWS_PER_INSERT):
                connection.execute(statement, values[start : start + _ROWS_PER_INSERT])
            return self._size(connection) - before

    def lease(self, n: int, owner: str, ttl_s: float, *, keys: Collection[str] | None = None) -> list[Label]:
        """Takes up to `n` pending requests, oldest first, for `ttl_s` seconds, and counts an attempt each.

        With `keys`, only these. Leases that ran out, or whose process died, are given back first. `owner` is
        best `process_owner()`.
        """
        now = self._clock()
        chosen = sa.select(_row.key).where(_row.status == "pending")
        if keys is not None:
            chosen = chosen.where(_row.key.in_(_each(keys)))
        chosen = chosen.order_by(_row.seq).limit(n)
        with self._transaction() as connection:
            self._release(connection, now)
            taken = (
                connection.execute(
                    sa.update(_labels)
                    .where(_row.key.in_(chosen))
                    .values(
                        status="leased",
                        attempts=_row.attempts + 1,
                        lease_owner=owner,
                        lease_expires=now + ttl_s,
                        updated_at=now,
                    )
                    .returning(*_labels.columns)
                )
                .mappings()
                .all()
            )
        return [_label(row) for row in sorted(taken, key=lambda row: row["seq"])]

    def finish(self, key: str, answer: Answer) -> None:
        """Records the answer and ends the lease. Of two answers to one request the first one stays."""
        self._settle(key, status="done", error_class=None, error=None, **asdict(answer))

    def fail(self, key: str, error_class: str, error: str, retryable: bool) -> None:
        """Records a failed attempt and ends the lease: pending again when `retryable`, failed otherwise."""
        self._settle(key, status="pending" if retryable else "failed", error_class=error_class, error=error)

    def release_expired(self) -> int:
        """Gives back leases that ran out, or whose process on this machine died; returns how many."""
        with self._transaction() as connection:
            return self._release(connection, self._clock())

    def reopen(self, keys: Collection[str]) -> int:
        """Makes those of `keys` that failed pending again, with no attempts counted; returns how many."""
        statement = (
            sa.update(_labels)
            .where(_row.status == "failed", _row.key.in_(_each(keys)))
            .values(status="pending", attempts=0, updated_at=self._clock())
        )
        with self._transaction() as connection:
            return connection.execute(statement).rowcount

    def get_many(self, keys: Iterable[str]) -> dict[str, Label]:
        """The rows of those keys that are there."""
        with self._transaction("BEGIN") as connection:
            rows = connection.execute(sa.select(_labels).where(_row.key.in_(_each(keys)))).mappings().all()
        return {row["key"]: _label(row) for row in rows}

    def labels(self) -> Iterator[Label]:
        """Every row, oldest first, some hundred at a time: what is added meanwhile comes too."""
        after = 0
        while True:
            page = sa.select(_labels).where(_row.seq > after).order_by(_row.seq).limit(_ROWS_PER_INSERT)
            with self._transaction("BEGIN") as connection:
                rows = connection.execute(page).mappings().all()
            if not rows:
                return
            after = rows[-1]["seq"]
            yield from map(_label, rows)

    def counts(self) -> dict[Status, int]:
        """How many rows have each status, 0 included."""
        with self._transaction("BEGIN") as connection:
            found = connection.execute(
                sa.select(_row.status, sa.func.count().label("n")).group_by(_row.status)
            ).all()
        return dict.fromkeys(_STATUSES, 0) | {row.status: row.n for row in found}

    def _settle(self, key: str, **values: object) -> None:
        statement = (
            sa.update(_labels)
            .where(_row.key == key, _row.status != "done")
            .values(**values, lease_owner=None, lease_expires=None, updated_at=self._clock())
        )
        with self._transaction() as connection:
            if connection.execute(statement).rowcount == 0 and not self._knows(connection, key):
                raise StoreError(f"{self._name}: no request {key}; add it before it is answered")

    def _release(self, connection: sa.Connection, now: float) -> int:
        leased = sa.select(_row.lease_owner).where(_row.status == "leased").distinct()
        dead = [owner for owner in connection.scalars(leased) if is_dead(owner)]
        return connection.execute(
            sa.update(_labels)
            .where(_row.status == "leased", (_row.lease_expires <= now) | _row.lease_owner.in_(dead))
            .values(status="pending", lease_owner=None, lease_expires=None, updated_at=now)
        ).rowcount

    def _knows(self, connection: sa.Connection, key: str) -> bool:
        return connection.scalar(sa.select(_row.seq).where(_row.key == key)) is not None

    def _size(self, connection: sa.Connection) -> int:
        return connection.scalar(sa.select(sa.func.count()).select_from(_labels)) or 0

    def _prepare(self, busy_timeout_s: float) -> None:
        self._use_wal(time.monotonic() + busy_timeout_s)
        with self._transaction() as connection:
            if not sa.inspect(connection).get_table_names():
                connection.exec_driver_sql(f"PRAGMA application_id = {_APPLICATION_ID}")
                connection.exec_driver_sql(f"PRAGMA user_version = {_SCHEMA_VERSION}")
                _metadata.create_all(connection)
            whose = connection.exec_driver_sql("PRAGMA application_id").scalar()
            version = connection.exec_driver_sql("PRAGMA user_version").scalar()
        if whose != _APPLICATION_ID:
            raise StoreError(f"{self._name}: a database, but no request store; give another path")
        if version != _SCHEMA_VERSION:
            raise StoreError(
                f"{self._name}: store version {version}, this Decant reads {_SCHEMA_VERSION}; give a new path"
            )

    def _use_wal(self, give_up_at: float) -> None:
        # SQLite says "locked" at once, without its busy timeout, when two processes switch to WAL together.
        while True:
            try:
                with self._explained(), self._engine.connect() as connection:
                    connection.exec_driver_sql("PRAGMA journal_mode = WAL")
                    # In WAL a commit survives the process without a sync; only a power cut may take the last.
                    connection.exec_driver_sql("PRAGMA synchronous = NORMAL")
                return
            except StoreError as error:
                if "locked" not in str(error) or time.monotonic() > give_up_at:
                    raise
            time.sleep(0.01)

    @contextmanager
    def _transaction(self, begin: str = "BEGIN IMMEDIATE") -> Generator[sa.Connection]:
        # A write takes its lock at once: a read that turns into a write would fail instead of waiting.
        with self._lock, self._explained(), self._engine.begin() as connection:
            connection.exec_driver_sql(begin)
            yield connection

    @contextmanager
    def _explained(self) -> Generator[None]:
        try:
            yield
        except DBAPIError as error:
            raise StoreError(f"{self._name}: {_explanation(str(error.orig))}") from error


def _explanation(words: str) -> str:
    advice = {
        "locked": "another process is writing to it; wait for that one or stop it",
        "full": "free space and run again; what was answered is kept",
        "not a database": "give another path, or remove it",
        "malformed": "the file is damaged; restore it, or give another path",
        "unable to open": "check that the folder can be written to",
        "readonly": "check that the file can be written to",
        "I/O": "check the disk, then run again",
    }
    for sign, what_to_do in advice.items():
        if sign in words:
            return f"{words}; {what_to_do}"
    return words


def _url(url_or_path: str | Path) -> sa.URL:
    if isinstance(url_or_path, str) and "://" in url_or_path:
        try:
            url = sa.make_url(url_or_path)
        except ArgumentError as error:
            raise StoreError(f"{url_or_path}: not a database URL; give a path or sqlite:///path") from error
        if url.drivername not in ("sqlite", "sqlite+pysqlite"):
            raise StoreError(f"{url.drivername}: stores are SQLite files; give a path or sqlite:///path")
        return url
    path = Path(url_or_path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"{path.parent}: {error.strerror}; give a path in a folder that can be written"
        ) from error
    return sa.URL.create("sqlite", database=str(path))


def _each(keys: Iterable[str]) -> sa.Select[tuple[str]]:
    # One JSON parameter holds any number of keys; SQLite allows only so many variables.
    listed = sa.func.json_each(json.dumps(list(keys))).table_valued("value")
    return sa.select(listed.c.value)


def _label(row: sa.RowMapping) -> Label:
    columns = {str(name): value for name, value in row.items() if name != "seq"}
    return Label(**{**columns, "request": json.loads(row["request"])})
