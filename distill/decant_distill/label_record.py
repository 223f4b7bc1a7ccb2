"""Puts outcomes into the store in groups: what comes while one is committed goes together into the next."""

import asyncio
from dataclasses import dataclass, field

from decant.api_error import ApiError
from decant.store import Answer, RequestStore

_ERROR_CHARACTERS = 500

Outcome = Answer | ApiError


@dataclass(frozen=True, slots=True)
class _Waiting:
    key: str
    outcome: Outcome
    committed: asyncio.Future[None]


@dataclass(slots=True)
class Recorder:
    """The one writer of a job. It never waits for a group to fill: at a low rate a group is one outcome."""

    store: RequestStore
    _waiting: list[_Waiting] = field(default_factory=list[_Waiting])
    _writer: asyncio.Task[None] | None = None

    async def record(self, key: str, outcome: Outcome) -> None:
        """Returns when the outcome is committed; StoreError when it could not be."""
        committed = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(key, outcome, committed))
        if self._writer is None:
            self._writer = asyncio.create_task(self._write())
        await committed

    async def flush(self) -> None:
        """Returns when nothing is being written any more."""
        while self._writer is not None:
            await asyncio.gather(self._writer, return_exceptions=True)

    async def _write(self) -> None:
        try:
            while self._waiting:
                group, self._waiting = self._waiting, []
                (written,) = await asyncio.gather(
                    asyncio.to_thread(self._commit, group), return_exceptions=True
                )
                for one in group:
                    if one.committed.done():
                        continue  # whoever waited was cancelled
                    if isinstance(written, BaseException):
                        one.committed.set_exception(written)
                    else:
                        one.committed.set_result(None)
        finally:
            self._writer = None

    def _commit(self, group: list[_Waiting]) -> None:
        answers = [(one.key, one.outcome) for one in group if isinstance(one.outcome, Answer)]
        if answers:
            self.store.finish_many(answers)
        for one in group:
            if isinstance(one.outcome, ApiError):
                words = str(one.outcome)[:_ERROR_CHARACTERS]
                self.store.fail(one.key, one.outcome.kind, words, retryable=False)
