"""`python -m gateway chaos`: what becomes of every request while things go wrong, and what is left behind.

Counts, no speeds: they hold on a machine that does other things, too.
"""

import asyncio
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from decant.files import write_json, write_text
from decant.hardware import provenance
from gateway.client import Address
from gateway.servers import gateway

_SCRIPT: Mapping[str, Any] = {
    "answers": [
        {"match": "long", "chunks": ["x"] * 400, "gaps_s": [0.05]},
        {"match": "drain", "chunks": ["x"] * 20, "gaps_s": [0.1]},
        {"match": "short", "chunks": ["a", "b"], "gaps_s": [0.3]},
        {"chunks": ["fine"]},
    ]
}
_LIMIT_S = 60.0
_SETTLE_LIMIT_S = 20.0
Row = tuple[str, str, str]
"""What was done, what was counted, and how much of it."""


async def killed(side: Address, *, kills: int, streams: int) -> list[Row]:
    """The engine is killed with SIGKILL under its streams, again and again."""
    ends: Counter[str] = Counter()
    after: Counter[str] = Counter()
    for _ in range(kills):
        events = [asyncio.Event() for _ in range(streams)]
        asked = [asyncio.create_task(_end_of(side, "long", event)) for event in events]
        await asyncio.gather(*(event.wait() for event in events))
        os.kill(_engine_of(side), signal.SIGKILL)
        ends.update(await asyncio.gather(*asked))
        after.update([await _patient(side)])
    did = f"engine killed {kills} times under {streams} streams"
    restarts = next(iter((await _health(side))["models"].values()))["restarts"]
    return [
        (did, "ends of the streams", _said(ends)),
        (did, "a request after each kill, tried until it is not a 503", _said(after)),
        (did, "restarts", str(restarts)),
    ]


async def left(side: Address, *, clients: int, at_once: int) -> list[Row]:
    """Clients close their connections in mid-stream."""
    await _leave(side, 300, at_once)  # what is allocated once, and the timing records, are there before
    before, memory_mib = await _settled(side, {}), _resident_mib(side)
    await _leave(side, clients, at_once)
    after = await _settled(side, before)
    did = f"{clients:,} clients left in mid-stream, {at_once} at once"
    kept = [(did, f"{what} before, after", f"{before[what]}, {after[what]}") for what in before]
    return [*kept, (did, "memory of the gateway, MiB", f"{_resident_mib(side) - memory_mib:+.1f}")]


async def overloaded(side: Address, *, requests: int) -> list[Row]:
    """More requests at once than slots and queue have room for."""
    async with httpx.AsyncClient(base_url=_url(side), timeout=_LIMIT_S, limits=_MANY) as client:
        body = _body(side, "short")
        answers = await asyncio.gather(
            *(client.post("/chat/completions", json=body) for _ in range(requests))
        )
    told = sum("retry-after-ms" in answer.headers for answer in answers if answer.status_code == 429)
    did = f"{requests} requests at once to 2 slots and a queue of 3"
    statuses = Counter(str(answer.status_code) for answer in answers)
    return [(did, "statuses", _said(statuses)), (did, "429 that say when to come back", str(told))]


async def drained(side: Address, *, streams: int) -> list[Row]:
    """SIGTERM under streams."""
    events = [asyncio.Event() for _ in range(streams)]
    asked = [asyncio.create_task(_end_of(side, "drain", event)) for event in events]
    await asyncio.gather(*(event.wait() for event in events))
    assert side.process_id is not None
    os.kill(side.process_id, signal.SIGTERM)
    ends = Counter(await asyncio.gather(*asked))
    did = f"SIGTERM under {streams} streams"
    return [
        (did, "ends of the streams", _said(ends)),
        (did, "a request after it", await _end_of(side, "late")),
    ]


def run_all(folder: Path) -> list[Row]:
    """Every scenario, each on a server of its own but the first two; some 90 s."""
    script = folder / "script.json"
    script.write_text(json.dumps(_SCRIPT))
    name = ("--model-name", "scripted")
    rows: list[Row] = []
    with gateway(script, "--parallel", "64", *name, folder=folder) as side:
        rows += _shown(asyncio.run(left(side, clients=1000, at_once=50)))
        rows += _shown(asyncio.run(killed(side, kills=5, streams=8)))
    with gateway(script, "--parallel", "2", "--queue-limit", "3", *name, folder=folder) as side:
        rows += _shown(asyncio.run(overloaded(side, requests=200)))
    with gateway(script, "--parallel", "64", *name, folder=folder) as side:
        rows += _shown(asyncio.run(drained(side, streams=16)))
    return rows


def write_rows(rows: list[Row], output: Path) -> None:
    """chaos.json and chaos.md."""
    origin = provenance(Path(__file__).parent)
    write_json(output / "chaos.json", {"rows": rows, **origin})
    lines = [f"| {did} | {what} | {number} |" for did, what, number in rows]
    about = f"Counts on the scripted engine; commit {origin['commit']}."
    head = f"# What becomes of requests when things go wrong\n\n{about}\n"
    table = "\n".join(["| what was done | what was counted | count |", "| --- | --- | --- |", *lines])
    write_text(output / "chaos.md", f"{head}\n{table}\n")


_MANY = httpx.Limits(max_connections=None)


def _shown(rows: list[Row]) -> list[Row]:
    for row in rows:
        print(": ".join(row), flush=True)
    return rows


def _url(side: Address) -> str:
    return f"http://127.0.0.1:{side.port}/v1"


def _body(side: Address, question: str) -> dict[str, Any]:
    return {"model": side.model, "messages": [{"role": "user", "content": question}], "stream": True}


async def _end_of(side: Address, question: str, opened: asyncio.Event | None = None) -> str:
    """How one stream ends: whole, or how its error or refusal is called; `opened` is set as it begins."""
    try:
        async with (
            asyncio.timeout(_LIMIT_S),
            httpx.AsyncClient(base_url=_url(side), timeout=_LIMIT_S) as client,
            client.stream("POST", "/chat/completions", json=_body(side, question)) as response,
        ):
            text = ""
            async for part in response.aiter_text():
                text += part
                if opened is not None:
                    opened.set()
            return _end_in(response.status_code, text)
    except httpx.ConnectError:
        return "connection refused"
    except (httpx.TransportError, TimeoutError) as error:
        return f"broken: {type(error).__name__}"


def _end_in(status: int, text: str) -> str:
    if status != 200:
        return f"{status} {json.loads(text)['error']['code']}"
    last = text.strip().rpartition("data: ")[2]
    return "whole" if last == "[DONE]" else f"error event {json.loads(last)['error']['code']}"


async def _patient(side: Address) -> str:
    give_up_at_s = time.monotonic() + _LIMIT_S
    while True:
        end = await _end_of(side, "hi")
        if not end.startswith("503") or time.monotonic() > give_up_at_s:
            return end
        await asyncio.sleep(0.2)


async def _leave(side: Address, clients: int, at_once: int) -> None:
    text = json.dumps(_body(side, "long"))
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    request = f"{head}content-length: {len(text)}\r\n\r\n{text}".encode()
    room = asyncio.Semaphore(at_once)

    async def leave() -> None:
        async with room:
            reader, writer = await asyncio.open_connection("127.0.0.1", side.port)
            writer.write(request)
            await reader.readuntil(b"data: ")
            writer.transport.abort()

    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(leave())


async def _settled(side: Address, floor: Mapping[str, int]) -> dict[str, int]:
    """What gateway and engine hold, once it is no more than `floor` or does not become less."""
    give_up_at_s = time.monotonic() + _SETTLE_LIMIT_S
    while True:
        await asyncio.sleep(0.5)
        health = await _health(side)
        assert side.process_id is not None
        held = {
            "requests in the engine": health["requests"]["running"],
            "requests that wait": health["requests"]["waiting"],
            "tasks": health["tasks"],
            "descriptors of the gateway": _descriptors(side.process_id),
            "descriptors of the engine": _descriptors(_engine_of(side)),
        }
        is_low = all(held[what] <= count for what, count in floor.items())
        is_low = is_low and not held["requests in the engine"]
        if is_low or time.monotonic() > give_up_at_s:
            return held


async def _health(side: Address) -> dict[str, Any]:
    async with httpx.AsyncClient(timeout=_LIMIT_S) as client:
        return (await client.get(f"http://127.0.0.1:{side.port}/health")).json()


def _engine_of(side: Address) -> int:
    (child,) = Path(f"/proc/{side.process_id}/task/{side.process_id}/children").read_text().split()
    return int(child)


def _descriptors(process_id: int) -> int:
    return sum(1 for _ in Path(f"/proc/{process_id}/fd").iterdir())


def _resident_mib(side: Address) -> float:
    pages = int(Path(f"/proc/{side.process_id}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _said(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {what}" for what, count in sorted(counts.items()))
