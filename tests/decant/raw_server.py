"""A server that says exactly the bytes it is told, when it is told."""

import asyncio
import json
import socket
import struct
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from decant.wire import DONE, sse_event

ASK = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
END = sse_event(DONE)

Reply = Callable[[asyncio.StreamWriter], Awaitable[None]]


def delta(*, finish: str | None = None, **fields: object) -> bytes:
    return sse_event({"model": "m", "choices": [{"index": 0, "delta": fields, "finish_reason": finish}]})


def usage(prompt: int, completion: int, cached: int | None = None) -> bytes:
    details = {} if cached is None else {"prompt_tokens_details": {"cached_tokens": cached}}
    return sse_event(
        {"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": completion, **details}}
    )


HELLO = (
    delta(role="assistant", content=""),
    delta(content="Hel"),
    delta(content="lo"),
    delta(finish="stop"),
    END,
)


def stream(*parts: bytes | float, end: bool = True) -> Reply:
    """A chunked event stream: bytes go out at once as one chunk, numbers are seconds of silence."""

    async def reply(writer: asyncio.StreamWriter) -> None:
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        for part in parts:
            if isinstance(part, bytes):
                writer.write(b"%x\r\n%b\r\n" % (len(part), part))
                await writer.drain()
            else:
                await asyncio.sleep(part)
        if end:
            writer.write(b"0\r\n\r\n")

    return reply


def answer(status: int, body: object, *headers: str) -> Reply:
    content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    kind = "text/html" if isinstance(body, str) else "application/json"
    lines = [f"HTTP/1.1 {status} X", f"content-type: {kind}", f"content-length: {len(content)}", *headers]

    async def reply(writer: asyncio.StreamWriter) -> None:
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + content)

    return reply


async def reset(writer: asyncio.StreamWriter) -> None:
    """Ends the connection with a TCP reset."""
    found: socket.socket = writer.get_extra_info("socket")
    found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def cut(reply: Reply) -> Reply:
    async def then_reset(writer: asyncio.StreamWriter) -> None:
        await reply(writer)
        await writer.drain()
        await asyncio.sleep(0.02)
        await reset(writer)

    return then_reset


@dataclass
class Server:
    """Gives the replies in turn, the last one for ever, and keeps what it was asked."""

    base_url: str
    replies: list[Reply]
    heads: list[str] = field(default_factory=list[str])
    bodies: list[Any] = field(default_factory=list[Any])
    connections: list[int] = field(default_factory=list[int])
    disconnected: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while not writer.is_closing():
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = next(
                    (int(line[15:]) for line in head.lower().split("\r\n") if line[:15] == "content-length:"),
                    0,
                )
                self.heads.append(head)
                self.bodies.append(json.loads(await reader.readexactly(length) or "null"))
                self.connections.append(writer.get_extra_info("peername")[1])
                turn = min(len(self.heads), len(self.replies)) - 1
                await self.replies[turn](writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            self.disconnected.set()
        finally:
            writer.close()


@asynccontextmanager
async def serving(*replies: Reply) -> AsyncGenerator[Server]:
    server = Server("", list(replies))
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.base_url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/v1"
    try:
        yield server
    finally:
        listening.close()
