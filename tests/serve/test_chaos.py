"""Things that go wrong under load, with counts of what became of every request and of what is left."""

import asyncio
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

pytestmark = pytest.mark.timeout(240)

LONG = {"match": "long", "chunks": ["x"] * 400, "gaps_s": [0.05]}
SHORT = {"match": "short", "chunks": ["a", "b"], "gaps_s": [0.3]}


@pytest.fixture(scope="module")
def server(serve_for_session: Callable[..., Any], write_script: Callable[..., Path]) -> Iterator[Any]:
    """Room for many."""
    with serve_for_session(write_script(LONG, SHORT, {"chunks": ["fine"]}), "--parallel", 64) as running:
        yield running


@pytest.fixture
async def clients(server: Any) -> AsyncIterator[httpx.AsyncClient]:
    limits = httpx.Limits(max_connections=100)
    async with httpx.AsyncClient(base_url=server.base_url, timeout=30.0, limits=limits) as client:
        yield client


def body(server: Any, question: str) -> dict[str, Any]:
    return {"model": server.model, "messages": [{"role": "user", "content": question}], "stream": True}


def open_files(process_id: int) -> int:
    return sum(1 for _ in Path(f"/proc/{process_id}/fd").iterdir())


def left_behind(server: Any) -> dict[str, int]:
    """What the processes hold, while nobody asks for anything."""
    health = server.http.get("/health").json()
    return {
        **health["requests"],
        "tasks": health["tasks"],
        "gateway files": open_files(server.process.pid),
        "engine files": open_files(server.engine_process()),
    }


def more_than(before: dict[str, int], server: Any) -> dict[str, int]:
    """What there is more of than before, once nothing goes away any more."""
    give_up_at = time.monotonic() + 15
    while True:
        after = left_behind(server)
        more = {what: after[what] - count for what, count in before.items() if after[what] > count}
        if not more or time.monotonic() > give_up_at:
            return more
        time.sleep(0.05)


async def test_fifty_clients_that_leave_in_mid_stream_leave_nothing_behind(
    server: Any, clients: httpx.AsyncClient
) -> None:
    server.chat("hi")
    await asyncio.sleep(0.2)
    before = left_behind(server)
    all_there = asyncio.Barrier(50)

    async def leave_early() -> None:
        async with clients.stream("POST", "/chat/completions", json=body(server, "long")) as response:
            await anext(response.aiter_raw())
            await all_there.wait()

    async with asyncio.TaskGroup() as group:
        for _ in range(50):
            group.create_task(leave_early())
    assert await asyncio.to_thread(more_than, before, server) == {}


async def test_an_engine_killed_under_its_streams_is_a_clean_error_in_each_and_comes_back(
    server: Any, clients: httpx.AsyncClient
) -> None:
    for kills in (1, 2):
        started = asyncio.Barrier(9)

        async def ending(started: asyncio.Barrier = started) -> str:
            async with clients.stream("POST", "/chat/completions", json=body(server, "long")) as response:
                pieces = response.aiter_text()
                text = await anext(pieces)
                await started.wait()
                return text + "".join([piece async for piece in pieces])

        asked = [asyncio.create_task(ending()) for _ in range(8)]
        await started.wait()
        os.kill(server.engine_process(), signal.SIGKILL)
        ends = [text.strip().rpartition("data: ")[2] for text in await asyncio.gather(*asked)]
        assert Counter(json.loads(end)["error"]["code"] for end in ends) == {"engine_unavailable": 8}
        # The official client needs no help to get over it.
        async with openai.AsyncOpenAI(base_url=server.base_url, api_key="none", max_retries=8) as client:
            messages: Any = [{"role": "user", "content": "hi"}]
            answer = await client.chat.completions.create(model=server.model, messages=messages)
        assert answer.choices[0].message.content == "fine"
        assert server.http.get("/health").json()["models"][server.model]["restarts"] == kills


async def test_of_an_overload_some_are_answered_and_the_others_told_when_to_come_back(
    serve: Callable[..., Any], write_script: Callable[..., Path]
) -> None:
    with serve(write_script(SHORT), "--parallel", 2, "--queue-limit", 3) as server:
        async with httpx.AsyncClient(base_url=server.base_url, timeout=30.0) as clients:
            asked = [clients.post("/chat/completions", json=body(server, "short")) for _ in range(20)]
            answers = await asyncio.gather(*asked)
        statuses = Counter(answer.status_code for answer in answers)
        assert set(statuses) == {200, 429}
        assert 5 <= statuses[200] < 20
        assert all("retry-after-ms" in answer.headers for answer in answers if answer.status_code == 429)
        async with openai.AsyncOpenAI(base_url=server.base_url, api_key="none", max_retries=20) as client:
            messages: Any = [{"role": "user", "content": "short"}]
            create = client.chat.completions.create
            retried = await asyncio.gather(*(create(model=server.model, messages=messages) for _ in range(8)))
        assert [answer.choices[0].message.content for answer in retried] == ["ab"] * 8


async def test_a_drain_lets_every_stream_finish(
    serve: Callable[..., Any], write_script: Callable[..., Path]
) -> None:
    script = write_script({"chunks": ["x"] * 10, "gaps_s": [0.1]})
    with serve(script, "--parallel", 16) as server:
        async with httpx.AsyncClient(base_url=server.base_url, timeout=30.0) as clients:
            started = asyncio.Barrier(17)

            async def whole() -> str:
                async with clients.stream("POST", "/chat/completions", json=body(server, "hi")) as response:
                    pieces = response.aiter_text()
                    text = await anext(pieces)
                    await started.wait()
                    return text + "".join([piece async for piece in pieces])

            asked = [asyncio.create_task(whole()) for _ in range(16)]
            await started.wait()
            server.process.send_signal(signal.SIGTERM)
            texts = await asyncio.gather(*asked)
        assert Counter(text.endswith("data: [DONE]\n\n") for text in texts) == {True: 16}
        assert await asyncio.to_thread(server.process.wait, 20) == 0


def resident_mib(process_id: int) -> float:
    """Memory of a process, in MiB."""
    pages = int(Path(f"/proc/{process_id}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


async def leave_in_mid_stream(server: Any, count: int, *, at_once: int) -> None:
    """`count` clients that read the first event and close their connection, `at_once` of them together."""
    port = httpx.URL(server.base_url).port
    text = json.dumps(body(server, "long"))
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(text)}\r\n\r\n"
    room = asyncio.Semaphore(at_once)

    async def leave() -> None:
        async with room:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write((head + text).encode())
            await reader.readuntil(b"data: ")
            writer.transport.abort()

    async with asyncio.TaskGroup() as group:
        for _ in range(count):
            group.create_task(leave())


@pytest.mark.slow
async def test_a_thousand_clients_that_leave_in_mid_stream_leave_nothing_behind(server: Any) -> None:
    # What is allocated once, and the records that are kept, are there before the count begins.
    await leave_in_mid_stream(server, 300, at_once=50)
    await asyncio.sleep(0.5)
    before, memory_mib = left_behind(server), resident_mib(server.process.pid)
    await leave_in_mid_stream(server, 1000, at_once=50)
    more = await asyncio.to_thread(more_than, before, server)
    grown_mib = resident_mib(server.process.pid) - memory_mib
    sys.stdout.write(f"after 1,000 disconnects: {left_behind(server)}, memory {grown_mib:+.1f} MiB\n")
    assert more == {}
    # Of each request the timing record stays, at most 2,000 of them; see the timing log.
    assert grown_mib < 16
