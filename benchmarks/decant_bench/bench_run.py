"""One run against one endpoint: warm-up, the load, the client's own record, the server's timing."""

import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from decant.endpoint import Endpoint
from decant.errors import EndpointError
from decant.files import write_jsonl
from decant.wire_client import open_load_client, stamps_of
from decant_bench.bench_config import BenchConfig
from decant_bench.bench_processes import sending_processes
from decant_bench.bench_share import ProcessRecord, Sender, Share, Warmup
from decant_bench.live import watching
from decant_bench.pacing import HEAD_START_S
from decant_bench.plan import Plan
from decant_bench.records import REQUESTS_FILE, Record, RecordFile, read_records
from decant_bench.self_check import ClientRecord, LoopWatch
from decant_bench.server_timing import SERVER_FILE, ServerRecord, fetch_server_timing


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one run gave. `records` are in order of sending; `start_s` is when the schedule began."""

    records: Sequence[Record]
    start_s: float
    started_at: datetime
    client: ClientRecord
    server: dict[str, ServerRecord]
    warmup: Counter[str]


async def run_load(config: BenchConfig, endpoint: Endpoint, plan: Plan, *, folder: Path) -> Outcome:
    """Sends the plan and writes every request to requests.jsonl in the folder.

    EndpointError when the whole warm-up fails or no request completes: there is nothing to report then.
    """
    started_at = datetime.now(UTC)
    start_s, own, warmup = await _load(config, endpoint, plan, folder)
    records = sorted(read_records(folder / REQUESTS_FILE), key=lambda record: record.timing.actual_s)
    _require_one(records, config.title)
    server = await fetch_server_timing(endpoint, [r.timing.request_id for r in records if r.was_sent])
    if server:
        write_jsonl(folder / SERVER_FILE, (record.row for record in server.values()))
    due = [record for record in records if record.was_sent and record.timing.intended_s is not None]
    client = ClientRecord(
        lags_s=own.lags_s,
        schedule_errors_s=[record.schedule_error_s or 0.0 for record in due],
        send_delays_s=[record.timing.send_delay_s for record in due],
        cpu_share=own.cpu_share,
        stamps=stamps_of(endpoint.base_url),
        processes=config.processes,
    )
    return Outcome(records, start_s, started_at, client, server, warmup.outcomes)


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


def _require_one(records: Sequence[Record], title: str) -> None:
    if any(record.timing.ok for record in records):
        return
    first = next((record.error for record in records if record.error), "the run ended before it was sent")
    raise EndpointError(
        f"{title}: none of {len(records)} requests completed: {_kinds(records)}; the first: {first}"
    )


def _kinds(records: Sequence[Record]) -> str:
    kinds = Counter(record.timing.error_kind for record in records if record.timing.error_kind)
    return ", ".join(f"{kind} {n}" for kind, n in kinds.most_common())
