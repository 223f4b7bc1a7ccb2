"""The databases that a request store may lie in, and what each says in its own way."""

from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import Insert as PostgresInsert
from sqlalchemy.dialects.sqlite import Insert as SqliteInsert
from sqlalchemy.exc import ArgumentError

from decant.errors import StoreError

SCHEMA_VERSION = 2
Clock = Callable[[], float]


class StoreCollision(StoreError):
    """Two transactions stood in each other's way and this one was undone: it may be tried again at once."""


class Database(Protocol):
    """One database; `name` is what messages call it, without its password."""

    name: str
    engine: sa.Engine

    def prepare(self) -> None:
        """Makes the tables where there are none; StoreError for a database that holds something else."""
        ...

    def transaction(self, *, write: bool = True) -> AbstractContextManager[sa.Connection]:
        """One transaction, committed at its end. What the database refuses is a StoreError."""
        ...

    def now(self) -> sa.ColumnElement[float]:
        """The time, in seconds since the epoch, by the clock that all who share the store go by."""
        ...

    def among(self, column: sa.ColumnElement[str], keys: Collection[str]) -> sa.ColumnElement[bool]:
        """Whether a column's value is one of any number of keys."""
        ...

    def insert_new(self, table: sa.Table) -> "SqliteInsert | PostgresInsert":
        """An insert that leaves a key alone which is there."""
        ...


def open_database(url_or_path: str | Path, *, clock: Clock | None, busy_timeout_s: float) -> Database:
    """The database that a path or URL names, not yet prepared; StoreError for one that cannot be used."""
    url = _url(url_or_path)
    if url.get_backend_name() == "sqlite":
        from decant.store_sqlite import SqliteDatabase

        return SqliteDatabase(url, clock=clock, busy_timeout_s=busy_timeout_s)
    from decant.store_postgres import PostgresDatabase

    return PostgresDatabase(url, clock=clock, busy_timeout_s=busy_timeout_s)


def store_name(url_or_path: str | Path) -> str:
    """What messages call a store: its path, or its URL without password and options."""
    if isinstance(url_or_path, Path) or "://" not in url_or_path:
        return str(url_or_path)
    return url_name(_url(url_or_path))


def url_name(url: sa.URL) -> str:
    """The same of a parsed URL."""
    if url.get_backend_name() == "sqlite":
        return url.database or "the store in memory"
    host = url.host or url.query.get("host") or "localhost"
    place = host if isinstance(host, str) else ",".join(host)
    user = f"{url.username}@" if url.username else ""
    port = f":{url.port}" if url.port else ""
    return f"postgresql://{user}{place}{port}/{url.database or ''}"


def _url(url_or_path: str | Path) -> sa.URL:
    if isinstance(url_or_path, Path) or "://" not in url_or_path:
        return sa.URL.create("sqlite", database=str(url_or_path))
    scheme = url_or_path.partition("://")[0]
    advice = "give a path, sqlite:///path or postgresql://user@host/database"
    # What cannot be parsed is not repeated: a password may stand in it.
    try:
        url = sa.make_url(url_or_path)
    except (ArgumentError, ValueError):
        raise StoreError(f"{scheme}://…: not a database URL; {advice}") from None
    if url.drivername in ("sqlite", "sqlite+pysqlite"):
        return url
    if url.drivername in ("postgres", "postgresql", "postgresql+psycopg"):
        return url.set(drivername="postgresql+psycopg")
    raise StoreError(f"{url.drivername}: stores are SQLite files or PostgreSQL databases; {advice}")
