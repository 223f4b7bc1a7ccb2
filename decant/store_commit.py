"""Answers that come together are committed together: a commit costs the same for one row as for hundreds."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from decant.errors import StoreError


@dataclass(frozen=True, slots=True)
class Settlement:
    """What becomes of one request: its new status and the columns that say why."""

    KEY: ClassVar[str] = "of"

    key: str
    status: str
    columns: dict[str, Any]

    def parameters(self) -> dict[str, Any]:
        """The bound values of its update."""
        cleared = {"error_class": None, "error": None} if self.status == "done" else {}
        return {self.KEY: self.key, **cleared, **self.columns}


@dataclass(slots=True)
class _Ticket:
    settlement: Settlement
    is_done: bool = False
    error: BaseException | None = None


@dataclass(slots=True)
class GroupCommit:
    """Whoever's turn it is commits for all who wait; each call returns when its own row is committed.

    `commit` gets settlements that belong into one transaction, and returns the keys that no request has.
    """

    commit: Callable[[list[Settlement]], set[str]]
    _arrivals: threading.Lock = field(default_factory=threading.Lock)
    _turn: threading.Lock = field(default_factory=threading.Lock)
    _waiting: list[_Ticket] = field(default_factory=list["_Ticket"])

    def settle(self, settlement: Settlement) -> None:
        """Commits one settlement, with those that came meanwhile; StoreError when it could not be."""
        ticket = _Ticket(settlement)
        with self._arrivals:
            self._waiting.append(ticket)
        with self._turn:
            if not ticket.is_done:
                self._commit_waiting()
        if ticket.error is not None:
            raise ticket.error

    def _commit_waiting(self) -> None:
        with self._arrivals:
            tickets, self._waiting = self._waiting, []
        try:
            unknown = self.commit([ticket.settlement for ticket in tickets])
        except BaseException as error:
            # Each thread raises an error of its own: one that is shared would collect all their tracebacks.
            for ticket in tickets:
                ticket.error = StoreError(str(error) or type(error).__name__)
            if not isinstance(error, StoreError):
                raise
        else:
            for ticket in tickets:
                if ticket.settlement.key in unknown:
                    ticket.error = unknown_request(ticket.settlement.key)
        finally:
            for ticket in tickets:
                ticket.is_done = True


def unknown_request(key: str) -> StoreError:
    """The error for an answer to what was never asked."""
    return StoreError(f"no request {key} in the store; add it before it is answered")
