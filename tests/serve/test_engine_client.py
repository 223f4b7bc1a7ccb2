"""The way to an engine: what it makes of answers in every shape HTTP allows, and of those that break off."""

import asyncio
import gzip
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from decant_serve.engine_client import EngineAnswer, EngineClient
from decant_serve.engine_connection import EngineLost
from decant_serve.engines.protocol import Upstream

LENGTH = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class RawEngine:
    """Says what its script says on each connection; `requests` holds the bodies that came, by connection."""

    def __init__(self, script: Script, socket: Path) -> None:
        self.requests: list[list[bytes]] = []
        self.socket = socket
        self._script = script

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        bodies: list[bytes] = []
        self.requests.append(bodies)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
                bodies.append(await reader.readexactly(length))
                await self._script(reader, writer)
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def engine(
    tmp_path: Path, script: Script, *, keeps: bool = True
) -> AsyncGenerator[tuple[RawEngine, EngineClient]]:
    raw = RawEngine(script, tmp_path / "e.sock")
    server = await asyncio.start_unix_server(raw.serve, raw.socket)
    client = EngineClient(Upstream("http://engine", raw.socket, keeps_connections=keeps))
    try:
        yield raw, client
    finally:
        client.close()
        server.close()


def says(*parts: bytes, then_close: bool = False) -> Script:
    async def script(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for part in parts:
            writer.write(part)
            await writer.drain()
        if then_close:
            raise ConnectionError

    return script


async def ask(client: EngineClient, body: bytes = b"{}") -> EngineAnswer:
    return await client.ask("/v1/chat/completions", body, {"x-request-id": "r"})


async def whole(client: EngineClient) -> bytes:
    answer = await ask(client)
    try:
        return await answer.whole()
    finally:
        answer.close()


async def test_requests_that_follow_each_other_share_a_connection(tmp_path: Path) -> None:
    async with engine(tmp_path, says(LENGTH)) as (raw, client):
        assert [await whole(client) for _ in range(3)] == [b"hello"] * 3
        assert raw.requests == [[b"{}"] * 3]


async def test_requests_at_once_have_a_connection_each(tmp_path: Path) -> None:
    async with engine(tmp_path, says(LENGTH)) as (raw, client):
        answers = [await ask(client) for _ in range(3)]
        assert len(raw.requests) == 3
        for answer in answers:
            assert await answer.whole() == b"hello"
            answer.close()


@pytest.mark.parametrize(
    "said",
    [
        CHUNKED + b"3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n",
        CHUNKED + b"5;x=y\r\nhello\r\n0\r\ntrailer: t\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\nx: y\r\n\r\n" + LENGTH,
    ],
    ids=["chunked", "with a trailer", "after an interim answer"],
)
@pytest.mark.parametrize("size", [1, 1000])
async def test_a_body_is_read_however_it_is_framed_and_cut(tmp_path: Path, said: bytes, size: int) -> None:
    parts = [said[at : at + size] for at in range(0, len(said), size)]
    async with engine(tmp_path, says(*parts)) as (raw, client):
        assert [await whole(client) for _ in range(2)] == [b"hello"] * 2
        assert len(raw.requests) == 1


@pytest.mark.parametrize(
    "said",
    [b"HTTP/1.1 200 OK\r\n\r\nhello", b"HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\nhello"],
    ids=["no length", "HTTP/1.0"],
)
async def test_an_answer_that_ends_its_connection_is_whole(tmp_path: Path, said: bytes) -> None:
    async with engine(tmp_path, says(said, then_close=True)) as (raw, client):
        assert [await whole(client) for _ in range(2)] == [b"hello"] * 2
        assert len(raw.requests) == 2


async def test_an_engine_that_closes_after_its_answers_gets_a_new_connection_each_time(
    tmp_path: Path,
) -> None:
    async with engine(tmp_path, says(LENGTH), keeps=False) as (raw, client):
        assert [await whole(client) for _ in range(2)] == [b"hello"] * 2
        assert len(raw.requests) == 2


async def test_a_kept_connection_that_ends_unanswered_is_replaced_once(tmp_path: Path) -> None:
    async def first_of_each(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(raw.requests[-1]) == 2:
            raise ConnectionError
        writer.write(LENGTH)

    async with engine(tmp_path, first_of_each) as (raw, client):
        assert [await whole(client) for _ in range(2)] == [b"hello"] * 2
        assert raw.requests == [[b"{}", b"{}"], [b"{}"]]


async def test_an_answer_that_began_is_never_asked_for_again(tmp_path: Path) -> None:
    async def second_is_cut(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(raw.requests[-1]) == 2:
            writer.write(b"HTTP/1.1 2")
            raise ConnectionError
        writer.write(LENGTH)

    async with engine(tmp_path, second_is_cut) as (raw, client):
        await whole(client)
        with pytest.raises(EngineLost) as lost:
            await ask(client)
        assert lost.value.began
        assert len(raw.requests) == 1


async def test_a_new_connection_that_ends_unanswered_is_an_error(tmp_path: Path) -> None:
    async with engine(tmp_path, says(then_close=True)) as (raw, client):
        with pytest.raises(EngineLost, match="closed the connection"):
            await ask(client)
        assert len(raw.requests) == 1


@pytest.mark.parametrize("said", [LENGTH[:-1], CHUNKED + b"4\r\nhell\r\n"], ids=["length", "chunked"])
async def test_what_came_before_a_break_is_given_and_then_the_error(tmp_path: Path, said: bytes) -> None:
    async with engine(tmp_path, says(said, then_close=True)) as (_, client):
        answer = await ask(client)
        assert [part for _, part in await answer.pieces()] == [b"hell"]
        with pytest.raises(EngineLost):
            await answer.pieces()
        answer.close()


@pytest.mark.parametrize(
    "said",
    [
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"x: " + b"y" * 300_000,
        b"HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-encoding: br\r\ncontent-length: 1\r\n\r\nx",
    ],
    ids=["no HTTP", "endless headers", "another protocol", "unknown encoding"],
)
async def test_what_is_no_answer_is_an_error(tmp_path: Path, said: bytes) -> None:
    async with engine(tmp_path, says(said)) as (_, client):
        with pytest.raises(EngineLost):
            await ask(client)


async def test_bytes_after_an_answer_end_its_connection(tmp_path: Path) -> None:
    async with engine(tmp_path, says(LENGTH + LENGTH)) as (raw, client):
        assert [await whole(client) for _ in range(2)] == [b"hello"] * 2
        assert len(raw.requests) == 2


async def test_an_answer_that_was_compressed_unasked_is_read(tmp_path: Path) -> None:
    packed = gzip.compress(b"hello")
    head = f"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: {len(packed)}\r\n\r\n".encode()
    async with engine(tmp_path, says(head, packed[:9], packed[9:])) as (_, client):
        assert await whole(client) == b"hello"


async def test_an_answer_that_is_given_up_ends_its_connection_at_once(tmp_path: Path) -> None:
    gone = asyncio.Event()

    async def for_ever(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED + b"1\r\nx\r\n")
        assert await reader.read() == b""
        gone.set()

    async with engine(tmp_path, for_ever) as (_, client):
        answer = await ask(client)
        assert await answer.pieces()
        answer.close()
        await asyncio.wait_for(gone.wait(), 30)


async def test_a_request_that_is_cancelled_before_its_answer_ends_its_connection(tmp_path: Path) -> None:
    came, gone = asyncio.Event(), asyncio.Event()

    async def silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        came.set()
        await reader.read()
        gone.set()

    async with engine(tmp_path, silent) as (_, client):
        asked = asyncio.create_task(ask(client))
        await asyncio.wait_for(came.wait(), 30)
        asked.cancel()
        await asyncio.wait_for(gone.wait(), 30)


async def test_an_engine_is_not_read_faster_than_its_client_takes_it(tmp_path: Path) -> None:
    sent = 0

    async def plenty(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(CHUNKED)
        for _ in range(512):
            writer.write(b"8000\r\n" + b"x" * 0x8000 + b"\r\n")
            await writer.drain()
            sent += 0x8000
        writer.write(b"0\r\n\r\n")

    async with engine(tmp_path, plenty) as (_, client):
        answer = await ask(client)
        before = -1
        while before != sent:
            before = sent
            await asyncio.sleep(0.1)
        assert sent < 4 * 2**20
        assert len(await answer.whole()) == 16 * 2**20
        answer.close()


async def test_nobody_at_the_address_and_no_tls_there_are_errors(tmp_path: Path) -> None:
    with pytest.raises(EngineLost, match="no connection"):
        await ask(EngineClient(Upstream("http://engine", tmp_path / "nobody.sock")))
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with pytest.raises(EngineLost, match="no connection"):
        await ask(EngineClient(Upstream(f"https://127.0.0.1:{port}", None)))
    server.close()


async def test_the_way_and_the_keys_of_a_remote_endpoint_are_kept() -> None:
    heads: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(LENGTH)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    upstream = Upstream(f"http://127.0.0.1:{port}/a/b", None, headers={"Authorization": "Bearer key"})
    await whole(EngineClient(upstream))
    server.close()
    lines = heads[0].split(b"\r\n")
    assert lines[0] == b"POST /a/b/v1/chat/completions HTTP/1.1"
    assert {f"host: 127.0.0.1:{port}".encode(), b"authorization: Bearer key"} < set(lines)
