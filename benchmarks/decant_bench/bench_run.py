"""One run against one endpoint: warm-up, the load, the client's own record, the server's timing."""

import heapq
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from decant.endpoint import Endpoint
from decant.errors import EndpointError
from decant.files import write_jsonl
from decant.wire_client import open_load_client, stamps_of
from decant_bench.bench_config import BenchConfig
from decant_bench.bench_processes import sending_processes
from decant_bench.bench_share import ProcessRecord, Sender, Share, Warmup
from decant_bench.columns import RequestColumns, read_columns
from decant_bench.live import watching
from decant_bench.measures import error_counts
from decant_bench.pacing import HEAD_START_S
from decant_bench.plan import Plan
from decant_bench.records import REQUESTS_FILE, RecordFile, read_records
from decant_bench.self_check import ClientRecord, LoopWatch
from decant_bench.server_timing import MOST_RECORDS, SERVER_FILE, fetch_server_timing, server_json


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one run gave: its requests as numbers, while their records are in the folder.

    `start_s` is when the schedule began; `server` what the gateway recorded, joined with the requests.
    """

    requests: RequestColumns
    start_s: float
    started_at: datetime
    client: ClientRecord
    server: dict[str, Any] | None
    warmup: Counter[str]


async def run_load(config: BenchConfig, endpoint: Endpoint, plan: Plan, *, folder: Path) -> Outcome:
    """Sends the plan and writes every request to requests.jsonl in the folder.

    EndpointError when the whole warm-up fails or no request completes: there is nothing to report then.
    """
    started_at = datetime.now(UTC)
    start_s, own, warmup = await _load(config, endpoint, plan, folder)
    requests = read_columns(folder, plan.counter)
    _require_one(requests, config.title)
    due = requests.pick(requests.was_sent & ~np.isnan(requests.intended_s))
    client = ClientRecord(
        lags_s=own.lags_s,
        schedule_errors_s=np.nan_to_num(due.schedule_error_s).tolist(),
        send_delays_s=due.send_delay_s.tolist(),
        cpu_share=own.cpu_share,
        stamps=stamps_of(endpoint.base_url),
        processes=config.processes,
    )
    server = await _joined(endpoint, folder)
    return Outcome(requests, start_s, started_at, client, server, warmup.outcomes)


async def _joined(endpoint: Endpoint, folder: Path) -> dict[str, Any] | None:
    """What the gateway says of the last requests, kept in the folder and joined with what was measured."""
    if not endpoint.description:
        return None
    sent = (
        (r.timing.actual_s, r.timing.request_id) for r in read_records(folder / REQUESTS_FILE) if r.was_sent
    )
    last = [request_id for _, request_id in heapq.nlargest(MOST_RECORDS, sent)]
    server = await fetch_server_timing(endpoint, last)
    if server:
        write_jsonl(folder / SERVER_FILE, (record.row for record in server.values()))
    return server_json((record.timing for record in read_records(folder / REQUESTS_FILE)), server)


async def _load(
    config: BenchConfig, endpoint: Endpoint, plan: Plan, folder: Path
) -> tuple[float, ProcessRecord, Warmup]:
    if config.processes > 1:
        async with sending_processes(config, endpoint, plan, folder=folder) as processes:
            _require_warm(processes.warmup, config.title)
            async with watching(processes.counters, LoopWatch(), plan=plan, config=config):
                start_s, own = await processes.send()
        return start_s, own, processes.warmup
    client = open_load_client(
        endpoint.base_url, api_key=endpoint.api_key, timeout_s=config.endpoint.request_timeout_s
    )
    with closing(RecordFile(folder / REQUESTS_FILE)) as file:
        async with client:
            sender = Sender(config, endpoint, client, share=Share(), on_record=file.add)
            warmup = await sender.warm_up(plan.warmup)
            _require_warm(warmup, config.title)
            start_s = time.perf_counter() + HEAD_START_S
            async with watching(sender.counters, sender.watch, plan=plan, config=config):
                own = await sender.send(plan.conversations, plan.offsets_s, start_s=start_s)
    return start_s, own, warmup


def _require_warm(warmup: Warmup, title: str) -> None:
    if warmup.outcomes and not warmup.outcomes["completed"]:
        kinds = ", ".join(f"{kind} {n}" for kind, n in warmup.outcomes.most_common())
        raise EndpointError(
            f"{title}: every warm-up request failed: {kinds}; the first: {warmup.first_failure}"
        )


def _require_one(requests: RequestColumns, title: str) -> None:
    if requests.ok.any():
        return
    counts = error_counts(requests)
    kinds = ", ".join(f"{kind} {found['n']}" for kind, found in counts.items())
    words = next((found["example"] for found in counts.values() if found["example"]), None)
    raise EndpointError(
        f"{title}: none of {len(requests)} requests completed: {kinds};"
        f" the first: {words or 'the run ended before it was sent'}"
    )
