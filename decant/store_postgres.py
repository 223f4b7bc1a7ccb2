"""A request store in a PostgreSQL database, for workers on several machines; its clock is the server's."""

import importlib.util
from collections.abc import Collection, Generator, Mapping
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.dialects.postgresql import ARRAY, Insert, insert
from sqlalchemy.exc import DBAPIError

from decant.errors import MissingExtraError, StoreError
from decant.store_database import SCHEMA_VERSION, Clock, StoreCollision, url_name
from decant.store_rows import LABELS, METADATA

# Whoever makes the tables holds this lock of the server's.
_CREATION_LOCK = 0x44634E74
_CONNECT_LIMIT_S = 10
_COLLISIONS = ("40001", "40P01")
_ADVICE: Mapping[str, str] = {
    "08": "check the address, and that the server runs",
    "28": "check user and password (the URL's, PGPASSWORD or ~/.pgpass)",
    "3D": "make it with createdb, or name another",
    "42501": "give the role CREATE and USAGE on the schema",
    "53100": "free space and run again; what was answered is kept",
    "53300": "close other clients, or raise max_connections",
    "55P03": "another process is writing to it; wait for that one or stop it",
    "57P": "the server was stopped; run again when it is back, what was answered is kept",
}
_versions = sa.Table(
    "decant_store", sa.MetaData(), sa.Column("version", sa.Integer, primary_key=True, autoincrement=False)
)


class PostgresDatabase:
    """The database, or the schema that the URL's options put first in the search path."""

    def __init__(self, url: sa.URL, *, clock: Clock | None, busy_timeout_s: float) -> None:
        if importlib.util.find_spec("psycopg") is None:
            raise MissingExtraError("psycopg", extra="postgres")
        self.name = url_name(url)
        self._clock = clock
        self.engine = sa.create_engine(
            url, pool_pre_ping=True, hide_parameters=True, connect_args={"connect_timeout": _CONNECT_LIMIT_S}
        )

        def limit_locks(connection: Any, _: object) -> None:
            connection.autocommit = True
            connection.execute(f"SET lock_timeout = {round(busy_timeout_s * 1000)}")
            connection.autocommit = False

        event.listen(self.engine, "connect", limit_locks)

    def prepare(self) -> None:
        """Makes the tables where there are none; the first of several processes does it."""
        with self.transaction() as connection:
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_CREATION_LOCK)))
            there = set(sa.inspect(connection).get_table_names())
            if _versions.name not in there:
                if LABELS.name in there:
                    raise StoreError(
                        f"{self.name}: has a table `labels` of something else; name another database, or a "
                        "schema of its own with ?options=-csearch_path=NAME"
                    )
                _versions.create(connection)
                METADATA.create_all(connection)
                connection.execute(sa.insert(_versions).values(version=SCHEMA_VERSION))
            version = connection.scalar(sa.select(_versions.c.version))
            if version != SCHEMA_VERSION:
                raise StoreError(
                    f"{self.name}: store version {version}, this Decant reads {SCHEMA_VERSION}; name another"
                )

    @contextmanager
    def transaction(self, *, write: bool = True) -> Generator[sa.Connection]:
        """One transaction; StoreCollision when the server undid it for the sake of another one."""
        try:
            with self.engine.begin() as connection:
                yield connection
        except DBAPIError as error:
            raise self._explained(error) from error

    def now(self) -> sa.ColumnElement[float]:
        """The server's clock, so that workers whose clocks differ agree on when a lease runs out."""
        if self._clock is not None:
            return sa.literal(self._clock(), sa.Float)
        return sa.cast(sa.func.extract("epoch", sa.func.clock_timestamp()), sa.Float)

    def among(self, column: sa.ColumnElement[str], keys: Collection[str]) -> sa.ColumnElement[bool]:
        """One array parameter."""
        return column == sa.any_(sa.bindparam(None, list(keys), type_=ARRAY(sa.Text), unique=True))

    def insert_new(self, table: sa.Table) -> Insert:
        """INSERT … ON CONFLICT DO NOTHING."""
        return insert(table).on_conflict_do_nothing(index_elements=["key"])

    def _explained(self, error: DBAPIError) -> StoreError:
        # The driver's errors carry the server's code, except where no connection came up.
        state: str | None = getattr(error.orig, "sqlstate", None)
        words = " ".join(str(error.orig).split())
        if state in _COLLISIONS:
            return StoreCollision(f"{self.name}: {words}")
        known = next(
            (text for sign, text in _ADVICE.items() if (state or _unnamed(words)).startswith(sign)), None
        )
        return StoreError(f"{self.name}: {words}; {known}" if known else f"{self.name}: {words}")


def _unnamed(words: str) -> str:
    """The state that a connection which never came up does not tell."""
    if 'FATAL: database "' in words:
        return "3D"
    refused = ("authentication failed", "no password supplied", 'FATAL: role "')
    return "28" if any(sign in words for sign in refused) else "08"
