"""The load client: what its stamps mean, and what each way of failing becomes."""

import asyncio
import json
import socket
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from decant.client import ApiError, OpenAIClient
from decant.errors import ConfigError
from decant.wire_client import WireClient, open_load_client, stamps_of

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter, int], Awaitable[None]]
REQUEST = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def event(text: str = "", *, finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": text} if text else {}, "finish_reason": finish}
    return chunk(b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n")


def chunk(content: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(content), content)


END = event(finish="stop") + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"


@asynccontextmanager
async def client_of(answer: Answer, *, timeout_s: float = 10.0) -> AsyncGenerator[WireClient]:
    """A client of a server that answers its n-th request on a connection so, until the answer closes it."""

    handlers: list[asyncio.Task[Any]] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        handlers.append(task)
        number = 0
        with suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            while not writer.is_closing():
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(int(x.split(b":")[1]) for x in head.split(b"\r\n") if b"content-length" in x)
                await reader.readexactly(length)
                await answer(reader, writer, number)
                number += 1
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    async with server:
        async with WireClient(url, api_key=None, timeout_s=timeout_s) as client:
            yield client
        for task in handlers:
            task.cancel()
        await asyncio.gather(*handlers)


def saying(*parts: bytes, close: bool = False) -> Answer:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter, __: int) -> None:
        for part in parts:
            writer.write(part)
            await writer.drain()
        if close:
            writer.close()

    return answer


async def test_a_busy_client_does_not_make_an_event_late() -> None:
    wrote_s: list[float] = []

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter, __: int) -> None:
        for text in ("one", "two"):
            await asyncio.sleep(0.05)
            wrote_s.append(time.perf_counter())
            writer.write((HEAD if text == "one" else b"") + event(text))
        writer.write(END)
        time.sleep(0.2)  # noqa: ASYNC251 - client and server share this thread: neither reads meanwhile

    async with client_of(answer) as client:
        timing = (await client.chat(REQUEST)).timing
    arrived_s = timing.actual_s + timing.chunk_times_s[1]
    assert 0 <= arrived_s - wrote_s[1] < 0.15, "the kernel stamped it while nobody could read"


async def test_events_cut_anywhere_and_several_in_one_read_are_all_there() -> None:
    whole = b"".join(event(text) for text in ("a", "b", "c")) + chunk(b": a comment\n\n") + END
    cut = [whole[start : start + 7] for start in range(0, len(whole), 7)]
    async with client_of(saying(HEAD, *cut)) as client:
        first = await client.chat(REQUEST)
        again = await client.chat(REQUEST)
    assert (first.text, again.text, len(first.timing.chunk_times_s)) == ("abc", "abc", 3)
    assert list(first.timing.chunk_times_s) == sorted(first.timing.chunk_times_s)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (saying(b"HTTP/1.1 401 No\r\ncontent-length: 2\r\n\r\n{}"), "auth"),
        (saying(b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n"), "server_error"),
        (saying(HEAD, chunk(b"data: {]\n\n"), b"0\r\n\r\n"), "bad_response"),
        (saying(HEAD, event("half"), close=True), "stream_broken"),
        (saying(HEAD, close=True), "reset"),
        (saying(b"SSH-2.0-OpenSSH_9.2\r\n", close=True), "reset"),
        (saying(close=True), "reset"),
        (saying(HEAD, event("half")), "timeout"),
    ],
)
async def test_each_way_of_failing_has_its_kind(answer: Answer, kind: str) -> None:
    async with client_of(answer, timeout_s=0.6) as client:
        with pytest.raises(ApiError) as caught:
            await client.chat(REQUEST)
    assert caught.value.kind == kind
    assert caught.value.timing is not None
    if kind in ("stream_broken", "timeout"):
        assert caught.value.timing.ttft_s is not None, "how far it came is kept"


async def test_a_connection_that_the_server_closed_meanwhile_is_no_failure() -> None:
    served: list[int] = []

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        served.append(number)
        if number == 1:
            writer.close()  # after the request was sent on a connection that is used again
            return
        await saying(HEAD, event("x"), END)(_, writer, number)

    async with client_of(answer) as client:
        texts = [(await client.chat(REQUEST)).text for _ in range(3)]
    assert texts == ["x", "x", "x"]
    assert served == [0, 1, 0, 1, 0]


async def test_a_stream_whose_end_never_comes_is_whole_after_done() -> None:
    async with client_of(saying(HEAD, event("x"), chunk(b"data: [DONE]\n\n"))) as client:
        assert (await client.chat(REQUEST)).text == "x"


async def test_a_server_that_listens_on_ipv6_alone_is_found_under_localhost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    families = (socket.AF_INET6, socket.AF_INET)

    async def both(_: object, host: str, port: int, **__: object) -> list[Any]:
        # What a machine answers whose localhost is both; here it may be only one.
        return [
            (family, 1, 6, "", (("::1" if family is socket.AF_INET6 else "127.0.0.1"), port))
            for family in families
        ]

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await saying(HEAD, event("six"), END, close=True)(reader, writer, 0)
        await writer.wait_closed()

    monkeypatch.setattr(type(asyncio.get_running_loop()), "getaddrinfo", both)
    server = await asyncio.start_server(handle, sock=_bound_to_ipv6())
    url = f"http://localhost:{server.sockets[0].getsockname()[1]}/v1"
    async with server, WireClient(url, api_key=None, timeout_s=5.0) as client:
        assert (await client.chat(REQUEST)).text == "six"


def _bound_to_ipv6() -> socket.socket:
    sock = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    try:
        sock.bind(("::1", 0))
    except OSError:
        sock.close()
        pytest.skip("this machine has no IPv6 loopback")
    return sock


async def test_nothing_listens_there() -> None:
    async with WireClient("http://127.0.0.1:9/v1", api_key=None, timeout_s=5.0) as client:
        with pytest.raises(ApiError, match=r"POST http://127.0.0.1:9/v1/chat/completions: connect: "):
            await client.chat(REQUEST)


async def test_what_the_kernel_cannot_stamp_is_said_to_be_stamped_when_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert stamps_of("http://127.0.0.1:8000/v1") == "kernel"
    assert stamps_of("https://api.example.com/v1") == "read"
    assert stamps_of("http://me:secret@127.0.0.1/v1") == "read"
    monkeypatch.setenv("http_proxy", "http://proxy.example.com:3128")
    assert stamps_of("http://api.example.com/v1") == "read"
    assert stamps_of("http://127.0.0.1:8000/v1") == "kernel"
    async with open_load_client("https://api.example.com/v1", api_key=None, timeout_s=1.0) as client:
        assert isinstance(client, OpenAIClient)


def test_a_key_that_no_header_can_carry_is_refused_before_the_run() -> None:
    with pytest.raises(ConfigError, match="characters that a header cannot carry"):
        WireClient("http://127.0.0.1:9/v1", api_key="secret\n", timeout_s=1.0)


async def test_both_clients_ask_the_same_and_neither_for_several_answers() -> None:
    asked: list[dict[str, Any]] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        asked.append(
            json.loads(await reader.readexactly(int(head.partition(b"content-length: ")[2].split()[0])))
        )
        writer.write(HEAD + event("hi") + END)
        writer.close()

    request = {**REQUEST, "stream_options": {"include_obfuscation": False}}
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    async with server:
        for kind in (WireClient, OpenAIClient):
            async with kind(url, api_key=None, timeout_s=30.0) as client:
                assert (await client.chat(request)).text == "hi"
                with pytest.raises(ConfigError, match="n=2"):
                    await client.chat({**request, "n": 2})
    assert asked[0] == asked[1]
    assert asked[0]["stream_options"] == {"include_usage": True, "include_obfuscation": False}
