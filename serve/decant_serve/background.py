"""One request through the gateway's own routes, from inside: checked, timed and counted like any other."""

import asyncio
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Scope

from decant_serve.access import Key
from decant_serve.rate_limit import RateLimit

_NOT_ANSWERED = 499
_FAILED = 500


@dataclass(frozen=True, slots=True)
class Answered:
    """What came back; status 499 when it was stopped before."""

    status: int
    body: bytes


def unlimited_key(name: str | None) -> Key | None:
    """A key of that name for the records, whose limits are left to requests that somebody waits for."""
    if name is None:
        return None
    return Key(name, b"", RateLimit(requests_per_minute=None, tokens_per_minute=None))


async def ask(
    app: ASGIApp, path: str, body: bytes, *, request_id: str, key: Key | None, stopped: asyncio.Event
) -> Answered:
    """POSTs a body; when `stopped` is set the request ends as if its client had gone away."""
    status, answer, is_read = _NOT_ANSWERED, bytearray(), False

    async def receive() -> Message:
        nonlocal is_read
        if is_read:
            await stopped.wait()
            return {"type": "http.disconnect"}
        is_read = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        else:
            answer.extend(message.get("body", b""))

    scope: Scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())],
        "client": None,
        "server": None,
        "state": {"request_id": request_id, "key": key},
    }
    try:
        await app(scope, receive, send)
    except Exception:  # noqa: BLE001 - a server's boundary: the application has logged it and answered 500
        status = _FAILED
    return Answered(status, bytes(answer))
