"""Tells a failed request, which is a row with a reason, from a failed endpoint, which stops the job."""

from decant.client import ApiError
from decant.errors import EndpointError

_UNREACHABLE = ("connect", "reset", "timeout")
_MOST_UNREACHABLE = 3
_FATAL_CODES = ("insufficient_quota", "billing_hard_limit_reached")


class Watch:
    """Counts failures without an answer in between."""

    def __init__(self, *, concurrency: int) -> None:
        self._most_refused = max(10, 2 * concurrency)
        self._was_answered = False
        self._unreachable = 0
        self._refused = 0

    def answered(self) -> None:
        """An answer came: what failed before was not the endpoint's end."""
        self._was_answered = True
        self._unreachable = self._refused = 0

    def refused(self, error: ApiError) -> None:
        """EndpointError after one try that shows that none will do: a bad key or model, an empty account."""
        if error.kind in ("auth", "not_found") or error.code in _FATAL_CODES:
            raise error

    def failed(self, error: ApiError) -> None:
        """EndpointError when going on after a request was given up makes no sense.

        An endpoint that cannot be reached, fails every request or refused all so far stops after a few.
        """
        self.refused(error)
        if error.kind in _UNREACHABLE:
            self._unreachable += 1
        else:
            self._unreachable = 0
            # A row may be too long; what is wrong with every request shows before any answer.
            self._refused += 1 if error.retryable or not self._was_answered else 0
        if self._unreachable >= _MOST_UNREACHABLE or self._refused >= self._most_refused:
            failures = max(self._unreachable, self._refused)
            raise EndpointError(f"{failures} requests in a row failed, last: {error}") from error
