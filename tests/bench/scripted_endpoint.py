"""An endpoint that answers as it is told, when it is told."""

import asyncio
import json
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Self

USAGE = {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}


@dataclass(frozen=True)
class Reply:
    """What a request gets: an answer and when its first and last token go out, or an error."""

    text: str = "Answer: 1"
    ttft_s: float = 0.0
    e2e_s: float = 0.0
    status: int = 200
    fault: Literal["none", "garbage", "stall", "cut"] = "none"


@dataclass
class ScriptedEndpoint:
    """An HTTP endpoint; by prompt, `arrived_s` is when it was read, `wrote_s` its first and last token."""

    reply_to: Callable[[str], Reply]
    slots: int = 1000
    prompts: list[str] = field(default_factory=list)
    arrived_s: dict[str, float] = field(default_factory=dict)
    wrote_s: dict[str, tuple[float, ...]] = field(default_factory=dict)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    most_at_once: int = 0
    base_url: str = ""
    _at_once: int = 0

    @property
    def config(self) -> dict[str, Any]:
        """How an endpoint config names it."""
        return {"base_url": self.base_url, "model": "scripted", "request_timeout_s": 20.0}

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        lengths = [line.split(b":")[1] for line in head.lower().split(b"\r\n") if b"content-length" in line]
        body = await reader.readexactly(int(lengths[0])) if lengths else b""
        arrived_s = time.perf_counter()
        if not body:
            head = b"HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\nconnection: close\r\n\r\n"
            await self._say(writer, head + b"{}")
            return
        self.bodies.append(json.loads(body))
        asked = self.bodies[-1]
        prompt = asked["messages"][-1]["content"] if "messages" in asked else asked["prompt"]
        self.prompts.append(prompt)
        self.arrived_s[prompt] = arrived_s
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        async with self._free:
            await self._answer(reader, writer, prompt, time.perf_counter())
        self._at_once -= 1

    async def _answer(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, prompt: str, start_s: float
    ) -> None:
        reply = self.reply_to(prompt)
        if reply.status != 200:
            body = json.dumps({"error": {"message": "scripted", "type": "server_error"}}).encode()
            head = f"HTTP/1.1 {reply.status} No\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
            await self._say(writer, head.encode() + body)
            return
        if not self.bodies[-1]["stream"]:
            await asyncio.sleep(reply.e2e_s)
            body = json.dumps({"choices": [_piece(self.bodies[-1], reply.text, whole=True)], "usage": USAGE})
            head = f"HTTP/1.1 200 OK\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
            await self._say(writer, (head + body).encode())
            return
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
        if reply.fault == "garbage":
            await self._say(writer, b"data: {]\n\n")
            return
        await self._stream(reader, writer, reply, prompt, start_s)

    async def _stream(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        reply: Reply,
        prompt: str,
        start_s: float,
    ) -> None:
        asked, half = self.bodies[-1], len(reply.text) // 2
        for piece, due_s in ((reply.text[:half], reply.ttft_s), (reply.text[half:], reply.e2e_s)):
            await asyncio.sleep(start_s + due_s - time.perf_counter())
            self.wrote_s[prompt] = (*self.wrote_s.get(prompt, ()), time.perf_counter())
            writer.write(_event({"choices": [_piece(asked, piece)]}))
            if reply.fault == "stall":
                await reader.read()  # until the client gives up
                writer.close()
                return
            if reply.fault == "cut":
                await self._say(writer, b"")
                return
        writer.write(_event({"choices": [{**_piece(asked, ""), "finish_reason": "stop"}]}))
        await self._say(writer, _event({"choices": [], "usage": USAGE}) + b"data: [DONE]\n\n")

    async def _say(self, writer: asyncio.StreamWriter, content: bytes) -> None:
        writer.write(content)
        await writer.drain()
        writer.close()

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[Self]:
        """Answers until the end of the block."""
        self._free = asyncio.Semaphore(self.slots)
        server = await asyncio.start_server(self.handle, "127.0.0.1", 0)
        self.base_url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        async with server:
            yield self


def _piece(asked: dict[str, Any], text: str, *, whole: bool = False) -> dict[str, Any]:
    if "messages" not in asked:
        return {"index": 0, "text": text}
    return {"index": 0, "message" if whole else "delta": {"content": text} if text else {}}


def _event(value: object) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


@contextmanager
def serving(
    reply_to: Callable[[str], Reply] = lambda _: Reply(), *, slots: int = 1000
) -> Generator[ScriptedEndpoint]:
    """An endpoint in a thread of its own, for what runs an event loop itself."""
    endpoint, ready = ScriptedEndpoint(reply_to, slots), threading.Event()
    loop, stop = asyncio.new_event_loop(), asyncio.Event()

    async def answer() -> None:
        async with endpoint.running():
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(answer()))
    thread.start()
    try:
        assert ready.wait(10)
        yield endpoint
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()
