"""What our own gateway recorded of each request, joined by request id: where the time to first token went."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from decant.dataset import read_good_rows
from decant.endpoint import Endpoint
from decant.timing import RequestTiming, percentile, summarize

SERVER_FILE = "server.jsonl"

MOST_RECORDS = 2000
"""How many the gateway keeps, the last ones."""

_AT_ONCE = 16
_LIMIT_S = 10.0

RANK_PARTS = ("compute_s", "wait_s", "comm_s")


@dataclass(frozen=True, slots=True)
class ServerRecord:
    """The gateway's timing of one request, and its engine's own numbers."""

    timing: RequestTiming
    engine: Mapping[str, Any]
    row: Mapping[str, Any]


async def fetch_server_timing(endpoint: Endpoint, request_ids: Sequence[str]) -> dict[str, ServerRecord]:
    """The gateway's records of these requests; empty for an endpoint that is not ours."""
    if not endpoint.description:
        return {}
    limits = httpx.Limits(max_connections=_AT_ONCE)
    async with httpx.AsyncClient(base_url=endpoint.base_url, timeout=_LIMIT_S, limits=limits) as client:
        found = await asyncio.gather(*(_fetch(client, each) for each in request_ids))
    return {record.timing.request_id: record for record in found if record is not None}


async def _fetch(client: httpx.AsyncClient, request_id: str) -> ServerRecord | None:
    try:
        response = await client.get(f"/requests/{quote(request_id, safe='')}/timing")
    except httpx.TransportError:
        return None
    if response.status_code != 200:
        return None
    row = response.json()
    return ServerRecord(RequestTiming.from_dict(row), row.get("engine") or {}, row)


def split_ttft_s(client: RequestTiming, server: ServerRecord) -> dict[str, float]:
    """The parts of one request's time to first token, from its actual send; they add up to it.

    `network_s` is what lies outside the gateway, both ways, with the client's own part. `prefill_s` is the
    engine's own word, where it gives one; what is left of its time is `engine_wait_s`.
    """
    first_s, queue_s = server.timing.ttft_s, server.timing.queue_s
    if client.ttft_s is None or first_s is None or queue_s is None:
        return {}
    parts = {"network_s": client.ttft_s - first_s, "gateway_queue_s": queue_s}
    prompt_ms = server.engine.get("prompt_ms")
    if isinstance(prompt_ms, int | float):
        prefill_s = prompt_ms / 1000
        return {**parts, "prefill_s": prefill_s, "engine_wait_s": first_s - queue_s - prefill_s}
    return {**parts, "engine_s": first_s - queue_s}


def server_json(
    timings: Iterable[RequestTiming], records: Mapping[str, ServerRecord]
) -> dict[str, Any] | None:
    """The split over all joined requests; None where nothing could be joined."""
    if not records:
        return None
    joined: list[tuple[RequestTiming, ServerRecord]] = []
    missing = 0
    for timing in timings:
        if timing.ok and timing.request_id in records:
            joined.append((timing, records[timing.request_id]))
        else:
            missing += timing.ok
    parts = [split_ttft_s(timing, record) for timing, record in joined]
    names = list(dict.fromkeys(name for part in parts for name in part))
    return {
        "joined": len(joined),
        "missing": missing,
        "ttft_parts": {name: summarize([p[name] for p in parts if name in p]) for name in names},
        "ranks": rank_parts(record for _, record in joined),
    }


def rank_parts(records: Iterable[ServerRecord]) -> list[dict[str, Any]]:
    """Per tensor-parallel rank the median seconds that a request's steps computed, waited and communicated.

    Empty where the engine does not tell its ranks apart.
    """
    found: dict[int, dict[str, list[float]]] = {}
    for record in records:
        for row in record.row.get("ranks") or ():
            parts = found.setdefault(int(row["rank"]), {part: [] for part in RANK_PARTS})
            for part in RANK_PARTS:
                parts[part].append(float(row[part]))
    return [
        {
            "rank": rank,
            "n": len(parts["compute_s"]),
            **{part: percentile(found_s, 50) for part, found_s in parts.items()},
        }
        for rank, parts in sorted(found.items())
    ]


def read_server_timing(path: Path) -> dict[str, RequestTiming]:
    """The timings that a run kept of the gateway; empty where it kept none."""
    if not path.is_file():
        return {}
    rows = read_good_rows(path, required=("request_id", "actual_s"))
    return {row.fields["request_id"]: RequestTiming.from_dict(row.fields) for row in rows}
