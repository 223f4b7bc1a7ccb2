"""Refusals and failures in OpenAI's shape: an exception, and the response or stream event it becomes."""

import json
import math
from collections.abc import Iterable, Mapping

from starlette.responses import Response

from decant.wire import ErrorBody, ErrorType, error_object, parse_error, sse_event

_TYPES: Mapping[int, ErrorType] = {
    401: "authentication_error",
    403: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
    504: "timeout_error",
}
# llama.cpp says what is wrong in `type` and repeats the status in `code`.
_CODES: Mapping[str, str] = {"exceed_context_size_error": "context_length_exceeded"}
# What llama.cpp answers with a 500 to an input for an embedding that is longer than its batch.
_TOO_LONG_TO_POOL = "is too large to process. increase the physical batch size"
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
        self.message = message
        self.kind: ErrorType = type
        self.param = param
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


def invalid_value(where: str, fault: str) -> ApiFault:
    """A 400 for a parameter whose value is at fault."""
    return refusal(f"{where}: {fault}", param=where, code="invalid_value")


def unauthorized() -> ApiFault:
    """A 401: no API key, or none that is known here."""
    message = "Incorrect or missing API key; send it as `Authorization: Bearer KEY`."
    headers = {"WWW-Authenticate": "Bearer"}
    return ApiFault(401, message, type="authentication_error", code="invalid_api_key", headers=headers)


def unknown_model(model: str, served: Iterable[str]) -> ApiFault:
    """A 404 for a model that is not served here."""
    names = ", ".join(f"`{name}`" for name in served)
    message = f"The model `{model}` does not exist here; this server has {names}."
    return ApiFault(404, message, type="not_found_error", param="model", code="model_not_found")


def unavailable(reason: str, *, retry_after_s: float = 1.0) -> ApiFault:
    """A 503 that a client may retry: the engine is down or died under the request."""
    headers = {"Retry-After": str(max(1, round(retry_after_s))), "x-should-retry": "true"}
    return ApiFault(503, reason, type="server_error", code="engine_unavailable", headers=headers)


def shutting_down() -> ApiFault:
    """A 503 for what a server that is being stopped has not finished in time; another one may take it."""
    headers = {"Retry-After": "1", "x-should-retry": "true"}
    message = "the server is being stopped and did not finish this answer in time"
    return ApiFault(503, message, type="server_error", code="shutting_down", headers=headers)


def internal_error() -> ApiFault:
    """A 500 for a fault of our own."""
    message = "the gateway failed; its log says why"
    return ApiFault(500, message, type="server_error", code="internal_error")


def rate_limited(limit: str, wait_s: float, headers: Mapping[str, str]) -> ApiFault:
    """A 429: the key has used what it may for now."""
    message = f"This API key's limit of {limit} is reached; try again in {wait_s:.3g} s."
    waits = {"Retry-After": str(math.ceil(wait_s)), "retry-after-ms": str(math.ceil(wait_s * 1000))}
    return ApiFault(
        429, message, type="rate_limit_error", code="rate_limit_exceeded", headers={**headers, **waits}
    )


def too_large(limit_bytes: int) -> ApiFault:
    """A 413: the body is over the limit."""
    message = f"the body is larger than {limit_bytes} bytes"
    return ApiFault(413, message, code="request_too_large")


def headers_too_large(limit_bytes: int) -> ApiFault:
    """A 431: the headers are over the limit."""
    message = f"the request's headers are larger than {limit_bytes} bytes"
    return ApiFault(431, message, code="headers_too_large", headers={"Connection": "close"})


def wrong_type(kind: str) -> ApiFault:
    """A 415: the body is not said to be JSON."""
    message = f"send the body as application/json, not as {kind}"
    return ApiFault(415, message, param="Content-Type", code="unsupported_media_type")


def too_slow() -> ApiFault:
    """A 408: the body did not arrive in time."""
    return ApiFault(408, "the body did not arrive in time", code="request_timeout")


def overloaded(limit: int) -> ApiFault:
    """A 429: the queue is full."""
    headers = {"Retry-After": "1", "retry-after-ms": "1000"}
    message = f"{limit} requests are waiting already; try again later."
    return ApiFault(429, message, type="rate_limit_error", code="queue_full", headers=headers)


def timed_out(limit_s: float) -> ApiFault:
    """A 504: the engine did not finish in time."""
    message = f"The engine did not answer within {limit_s:g} s."
    return ApiFault(504, message, type="timeout_error", code="engine_timeout")


def deadline_passed(limit_s: float) -> ApiFault:
    """A 504: the time that the client itself set is over, so there is no use in trying again."""
    message = f"The answer was not there within the {limit_s:g} s that the request allowed."
    headers = {"x-should-retry": "false"}
    return ApiFault(504, message, type="timeout_error", code="deadline_exceeded", headers=headers)


def from_engine(status: int, body: bytes, headers: Mapping[str, str]) -> ApiFault:
    """An engine's own error answer, in OpenAI's words whatever shape it came in."""
    try:
        error = parse_error(json.loads(body))
    except ValueError:
        error = None
    error = error or ErrorBody(message=body.decode("utf-8", "replace").strip()[:300] or f"status {status}")
    if _TOO_LONG_TO_POOL in error.message:
        return refusal(error.message, param="input", code="context_length_exceeded")
    code = error.code if isinstance(error.code, str) else _CODES.get(error.type or "")
    # vLLM has OpenAI's words for it, and no code.
    if code is None and error.message.startswith("This model's maximum context length"):
        code = "context_length_exceeded"
    kind = _TYPES.get(status, "invalid_request_error" if 400 <= status < 500 else "server_error")
    kept = {name: headers[name] for name in _KEPT_HEADERS if name in headers}
    return ApiFault(status, error.message, type=kind, param=error.param, code=code, headers=kept)
