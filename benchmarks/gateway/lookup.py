"""`python -m gateway lookup`: what answering from labels takes through the gateway, one request at a time."""

import argparse
import asyncio
import json
import re
import time
from pathlib import Path

from decant.reviews import Review, add_review
from decant.store import Answer, NewLabel, RequestStore
from decant.timing import percentile
from decant.wire import request_key
from gateway.client import Address
from gateway.report import spread, write

# Of so many labels, one was accepted by a person.
_REVIEWED_EVERY = 4
_LIMIT_S = 60.0
_HEAD = (
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    b"content-length: %d\r\n\r\n"
)
_LENGTH = re.compile(rb"content-length: (\d+)")


def question(number: int) -> list[dict[str, str]]:
    """A request's messages, as long as those of a small classification."""
    text = f"Which section of the archive does package number {number} belong to? " + "It says a lot. " * 20
    return [{"role": "system", "content": "Answer with one word."}, {"role": "user", "content": text}]


def fill(path: Path, labels: int) -> None:
    """Writes the store."""
    with RequestStore.open(path) as store:
        requests = [{"model": "teacher", "messages": question(number)} for number in range(labels)]
        keys = [request_key(model="teacher", revision=None, request=r, sample_index=0) for r in requests]
        store.add(
            NewLabel(key=key, row_id=str(number), sample=0, request=request)
            for number, (key, request) in enumerate(zip(keys, requests, strict=True))
        )
        given = Answer(response="Answer: utils", answer="utils", finish_reason="stop")
        store.finish_many((key, given) for key in keys)
        for key, request in list(zip(keys, requests, strict=True))[::_REVIEWED_EVERY]:
            review = Review(of=key, version=1, decision="accept")
            add_review(store, review, row_id="", sample=0, asked=request["messages"])


async def measure(side: Address, *, first: int, requests: int, source: str) -> list[float]:
    """Milliseconds of each request from its send to its end; SystemExit when one came from elsewhere."""
    times_ms: list[float] = []
    reader, writer = await asyncio.open_connection("127.0.0.1", side.port)
    try:
        async with asyncio.timeout(_LIMIT_S):
            for number in range(first, first + requests):
                body = json.dumps({"model": side.model, "messages": question(number)}).encode()
                began_s = time.perf_counter()
                writer.write(_HEAD % len(body) + body)
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(int(_LENGTH.findall(head)[0]))
                times_ms.append((time.perf_counter() - began_s) * 1000)
                if b" 200 " not in head[:20] or f"x-decant-source: {source}".encode() not in head:
                    raise SystemExit(f"request {number} was not answered from the {source}: {head!r}")
    finally:
        writer.close()
    return times_ms


async def rounds_of(side: Address, asked: argparse.Namespace) -> dict[str, list[list[float]]]:
    """Hits and misses in turns, after one round that is thrown away."""
    done: dict[str, list[list[float]]] = {"hit": [], "miss": []}
    for number in range(asked.rounds + 1):
        for kind, first, source in (("hit", 0, "lookup"), ("miss", asked.labels, "model")):
            times_ms = await measure(side, first=first, requests=asked.requests, source=source)
            if number:
                done[kind].append(times_ms)
    return done


def report(asked: argparse.Namespace, done: dict[str, list[list[float]]]) -> None:
    """The table."""
    rows = [
        {
            "request": kind,
            "rounds": len(rounds),
            "n": sum(map(len, rounds)),
            "p50_ms": spread([percentile(one, 50) for one in rounds]),
            "p99_ms": spread([percentile(one, 99) for one in rounds]),
        }
        for kind, rounds in done.items()
    ]
    write(
        asked.output,
        "gateway-lookup",
        title="Answers from labels, through the gateway",
        setup={"labels in the store": asked.labels, "one accepted of": _REVIEWED_EVERY, "clients": 1},
        tables={"Look-up": rows},
    )
