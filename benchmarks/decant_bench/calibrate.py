"""`decant bench calibrate`: the benchmark's own error, measured on delays that are known.

The scripted engine answers on a port of its own, or is served like any model (`through` the gateway). Each
request's first token and each gap after it are compared with what the script says, which holds all that lies
between script and number: the engine's timers, the gateway, the sockets and the client; and, request by
request, with the engine's or the gateway's own stamps, which leaves the client and the sockets.
"""

import sys
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from decant.config import Config, OutputPath
from decant.endpoint import EndpointConfig, open_endpoint
from decant.files import write_json
from decant.hardware import provenance
from decant.timing import RequestTiming, percentile
from decant_bench.bench import bench
from decant_bench.bench_config import BenchConfig, LengthConfig, WorkloadConfig
from decant_bench.bench_result import read_bench
from decant_bench.event_loop import run_measuring
from decant_bench.scripted_engine import (
    MODEL,
    Lateness,
    ScriptedEngine,
    SentAnswer,
    lateness_of,
    scripted_engine,
)
from decant_bench.self_check import InvalidRun
from decant_bench.server_timing import SERVER_FILE, read_server_timing

CALIBRATION_FILE = "calibration.json"


class CalibrateConfig(Config):
    """How the ruler is checked."""

    output: OutputPath = Field(description="folder for calibration.json and a result folder per load")
    through: Literal["engine", "gateway"] = Field(
        default="engine", description="ask the scripted engine itself, or through `decant serve`"
    )
    streams: tuple[int, ...] = Field(default=(1, 64, 256), min_length=1, description="streams at once")
    requests_per_stream: int = Field(default=4, ge=1, description="requests of each stream")
    least_requests: int = Field(default=40, ge=1, description="fewest requests of a load")
    ttft_s: float = Field(default=0.2, gt=0, description="scripted time to the first token")
    gap_s: float = Field(default=0.02, gt=0, description="scripted gap between tokens")
    tokens: int = Field(default=16, ge=2, description="tokens of each answer")
    seed: int = Field(default=0, ge=0, description="seed of the prompts and the intervals")
    error_share: float = Field(
        default=0.1, gt=0, description="a client error above this share of the delays makes a load invalid"
    )


CONFIG = CalibrateConfig


@dataclass(frozen=True, slots=True)
class ErrorRow:
    """Measured minus true of one delay, in seconds; `of` says what counts as true."""

    streams: int
    delay: str
    of: str
    n: int
    p50_s: float
    p99_s: float
    worst_s: float


def run(config: CalibrateConfig) -> None:
    """Prints the table and writes it; InvalidRun when the client was too slow at some number of streams."""
    config.output.mkdir(parents=True, exist_ok=True)
    rows, doubts = run_measuring(_calibrate(config))
    document = {
        "format_version": 1,
        "rows": [_row_json(row) for row in rows],
        "doubts": doubts,
        "valid": not doubts,
        **provenance(Path(__file__).parent),
        "config": config.model_dump(mode="json"),
    }
    write_json(config.output / CALIBRATION_FILE, document)
    sys.stdout.write(f"{calibration_text(config, rows)}\nwritten to {config.output}\n")
    if doubts:
        words = "; ".join(f"{streams} streams: {' and '.join(why)}" for streams, why in doubts.items())
        raise InvalidRun(f"not valid at {words}; calibrate on an idle machine")


def script_of(config: CalibrateConfig) -> dict[str, Any]:
    """The script whose delays are the truth."""
    chunks = [f"word{number} " for number in range(config.tokens)]
    answer = {"chunks": chunks, "ttft_s": config.ttft_s, "gaps_s": [config.gap_s], "prompt_tokens": 8}
    return {"answers": [answer]}


def error_rows(
    config: CalibrateConfig,
    streams: int,
    timings: Sequence[RequestTiming],
    stamped: Mapping[str, RequestTiming],
) -> list[ErrorRow]:
    """Measured minus true: against the script, and against who stamped its answers, by request id."""
    done = [timing for timing in timings if timing.ok and timing.ttft_s is not None]
    rows = [
        _row(streams, "ttft", "script", [(t.ttft_s or 0.0) - config.ttft_s for t in done]),
        _row(streams, "itl", "script", [gap - config.gap_s for t in done for gap in t.chunk_gaps_s]),
    ]
    pairs = [(t, stamped[t.request_id]) for t in done if t.request_id in stamped]
    first = [(t.ttft_s or 0.0) - s.ttft_s for t, s in pairs if s.ttft_s is not None]
    gaps = [
        mine - theirs
        for t, s in pairs
        if len(t.chunk_gaps_s) == len(s.chunk_gaps_s)
        for mine, theirs in zip(t.chunk_gaps_s, s.chunk_gaps_s, strict=True)
    ]
    rows += [_row(streams, "ttft", config.through, first), _row(streams, "itl", config.through, gaps)]
    return [row for row in rows if row is not None]


def own_timings(answers: Sequence[SentAnswer]) -> dict[str, RequestTiming]:
    """What the engine stamped, in the words of a client."""
    return {
        each.request_id: RequestTiming(
            request_id=each.request_id,
            actual_s=each.arrived_s,
            ttft_s=each.ttft_s,
            e2e_s=each.sent_s[-1] - each.arrived_s,
            chunk_times_s=tuple(at_s - each.arrived_s for at_s in each.sent_s),
        )
        for each in answers
    }


def calibration_text(config: CalibrateConfig, rows: Sequence[ErrorRow]) -> str:
    """The table, in ms."""
    scripted = f"first token {1000 * config.ttft_s:g}, gap {1000 * config.gap_s:g}, {config.tokens} tokens"
    head = f"{'streams':>7}  {'delay':<5} {'against':<8} {'n':>7} {'p50':>8} {'p99':>8} {'worst':>8}"
    lines = [f"measured minus true, ms (scripted: {scripted})", head]
    for row in rows:
        numbers = " ".join(f"{1000 * value:>8.2f}" for value in (row.p50_s, row.p99_s, row.worst_s))
        lines.append(f"{row.streams:>7}  {row.delay:<5} {row.of:<8} {row.n:>7} {numbers}")
    return "\n".join(lines)


async def _calibrate(config: CalibrateConfig) -> tuple[list[ErrorRow], dict[str, list[str]]]:
    script = config.output / "script.json"
    write_json(script, script_of(config))
    rows: list[ErrorRow] = []
    doubts: dict[str, list[str]] = {}
    async with AsyncExitStack() as stack:
        engine: ScriptedEngine | None = None
        if config.through == "engine":
            engine = stack.enter_context(scripted_engine(script))
            endpoint_config = EndpointConfig(base_url=f"{engine.address}/v1", model=MODEL)
        else:
            endpoint_config = EndpointConfig(serve=script, parallel=max(config.streams))
        endpoint = await stack.enter_async_context(open_endpoint(endpoint_config, log_dir=config.output))
        for streams in config.streams:
            load = _load(config, endpoint_config, streams)
            result = await bench(load, endpoint)
            timings = read_bench(load.output).timings
            if engine is None:
                rows += error_rows(config, streams, timings, read_server_timing(load.output / SERVER_FILE))
            else:
                sent = engine.sent()
                rows += error_rows(config, streams, timings, own_timings(sent))
                rows += _own_rows(streams, lateness_of(sent))
            if not result.valid:
                doubts[str(streams)] = list(result.doubts)
    return rows, doubts


def _own_rows(streams: int, late: Lateness) -> list[ErrorRow]:
    if late.p50_s is None or late.p99_s is None or late.max_s is None:
        return []
    return [ErrorRow(streams, "late", "engine", late.n, late.p50_s, late.p99_s, late.max_s)]


def _load(config: CalibrateConfig, endpoint: EndpointConfig, streams: int) -> BenchConfig:
    return BenchConfig(
        output=config.output / f"streams-{streams}",
        endpoint=endpoint,
        workload=WorkloadConfig(
            prompt_tokens=LengthConfig(mean=8), output_tokens=LengthConfig(mean=config.tokens)
        ),
        arrival="closed",
        concurrency=streams,
        requests=max(config.least_requests, config.requests_per_stream * streams),
        # Connections are opened by the warm-up, as they would be in a service that runs.
        warmup=streams,
        seed=config.seed,
        error_share=config.error_share,
    )


def _row(streams: int, delay: str, of: str, errors_s: Sequence[float]) -> ErrorRow | None:
    """Percentiles of the errors' size with the sign of the median: a ruler may be early as well as late."""
    if not errors_s:
        return None
    sizes = [abs(error) for error in errors_s]
    return ErrorRow(
        streams, delay, of, len(sizes), percentile(errors_s, 50), percentile(sizes, 99), max(sizes)
    )


def _row_json(row: ErrorRow) -> dict[str, Any]:
    return {
        "streams": row.streams,
        "delay": row.delay,
        "against": row.of,
        "n": row.n,
        "p50_s": row.p50_s,
        "p99_abs_s": row.p99_s,
        "worst_abs_s": row.worst_s,
    }
