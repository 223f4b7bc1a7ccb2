"""A request store in one SQLite file, in WAL mode: one writer at a time, readers beside it."""

import json
import threading
import time
from collections.abc import Collection, Generator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import Insert, insert
from sqlalchemy.exc import DBAPIError

from decant.ask import ask_key
from decant.errors import StoreError
from decant.store_database import SCHEMA_VERSION, Clock
from decant.store_rows import LABELS, METADATA

_APPLICATION_ID = 0x44634E74  # "DcNt" in the file's header says whose database it is
_ROWS_PER_STEP = 1000
_FEW_KEYS = 32


class SqliteDatabase:
    """The file; its clock is this machine's, which means the same in another process and after a reboot."""

    def __init__(self, url: sa.URL, *, clock: Clock | None, busy_timeout_s: float) -> None:
        _make_folder(url.database)
        self.name = url.database or "the store in memory"
        # One connection that all threads share, one at a time: SQLite has one writer anyway.
        self.engine = sa.create_engine(
            url,
            poolclass=sa.StaticPool,
            connect_args={"timeout": busy_timeout_s, "check_same_thread": False, "isolation_level": None},
        )
        self._clock = clock or time.time
        self._busy_timeout_s = busy_timeout_s
        self._lock = threading.Lock()

    def prepare(self) -> None:
        """Makes the tables, or brings those of an older version up to this one."""
        self._use_wal(time.monotonic() + self._busy_timeout_s)
        with self.transaction() as connection:
            if not sa.inspect(connection).get_table_names():
                connection.exec_driver_sql(f"PRAGMA application_id = {_APPLICATION_ID}")
                connection.exec_driver_sql(f"PRAGMA user_version = {SCHEMA_VERSION}")
                METADATA.create_all(connection)
            if connection.exec_driver_sql("PRAGMA application_id").scalar() != _APPLICATION_ID:
                raise StoreError(f"{self.name}: a database, but no request store; give another path")
            version = connection.exec_driver_sql("PRAGMA user_version").scalar()
            if version == 1:
                _add_asks(connection)
            elif version != SCHEMA_VERSION:
                known = f"this Decant reads {SCHEMA_VERSION}"
                raise StoreError(f"{self.name}: store version {version}, {known}; give a new path")

    @contextmanager
    def transaction(self, *, write: bool = True) -> Generator[sa.Connection]:
        """A write takes its lock at once: a read that turns into a write would fail instead of waiting."""
        with self._lock, self._explained(), self.engine.begin() as connection:
            connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
            yield connection

    def now(self) -> sa.ColumnElement[float]:
        """This machine's clock."""
        return sa.literal(self._clock(), sa.Float)

    def among(self, column: sa.ColumnElement[str], keys: Collection[str]) -> sa.ColumnElement[bool]:
        """One JSON parameter holds any number of keys; SQLite allows only so many variables."""
        if len(keys) <= _FEW_KEYS:
            return column.in_(keys)
        listed = sa.func.json_each(json.dumps(list(keys))).table_valued("value")
        return column.in_(sa.select(listed.c.value))

    def insert_new(self, table: sa.Table) -> Insert:
        """INSERT … ON CONFLICT DO NOTHING."""
        return insert(table).on_conflict_do_nothing(index_elements=["key"])

    def _use_wal(self, give_up_at: float) -> None:
        # SQLite says "locked" at once, without its busy timeout, when two processes switch to WAL together.
        while True:
            try:
                with self._explained(), self.engine.connect() as connection:
                    connection.exec_driver_sql("PRAGMA journal_mode = WAL")
                    # In WAL a commit survives the process without a sync; only a power cut may take the last.
                    connection.exec_driver_sql("PRAGMA synchronous = NORMAL")
                return
            except StoreError as error:
                if "locked" not in str(error) or time.monotonic() > give_up_at:
                    raise
            time.sleep(0.01)

    @contextmanager
    def _explained(self) -> Generator[None]:
        try:
            yield
        except DBAPIError as error:
            raise StoreError(f"{self.name}: {_explanation(str(error.orig))}") from error


def _add_asks(connection: sa.Connection) -> None:
    """Version 2 knows what each request asks, so that its answer can be looked up."""
    connection.exec_driver_sql("ALTER TABLE labels ADD COLUMN ask TEXT")
    row, after = LABELS.c, 0
    update = sa.update(LABELS).where(row.seq == sa.bindparam("of")).values(ask=sa.bindparam("asked"))
    page = sa.select(row.seq, row.request).order_by(row.seq).limit(_ROWS_PER_STEP)
    while found := connection.execute(page.where(row.seq > after)).all():
        asks = [{"of": seq, "asked": ask_key(json.loads(request))} for seq, request in found]
        connection.execute(update, asks)
        after = found[-1].seq
    connection.exec_driver_sql("CREATE INDEX labels_by_ask ON labels (ask)")
    connection.exec_driver_sql(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _make_folder(database: str | None) -> None:
    if database is None or database == ":memory:":
        return
    folder = Path(database).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"{folder}: {error.strerror}; give a path in a folder that can be written"
        ) from error


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
