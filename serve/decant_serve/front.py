"""What every request passes and every answer carries: the API key, and the request's id."""

from collections.abc import Mapping

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from decant_serve.access import Access, Key
from decant_serve.exchange import request_id_of
from decant_serve.openai_errors import ApiFault, headers_too_large
from decant_serve.pages import path_of

HEAD_LIMIT_BYTES = 64 * 2**10
# Probes have no keys, and a browser opens the page before it is told one; none of them names a request.
OPEN_PATHS = frozenset({"/", "/health", "/ready"})
OPEN_FOLDER = path_of("")


class Front:
    """An ASGI application before another one: `scope["state"]` gets `request_id` and `key`."""

    def __init__(self, app: ASGIApp, *, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers with 401 itself, or hands on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = request_id_of(scope)
        stamped = _Stamped(send, request_id)
        try:
            key = self._key(scope)
        except ApiFault as fault:
            await fault.response()(scope, receive, stamped)
            return
        scope["state"] = {**_state(scope), "request_id": request_id, "key": key}
        await self._app(scope, receive, stamped)

    def _key(self, scope: Scope) -> Key | None:
        if sum(len(name) + len(value) for name, value in scope["headers"]) > HEAD_LIMIT_BYTES:
            raise headers_too_large(HEAD_LIMIT_BYTES)
        path: str = scope["path"]
        if path in OPEN_PATHS or path.startswith(OPEN_FOLDER):
            return None
        return self._access.key_of(Headers(scope=scope))


def _state(scope: Scope) -> Mapping[str, object]:
    return scope.get("state") or {}


class _Stamped:
    """Sends on, with `x-request-id` on the answer."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._header = (b"x-request-id", request_id.encode())

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), self._header]}
        await self._send(message)
