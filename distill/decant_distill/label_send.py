"""Sends one request until it is answered or given up, at the pace that the endpoint takes."""

import asyncio
from collections.abc import Mapping
from typing import Any

from decant.api_error import ApiError, ErrorKind
from decant.client import Backoff, Completion, OpenAIClient
from decant.wire_client import WireClient
from decant_distill.label_pace import Pace, Turn
from decant_distill.label_watch import Watch

_BYTES_PER_TOKEN = 4
_TRIED_AGAIN: frozenset[ErrorKind] = frozenset(
    {"connect", "reset", "rate_limited", "server_error", "conflict"}
)


class Sender:
    """Tries requests again by the client's rules, but sees every refusal, which the pace follows from.

    A refusal for load counts as one of a request's tries only when the pace cannot slow down any more and
    nothing else was answered meanwhile: an endpoint that is busy and alive costs time, never a row. `client`
    must not retry by itself.
    """

    def __init__(
        self,
        client: OpenAIClient | WireClient,
        *,
        pace: Pace,
        watch: Watch,
        max_attempts: int,
        backoff: Backoff | None = None,
    ) -> None:
        self._client = client
        self._pace = pace
        self._watch = watch
        self._max_attempts = max_attempts
        self._backoff = backoff or Backoff()
        self._answers = 0

    async def send(self, request: Mapping[str, Any]) -> Completion:
        """The answer; ApiError after the last try, EndpointError when no request can be answered."""
        tries = counted = 0
        tokens = _tokens(request)
        while True:
            answers = self._answers
            turn = await self._pace.turn(tokens)
            try:
                completion = await self._client.chat(request, stream=False)
            except ApiError as error:
                tries += 1
                is_alive = self._answers > answers or self._pace.at_once > 1
                counted += 0 if _is_load(error) and is_alive else 1
                delay_s = self._backoff.delay_s(min(tries, counted + 1), error.retry_after)
                self._end(turn, error, told_s=None if delay_s is None else error.retry_after)
                self._watch.refused(error)
                if counted >= self._max_attempts or not _is_tried_again(error) or delay_s is None:
                    raise _after(error, tries) from error
            except BaseException:
                self._pace.ended(turn)
                raise
            else:
                self._answers += 1
                self._pace.answered(turn, completion.headers)
                self._watch.answered()
                return completion
            await asyncio.sleep(delay_s)

    def _end(self, turn: Turn, error: ApiError, *, told_s: float | None) -> None:
        if _is_load(error):
            self._pace.refused(turn, told_s)
        else:
            self._pace.ended(turn)


def _tokens(request: Mapping[str, Any]) -> float:
    size = sum(len(message["content"].encode("utf-8", "replace")) for message in request["messages"])
    return size / _BYTES_PER_TOKEN + request["max_tokens"]


def _is_load(error: ApiError) -> bool:
    return error.kind == "rate_limited" or error.status == 503


def _is_tried_again(error: ApiError) -> bool:
    return error.kind in _TRIED_AGAIN or error.status == 408


def _after(error: ApiError, tries: int) -> ApiError:
    if tries == 1:
        return error
    return ApiError(
        f"{error} (gave up after {tries} tries)",
        kind=error.kind,
        error=error.error,
        status=error.status,
        attempts=tries,
        retry_after=error.retry_after,
        timing=error.timing,
    )
