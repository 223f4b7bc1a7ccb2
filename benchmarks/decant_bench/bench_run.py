"""One run against one endpoint: warm-up, the load, the client's own record, the server's timing."""

from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from decant.endpoint import Endpoint
from decant.errors import EndpointError
from decant.files import write_jsonl
from decant_bench.bench_config import BenchConfig
from decant_bench.driver import BenchClient, Driver, RequestShape
from decant_bench.live import watching
from decant_bench.pacing import HEAD_START_S, Clock, MonotonicClock, send_closed, send_open
from decant_bench.plan import Plan
from decant_bench.records import REQUESTS_FILE, Record, RecordFile, read_records
from decant_bench.self_check import ClientRecord, LoopWatch, quiet_collector
from decant_bench.server_timing import SERVER_FILE, ServerRecord, fetch_server_timing
from decant_bench.wire_client import open_load_client


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
    clock = MonotonicClock()
    async with AsyncExitStack() as stack:
        client = open_load_client(
            endpoint.base_url, api_key=endpoint.api_key, timeout_s=config.endpoint.request_timeout_s
        )
        await stack.enter_async_context(client)
        shape = _shape(config, endpoint)
        warmup = await _warm_up(plan, config=config, client=client, shape=shape, clock=clock)
        started_at = datetime.now(UTC)
        file = RecordFile(folder / REQUESTS_FILE)
        driver = Driver(client, shape, clock=clock, on_record=file.add)
        watch = LoopWatch()
        undo = quiet_collector()
        try:
            async with watch, watching(driver.counters, watch, plan=plan, config=config):
                start_s = await _send(config, driver, plan, clock)
        finally:
            undo()
            file.close()
        records = sorted(read_records(folder / REQUESTS_FILE), key=lambda record: record.timing.actual_s)
        _require_one(records, config.title)
        server = await fetch_server_timing(endpoint, [r.timing.request_id for r in records if r.was_sent])
    if server:
        write_jsonl(folder / SERVER_FILE, (record.row for record in server.values()))
    due = [record for record in records if record.was_sent and record.timing.intended_s is not None]
    own = ClientRecord(
        lags_s=watch.lags_s,
        schedule_errors_s=[record.schedule_error_s or 0.0 for record in due],
        send_delays_s=[record.timing.send_delay_s for record in due],
        cpu_share=watch.cpu_share,
    )
    return Outcome(records, start_s, started_at, own, server, warmup)


async def _warm_up(
    plan: Plan, *, config: BenchConfig, client: BenchClient, shape: RequestShape, clock: Clock
) -> Counter[str]:
    outcomes: list[Record] = []
    driver = Driver(client, shape, clock=clock, on_record=outcomes.append)
    await send_closed(plan.warmup, driver.send_free, clients=config.concurrency, clock=clock)
    if outcomes and not driver.counters.completed:
        kinds, first = _kinds(outcomes), outcomes[0].error
        raise EndpointError(f"{config.title}: every warm-up request failed: {kinds}; the first: {first}")
    return Counter(record.timing.error_kind or "completed" for record in outcomes)


async def _send(config: BenchConfig, driver: Driver, plan: Plan, clock: Clock) -> float:
    start_s = clock.now_s() + HEAD_START_S
    if plan.offsets_s is None:
        end_s = None if config.duration_s is None else start_s + config.duration_s
        await send_closed(
            plan.conversations,
            driver.send_free,
            clients=min(config.concurrency, len(plan.conversations)),
            clock=clock,
            end_s=end_s,
            grace_s=config.drain_s,
        )
        return start_s
    sent = await send_open(
        plan.conversations,
        plan.offsets_s,
        driver.send_due,
        clock=clock,
        start_s=start_s,
        grace_s=config.drain_s,
    )
    for conversation, offset_s in zip(plan.conversations[sent:], plan.offsets_s[sent:], strict=True):
        driver.leave(conversation, start_s + offset_s)
    return start_s


def _shape(config: BenchConfig, endpoint: Endpoint) -> RequestShape:
    return RequestShape(
        model=endpoint.model,
        route=config.route,
        stream=config.stream,
        think_s=config.workload.think_s,
        extra=config.workload.extra,
        keeps_text=config.workload.tokenizer is not None,
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
