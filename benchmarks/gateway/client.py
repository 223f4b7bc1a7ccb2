"""A client that does as little as it can: one request per connection, times at each read."""

import asyncio
import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_CONTENT = re.compile(rb'"content": ?"[^"]')
_TOKENS = re.compile(rb'"completion_tokens": ?(\d+)')
_READ_BYTES = 65536


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
    """Asks for all bodies with `streams` clients in a closed loop."""
    waiting = list(reversed(bodies))
    answered: list[Answered] = []

    async def client() -> None:
        while waiting:
            answered.append(await ask(address, waiting.pop(), limit_s=limit_s))

    began_s = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(streams):
            group.create_task(client())
    return Round(tuple(answered), time.perf_counter() - began_s)


async def ask(address: Address, body: dict[str, Any], *, limit_s: float) -> Answered:
    """One chat; what goes wrong is a fault, never an exception."""
    began_s = time.perf_counter()
    try:
        async with asyncio.timeout(limit_s):
            return await _ask(address, json.dumps({**body, "model": address.model}).encode())
    except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
        return Answered(None, time.perf_counter() - began_s, 0, type(error).__name__)


async def _ask(address: Address, body: bytes) -> Answered:
    if address.socket:
        reader, writer = await asyncio.open_unix_connection(address.socket)
    else:
        reader, writer = await asyncio.open_connection("127.0.0.1", address.port)
    try:
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            f"authorization: Bearer {address.key}\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        began_s = time.perf_counter()
        writer.write(head.encode() + body)
        received, first_s = b"", None
        while part := await reader.read(_READ_BYTES):
            received += part
            if first_s is None and _CONTENT.search(received):
                first_s = time.perf_counter() - began_s
        return _judged(received, first_s, time.perf_counter() - began_s)
    finally:
        writer.close()


def _judged(received: bytes, first_s: float | None, e2e_s: float) -> Answered:
    status = received.split(b" ", 2)[1:2]
    if status != [b"200"]:
        return Answered(None, e2e_s, 0, f"status {b''.join(status).decode('latin-1')}")
    # llama_cpp.server streams no usage: there each chunk with text is a token.
    told = _TOKENS.findall(received)
    tokens = int(told[-1]) if told else len(_CONTENT.findall(received))
    return Answered(first_s, e2e_s, tokens, None if tokens else "no answer")
