"""A client that does as little as it can: a connection that is kept, times by the kernel's stamps."""

import asyncio
import json
import re
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from decant.arrival import Received, stamp_arrivals
from decant.wire_connection import ConnectionBroken, WireConnection

_CONTENT = re.compile(rb'"content": ?"[^"]')
_TOKENS = re.compile(rb'"completion_tokens": ?(\d+)')
# As much as the pattern for content needs.
_LOOK_BACK_BYTES = 16


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens: a port of loopback, or a Unix socket. `model` is what it calls its model.

    `process_id` is that of the process that answers.
    """

    model: str
    port: int | None = None
    socket: str | None = None
    key: str = "none"
    process_id: int | None = None


@dataclass(frozen=True, slots=True)
class Answered:
    """One request's times in seconds from its first byte sent, and its tokens; `fault` where it failed."""

    ttft_s: float | None
    e2e_s: float
    tokens: int
    fault: str | None = None


@dataclass(frozen=True, slots=True)
class Round:
    """What became of one round of requests on one side."""

    answered: tuple[Answered, ...]
    wall_s: float

    @property
    def good(self) -> tuple[Answered, ...]:
        """Those that were answered whole."""
        return tuple(one for one in self.answered if one.fault is None)

    @property
    def said(self) -> str:
        """The round in a line."""
        failed = len(self.answered) - len(self.good)
        rates = f"{self.tokens_per_s:.1f} tokens and {self.requests_per_s:.1f} requests per second"
        return f"{rates}, {failed} of {len(self.answered)} failed"

    @property
    def tokens_per_s(self) -> float:
        """Tokens of whole answers over the round's time."""
        return sum(one.tokens for one in self.good) / self.wall_s

    @property
    def requests_per_s(self) -> float:
        """Whole answers over the round's time."""
        return len(self.good) / self.wall_s


async def one_round(
    address: Address, bodies: Sequence[dict[str, Any]], *, streams: int, limit_s: float
) -> Round:
    """Asks for all bodies with `streams` clients in a closed loop, each with a connection that it keeps."""
    waiting = list(reversed(bodies))
    answered: list[Answered] = []

    async def ask_in_turn() -> None:
        client = _Client(address, limit_s=limit_s)
        while waiting:
            answered.append(await client.ask(waiting.pop()))
        client.close()

    began_s = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(streams):
            group.create_task(ask_in_turn())
    return Round(tuple(answered), time.perf_counter() - began_s)


class _Client:
    """Asks one thing at a time."""

    def __init__(self, address: Address, *, limit_s: float) -> None:
        self._address = address
        self._limit_s = limit_s
        self._connection: WireConnection | None = None
        self._head = (
            "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            f"authorization: Bearer {address.key}\r\n"
        )

    async def ask(self, body: Mapping[str, Any]) -> Answered:
        """One chat; what goes wrong is a fault, never an exception."""
        content = json.dumps({**body, "model": self._address.model}).encode()
        request = f"{self._head}content-length: {len(content)}\r\n\r\n".encode() + content
        began_s = time.perf_counter()
        try:
            async with asyncio.timeout(self._limit_s):
                return _judged(await self._exchange(request), began_s)
        except (OSError, TimeoutError, ConnectionBroken) as error:
            return Answered(None, time.perf_counter() - began_s, 0, type(error).__name__)

    def close(self) -> None:
        """Closes the connection."""
        if self._connection is not None:
            self._connection.close()

    async def _exchange(self, request: bytes) -> Received:
        if self._connection is not None and self._connection.reusable:
            try:
                return await self._connection.exchange(request, on_sent=_forget)
            except ConnectionBroken as error:
                # Some servers close after an answer; that is no failure of this request.
                if error.began:
                    raise
        self._connection = await _connected(self._address)
        return await self._connection.exchange(request, on_sent=_forget)


def _forget(_: object) -> None:
    """What nobody wants to know."""


async def _connected(address: Address) -> WireConnection:
    sock = socket.socket(socket.AF_UNIX if address.socket else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        if not address.socket:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            stamp_arrivals(sock)
        place: Any = address.socket or ("127.0.0.1", address.port)
        await asyncio.get_running_loop().sock_connect(sock, place)
    except BaseException:
        sock.close()
        raise
    return WireConnection(sock, _forget)


def _judged(received: Received, began_s: float) -> Answered:
    times_s = [at_s - began_s for at_s, _ in received.pieces]
    e2e_s = times_s[-1] if times_s else received.began_s - began_s
    if received.status != 200 or received.fault is not None:
        return Answered(None, e2e_s, 0, f"status {received.status}, {received.fault or 'whole'}")
    first_s, tail = None, b""
    for at_s, (_, piece) in zip(times_s, received.pieces, strict=True):
        tail = (tail + piece)[-len(piece) - _LOOK_BACK_BYTES :]
        if _CONTENT.search(tail):
            first_s = at_s
            break
    text = b"".join(piece for _, piece in received.pieces)
    # llama_cpp.server streams no usage: there each chunk with text is a token.
    told = _TOKENS.findall(text)
    tokens = int(told[-1]) if told else len(_CONTENT.findall(text))
    return Answered(first_s, e2e_s, tokens, None if tokens else "no answer")
