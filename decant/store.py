"""The request store: every request, its answer and label, by content hash; SQLite, or PostgreSQL by URL.

Each call is committed when it returns, so that SIGKILL loses only the answers in flight. Several processes
may share a store, on PostgreSQL from several machines.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import sqlalchemy as sa

from decant.lease import is_dead, process_owner
from decant.store_commit import GroupCommit, Settlement, unknown_request
from decant.store_database import Clock, Database, StoreCollision, open_database, store_name
from decant.store_rows import LABELS, SHOWN, STATUSES, Answer, Label, NewLabel, Standing, Status, to_label

__all__ = ["Answer", "Label", "NewLabel", "RequestStore", "Standing", "Status", "process_owner", "store_name"]

T = TypeVar("T")

_ROWS_PER_STATEMENT = 1000
_TRIES = 5
_row = LABELS.c
# Made once: SQLAlchemy takes longer to write these down than a database to answer them.
_LABEL_ROWS = sa.select(*SHOWN)
# Told the status too, SQLite would go through every answer of the store by the index of that.
_ASKED = _LABEL_ROWS.where(_row.ask == sa.bindparam("asked")).order_by(_row.sample, _row.seq)


class RequestStore:
    """Requests and their answers. Thread-safe, a context manager; calls block: async code uses a thread."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._settlements = GroupCommit(self._commit)

    @classmethod
    def open(
        cls, url_or_path: str | Path, *, clock: Clock | None = None, busy_timeout_s: float = 30.0
    ) -> Self:
        """Opens the store, creating it where there is none; `clock` stands in for the database's own.

        StoreError for what is no store or one of another version, and for a database that cannot be used.
        """
        store = cls(open_database(url_or_path, clock=clock, busy_timeout_s=busy_timeout_s))
        try:
            store._database.prepare()
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
        """Closes the database; nothing is left to be written."""
        self._database.engine.dispose()

    def add(self, rows: Iterable[NewLabel]) -> int:
        """Adds requests as pending and returns how many were new; a key that is there stays as it is."""
        values = [row.to_row() for row in rows]
        if not values:
            return 0
        statement = (
            self._database.insert_new(LABELS).values(updated_at=self._database.now()).returning(_row.seq)
        )

        def work(connection: sa.Connection) -> int:
            starts = range(0, len(values), _ROWS_PER_STATEMENT)
            return sum(
                len(connection.execute(statement, values[start : start + _ROWS_PER_STATEMENT]).all())
                for start in starts
            )

        return self._write(work)

    def lease(self, n: int, owner: str, ttl_s: float, *, keys: Collection[str] | None = None) -> list[Label]:
        """Takes up to `n` pending requests, oldest first, for `ttl_s` seconds, and counts an attempt each.

        With `keys`, only these. Leases that ran out, or whose process died, are given back first. `owner` is
        best `process_owner()`. What another worker takes at this moment is passed over, never waited for.
        """
        now = self._database.now()
        chosen = sa.select(_row.key).where(_row.status == "pending")
        if keys is not None:
            chosen = chosen.where(self._database.among(_row.key, keys))
        chosen = _locked(chosen.order_by(_row.seq).limit(n))
        statement = (
            sa.update(LABELS)
            .where(_row.key.in_(chosen))
            .values(
                status="leased",
                attempts=_row.attempts + 1,
                lease_owner=owner,
                lease_expires=now + ttl_s,
                updated_at=now,
            )
            .returning(_row.seq, *SHOWN)
        )

        def work(connection: sa.Connection) -> list[Label]:
            self._release(connection)
            taken = connection.execute(statement).all()
            return [to_label(row[1:]) for row in sorted(taken, key=lambda row: row[0])]

        return self._write(work)

    def renew(self, owner: str, ttl_s: float) -> int:
        """Gives an owner's leases `ttl_s` seconds from now; returns how many it still holds."""
        held = _locked(sa.select(_row.key).where(_row.status == "leased", _row.lease_owner == owner))
        expires = self._database.now() + ttl_s
        statement = sa.update(LABELS).where(_row.key.in_(held)).values(lease_expires=expires)
        return self._write(lambda connection: _changed(connection, statement))

    def lease_owners(self) -> list[str]:
        """Everybody who holds a lease, by name."""
        held = sa.select(_row.lease_owner).where(_row.status == "leased").distinct()
        with self._database.transaction(write=False) as connection:
            return sorted(owner for owner in connection.scalars(held) if owner is not None)

    def held_by(self, owner: str) -> Iterator[Label]:
        """The requests that an owner holds, oldest first."""
        return self._pages(sa.and_(_row.status == "leased", _row.lease_owner == owner))

    def finish(self, key: str, answer: Answer) -> None:
        """Records the answer and ends the lease. Of two answers to one request the first one stays."""
        self._settlements.settle(Settlement(key, "done", answer.to_columns()))

    def finish_many(self, answers: Iterable[tuple[str, Answer]]) -> None:
        """Records many answers in one transaction: all of them, or on an error none."""
        self._write_settled([Settlement(key, "done", answer.to_columns()) for key, answer in answers])

    def fail(self, key: str, error_class: str, error: str, retryable: bool) -> None:
        """Records a failed attempt and ends the lease: pending again when `retryable`, failed otherwise."""
        status = "pending" if retryable else "failed"
        self._settlements.settle(Settlement(key, status, {"error_class": error_class, "error": error}))

    def release_expired(self) -> int:
        """Gives back leases that ran out, or whose process on this machine died; returns how many."""
        return self._write(self._release)

    def reopen(self, keys: Collection[str]) -> int:
        """Makes those of `keys` that failed pending again, with no attempts counted; returns how many."""
        statement = (
            sa.update(LABELS)
            .where(_row.status == "failed", self._database.among(_row.key, keys))
            .values(status="pending", attempts=0, updated_at=self._database.now())
        )
        return self._write(lambda connection: connection.execute(statement).rowcount) if keys else 0

    def forget(self, keys: Collection[str]) -> int:
        """Removes rows, whatever became of them; returns how many there were."""
        statement = sa.delete(LABELS).where(self._database.among(_row.key, keys))
        return self._write(lambda connection: connection.execute(statement).rowcount) if keys else 0

    def get_many(self, keys: Iterable[str]) -> dict[str, Label]:
        """The rows of those keys that are there."""
        with self._database.transaction(write=False) as connection:
            return self._by_key(connection, list(keys))

    def standing(self, keys: Iterable[str]) -> dict[str, Standing]:
        """How far each of those keys has come that are there: less to read than the rows."""
        columns = _row.key, _row.status, _row.cost_usd, _row.latency_s
        statement = sa.select(*columns).where(self._database.among(_row.key, list(keys)))
        with self._database.transaction(write=False) as connection:
            return {key: Standing(*rest) for key, *rest in connection.execute(statement)}

    def answers_to(self, ask: str, *, max_age_s: float | None = None) -> list[Label]:
        """The answered requests that ask the same (`decant.ask.ask_key`), by sample, none older than that."""
        return self.answers_with(ask, lambda _: (), max_age_s=max_age_s)[0]

    def answers_with(
        self, ask: str, beside: Callable[[list[Label]], Collection[str]], *, max_age_s: float | None = None
    ) -> tuple[list[Label], dict[str, Label]]:
        """The same, and in the same transaction what there is of the keys that `beside` names for them."""
        statement = _ASKED
        if max_age_s is not None:
            statement = statement.where(_row.updated_at >= self._database.now() - max_age_s)
        with self._database.transaction(write=False) as connection:
            rows = connection.execute(statement, {"asked": ask}).all()
            labels = [label for label in map(to_label, rows) if label.status == "done"]
            keys = beside(labels) if labels else ()
            return labels, self._by_key(connection, keys) if keys else {}

    def _by_key(self, connection: sa.Connection, keys: Collection[str]) -> dict[str, Label]:
        rows = connection.execute(_LABEL_ROWS.where(self._database.among(_row.key, keys))).all()
        return {label.key: label for label in map(to_label, rows)}

    def labels(self) -> Iterator[Label]:
        """Every row, oldest first, some hundred at a time: what is added meanwhile comes too."""
        return self._pages(sa.true())

    def _pages(self, wanted: sa.ColumnElement[bool]) -> Iterator[Label]:
        after = 0
        page = sa.select(_row.seq, *SHOWN).where(wanted).order_by(_row.seq).limit(_ROWS_PER_STATEMENT)
        while True:
            with self._database.transaction(write=False) as connection:
                rows = connection.execute(page.where(_row.seq > after)).all()
            if not rows:
                return
            after = rows[-1][0]
            yield from (to_label(row[1:]) for row in rows)

    def counts(self) -> dict[Status, int]:
        """How many rows have each status, 0 included."""
        statement = sa.select(_row.status, sa.func.count().label("n")).group_by(_row.status)
        with self._database.transaction(write=False) as connection:
            found = connection.execute(statement).all()
        return dict.fromkeys(STATUSES, 0) | {row.status: row.n for row in found}

    def _write(self, work: Callable[[sa.Connection], T]) -> T:
        for _ in range(_TRIES - 1):
            try:
                with self._database.transaction() as connection:
                    return work(connection)
            except StoreCollision:
                continue
        with self._database.transaction() as connection:
            return work(connection)

    def _write_settled(self, settlements: list[Settlement]) -> None:
        unknown = self._commit(settlements)
        if unknown:
            raise unknown_request(min(unknown))

    def _commit(self, settlements: list[Settlement]) -> set[str]:
        """Settles all in one transaction; returns the keys that are no request's."""
        now = self._database.now()
        # Two workers that settle the same rows lock them in the same order, and so never wait in a circle.
        ordered = sorted(settlements, key=lambda one: one.key)

        def work(connection: sa.Connection) -> set[str]:
            settled = 0
            for status in ("done", "failed", "pending"):
                alike = [one.parameters() for one in ordered if one.status == status]
                if alike:
                    statement = _settling(status, tuple(alike[0]), now)
                    settled += connection.execute(statement, alike).rowcount
            if settled == len(settlements):
                return set()
            keys = {one.key for one in settlements}
            known = sa.select(_row.key).where(self._database.among(_row.key, keys))
            return keys - set(connection.scalars(known))

        return self._write(work)

    def _release(self, connection: sa.Connection) -> int:
        now = self._database.now()
        leased = sa.select(_row.lease_owner).where(_row.status == "leased").distinct()
        dead = [owner for owner in connection.scalars(leased) if owner is not None and is_dead(owner)]
        lost = _row.lease_expires <= now
        if dead:
            lost |= _row.lease_owner.in_(dead)
        held = _locked(sa.select(_row.key).where(_row.status == "leased", lost))
        statement = sa.update(LABELS).where(_row.key.in_(held))
        back = statement.values(status="pending", lease_owner=None, lease_expires=None, updated_at=now)
        return _changed(connection, back)


def _changed(connection: sa.Connection, statement: sa.Update) -> int:
    # Python's SQLite driver counts no rows for a statement that begins with a table expression.
    return len(connection.execute(statement.returning(_row.seq)).all())


def _locked(chosen: sa.Select[tuple[str]]) -> sa.Select[tuple[str]]:
    """The keys chosen, their rows locked, without those that another transaction has locked.

    A common table expression with a lock is worked out once, where a plain subquery might be run again and
    take more. SQLite has no such locks and needs none: its one writer holds them all.
    """
    locked = chosen.with_for_update(skip_locked=True).cte("chosen")
    return sa.select(locked.c.key)


def _settling(status: str, columns: tuple[str, ...], now: sa.ColumnElement[float]) -> sa.Update:
    given: dict[str, Any] = {name: sa.bindparam(name) for name in columns if name != Settlement.KEY}
    return (
        sa.update(LABELS)
        .where(_row.key == sa.bindparam(Settlement.KEY), _row.status != "done")
        .values(status=status, lease_owner=None, lease_expires=None, updated_at=now, **given)
    )
