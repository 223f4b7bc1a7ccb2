"""A request that was not answered: what kind of failure it was, and what to do about it."""

from collections.abc import Callable
from functools import partial
from typing import Literal

from decant.errors import EndpointError
from decant.timing import RequestTiming
from decant.wire import ErrorBody

ErrorKind = Literal[
    "connect",
    "reset",
    "timeout",
    "rate_limited",
    "server_error",
    "conflict",
    "auth",
    "not_found",
    "bad_request",
    "bad_response",
    "stream_broken",
]

ADVICE: dict[ErrorKind, str] = {
    "connect": "check base_url and that the server is up",
    "reset": "the server dropped the connection; see its log",
    "timeout": "raise the request timeout or lower the concurrency",
    "rate_limited": "lower the concurrency or try again later",
    "server_error": "see the server's log, then run again",
    "conflict": "try again later",
    "auth": "check the API key",
    "not_found": "check the model id, and that base_url ends with /v1",
    "bad_request": "change the request",
    "bad_response": "check that base_url is an OpenAI-compatible endpoint",
    "stream_broken": "the answer is incomplete; see the server's log, then run again",
}
_PASSING: frozenset[ErrorKind] = frozenset(
    {"connect", "reset", "timeout", "rate_limited", "server_error", "conflict", "stream_broken"}
)


class ApiError(EndpointError):
    """A request that was not answered, after `attempts` tries; `timing` says how far the last one came.

    `status` is 0 when no response came; `retry_after` is in seconds.
    """

    def __init__(
        self,
        text: str,
        *,
        kind: ErrorKind,
        error: ErrorBody,
        status: int = 0,
        attempts: int = 1,
        retry_after: float | None = None,
        timing: RequestTiming | None = None,
    ) -> None:
        super().__init__(text)
        self.kind: ErrorKind = kind
        self.error = error
        self.status = status
        self.attempts = attempts
        self.retry_after = retry_after
        self.timing = timing

    @property
    def message(self) -> str:
        """The server's own words, or what happened on the way to it."""
        return self.error.message

    @property
    def param(self) -> str | None:
        """The request field that the server complains about."""
        return self.error.param

    @property
    def code(self) -> str | int | None:
        """The server's error code."""
        return self.error.code

    @property
    def retryable(self) -> bool:
        """Whether the same request may succeed at another time."""
        return self.kind in _PASSING

    def __reduce__(self) -> tuple[Callable[[str], "ApiError"], tuple[str]]:
        rebuild = partial(
            ApiError,
            kind=self.kind,
            error=self.error,
            status=self.status,
            attempts=self.attempts,
            retry_after=self.retry_after,
            timing=self.timing,
        )
        return rebuild, (str(self),)
