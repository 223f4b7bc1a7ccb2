"""Refusals and failures in OpenAI's shape: an exception, and the response or stream event it becomes."""

import json
from collections.abc import Mapping

from starlette.responses import Response

from decant.wire import ErrorBody, ErrorType, error_object, parse_error, sse_event

_TYPES: Mapping[int, ErrorType] = {
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
    504: "timeout_error",
}
# llama.cpp says what is wrong in `type` and repeats the status in `code`.
_CODES: Mapping[str, str] = {"exceed_context_size_error": "context_length_exceeded"}
_KEPT_HEADERS = ("retry-after", "retry-after-ms", "x-should-retry")


class ApiFault(Exception):
    """A request that gets an error answer instead of a completion."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: ErrorType = "invalid_request_error",  # noqa: A002 - OpenAI's name for it
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers = dict(headers or {})
        self._object = error_object(message, type, param, code)

    def body(self) -> bytes:
        """The JSON body."""
        return json.dumps(self._object).encode()

    def response(self) -> Response:
        """The whole answer."""
        return Response(self.body(), self.status, self.headers, "application/json")

    def event(self) -> bytes:
        """The same inside a stream that has begun."""
        return sse_event(self._object)


def refusal(message: str, *, param: str | None = None, code: str | None = None) -> ApiFault:
    """A 400: the request itself is at fault."""
    return ApiFault(400, message, param=param, code=code)


def unknown_model(model: str, served: str) -> ApiFault:
    """A 404 for a model that is not served here."""
    message = f"The model `{model}` does not exist here; this server has `{served}`."
    return ApiFault(404, message, type="not_found_error", param="model", code="model_not_found")


def unavailable(reason: str, *, retry_after_s: float = 1.0) -> ApiFault:
    """A 503 that a client may retry: the engine is down or died under the request."""
    headers = {"Retry-After": str(max(1, round(retry_after_s))), "x-should-retry": "true"}
    return ApiFault(503, reason, type="server_error", code="engine_unavailable", headers=headers)


def overloaded(limit: int) -> ApiFault:
    """A 429: the queue is full."""
    headers = {"Retry-After": "1", "retry-after-ms": "1000"}
    message = f"{limit} requests are waiting already; try again later."
    return ApiFault(429, message, type="rate_limit_error", code="queue_full", headers=headers)


def timed_out(limit_s: float) -> ApiFault:
    """A 504: the engine did not finish in time."""
    message = f"The engine did not answer within {limit_s:g} s."
    return ApiFault(504, message, type="timeout_error", code="engine_timeout")


def from_engine(status: int, body: bytes, headers: Mapping[str, str]) -> ApiFault:
    """An engine's own error answer, in OpenAI's words whatever shape it came in."""
    try:
        error = parse_error(json.loads(body))
    except ValueError:
        error = None
    error = error or ErrorBody(message=body.decode("utf-8", "replace").strip()[:300] or f"status {status}")
    code = error.code if isinstance(error.code, str) else _CODES.get(error.type or "")
    kind = _TYPES.get(status, "invalid_request_error" if 400 <= status < 500 else "server_error")
    kept = {name: headers[name] for name in _KEPT_HEADERS if name in headers}
    return ApiFault(status, error.message, type=kind, param=error.param, code=code, headers=kept)
